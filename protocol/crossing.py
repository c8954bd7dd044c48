"""Whether one act may cross from one mesh to another, and in which words. Pure: a relationship in, a reason out."""

from collections.abc import Collection, Mapping

import msgspec

from protocol.acts import Act
from protocol.dispute import is_dispute
from protocol.link import Relationship, State
from protocol.statement import MAX_AHEAD_MS, STATEMENTS, Trust, own_basin
from protocol.vocabulary import BODIES, Digest

_CLOSED = {
    State.STRANGER: "the two meshes are strangers",
    State.INVITED: "the invitation has not been accepted",
    State.PAUSED: "the link is paused",
    State.LEFT: "the link has ended",
}


def may_send(relationship: Relationship, basin: str, act: Act, now_ms: int) -> str | None:
    """Why an act of this basin must not go to the peer, as a phrase for a person; None when it may.

    Where the act comes from is the caller's to look at: nothing goes back to the mesh that said it.
    """
    return _refusal(relationship, basin, act, now_ms)


def may_take(relationship: Relationship, basin: str, act: Act, now_ms: int) -> str | None:
    """Why an act of this basin must not be taken from the peer, as a phrase for a person; None when it may."""
    return _refusal(relationship.mirrored(), basin, act, now_ms)


def sent_basins(relationship: Relationship) -> dict[str, int]:
    """The basins whose acts may go to the peer, each with the Unix milliseconds from which on; 0 from the beginning.

    `sent_basins(relationship.mirrored())` are those that may be taken. The own basin of the two is not among them.
    """
    seen = relationship
    if seen.state != State.LINKED or seen.theirs.terms.trust == Trust.SILENT:
        return {}
    found: dict[str, int] = {}
    for basin in sorted({*seen.mine.terms.gives, *seen.theirs.terms.gives}):
        since_ms = _since(seen, basin)
        if since_ms is not None:
            begun = max(since_ms, seen.mine.joined_ms, seen.theirs.joined_ms)
            found[basin] = begun if _is_late(seen.mine.terms.trust, basin) else 0
    return found


def plainly(act: Act, words: Mapping[str, Digest], shared: Collection[Digest]) -> Act:
    """The act as the peer can read it: itself, or a `say` of its text that keeps its place in the weave.

    `words` are the digests of one's own readings by the name of the act, `shared` those that both meshes hold. The
    core acts are version 1 itself: every peer holds them.
    """
    if act.kind in BODIES or words.get(act.kind) in shared:
        return act
    return msgspec.structs.replace(act, kind="say", body={"text": act.text, "kind": act.kind})


def _refusal(seen: Relationship, basin: str, act: Act, now_ms: int) -> str | None:
    """The one rule of both directions: from the side that `seen` calls mine to the other."""
    source, sink = seen.mine, seen.theirs
    between = basin == own_basin(seen.me, seen.peer)
    if act.at_ms > now_ms + MAX_AHEAD_MS:
        return "it is dated more than five minutes from now"
    if between and act.kind in STATEMENTS:
        return None
    if seen.state != State.LINKED:
        return _CLOSED[seen.state]
    if sink.terms.trust == Trust.SILENT:
        return "the receiving mesh no longer listens"
    if between:
        return None
    since_ms = _since(seen, basin)
    if since_ms is None:
        return f"{basin} is not shared"
    if _is_late(source.terms.trust, basin) and act.at_ms < max(since_ms, source.joined_ms, sink.joined_ms):
        return "it was said before the receiving mesh, a guest, could hear it"
    return None


def _is_late(trust: Trust, basin: str) -> bool:
    """Whether only what is said from now on is heard; a dispute is given to be heard from its beginning."""
    return trust == Trust.GUEST and not is_dispute(basin)


def _since(seen: Relationship, basin: str) -> int | None:
    """Since when a basin's acts may cross: the source gives it and the sink takes it, or both agreed to writing."""
    given, taken = seen.mine.terms.gives.get(basin), seen.theirs.terms.takes.get(basin)
    starts = [given.since_ms] if given and taken else []
    given, taken = seen.theirs.terms.gives.get(basin), seen.mine.terms.takes.get(basin)
    if given and taken and given.may == taken.may == "write":
        starts.append(max(given.since_ms, taken.since_ms))
    return min(starts, default=None)
