"""Disputes: what two meshes say about something that went wrong between them, and what each is ready to do about it.

    open -> settled      both parties have said `settle`
       `-> withdrawn     whoever raised it has said `withdraw`; both together are settled

A dispute is the acts of a basin that the two share for it alone. Nobody is punished and nobody is outvoted: what comes
of it are the commitments that each has made by itself, which are followed. All of it is a function of what was said,
in whatever order that was heard.
"""

import base64
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Final, NamedTuple, TypeVar

import msgspec

from protocol.acts import Act, ActId
from protocol.errors import BadKey
from protocol.husk import is_husk
from protocol.keys import KeyKind, MeshId, decode_public
from protocol.vocabulary import Reference, Remedy, Text

MAX_NAMED: Final = 4  # mediators that one party names in a dispute: more is no search for one but an attack on memory
MAX_COMMITMENTS: Final = 64  # of one party in one dispute; further ones are words
COUNTED: Final = frozenset({"raise", "respond", "remedy", "report", "settle", "withdraw"})  # what counts
TALK: Final = frozenset({"say", "ask", "answer", "edit"})  # what is said beside it

_PREFIX: Final = "dispute-"
_SHORT_BYTES: Final = 5  # the end of an act's id, which is random: 8 letters
_SHORT: Final = 8
_MARK_BYTES: Final = 10
_BASIN: Final = re.compile(r"dispute-[a-z2-7]{24}")

B = TypeVar("B")
Heard = tuple[MeshId, Act]
IsPerson = Callable[[MeshId, str], bool]


class State(StrEnum):
    """How a dispute stands."""

    OPEN = "open"
    SETTLED = "settled"
    WITHDRAWN = "withdrawn"


class Standing(StrEnum):
    """How a commitment stands."""

    OPEN = "open"
    OVERDUE = "overdue"
    KEPT = "kept"  # its author reported that it is done
    RELEASED = "released"  # the other party asks no more for it
    TAKEN_BACK = "taken back"  # its author redacted it


class Parties(NamedTuple):
    """The two meshes: whoever raised the dispute, and with whom."""

    raiser: MeshId
    other: MeshId


class Word(msgspec.Struct, frozen=True):
    """One thing that was said. `refs` are the acts that it is about, beside the dispute itself."""

    id: ActId
    mesh: MeshId
    author: str
    at_ms: int
    kind: str
    text: str
    refs: tuple[ActId, ...]
    taken_back: bool


class Commitment(msgspec.Struct, frozen=True):
    """What a party is ready to do. `due_ms`: by when (Unix milliseconds), None for no day."""

    id: ActId
    mesh: MeshId
    text: str
    at_ms: int
    due_ms: int | None
    standing: Standing


class Dispute(msgspec.Struct, frozen=True):
    """A dispute at some moment. `raised` is the act that began it, None until it is heard; `about` are acts.

    `willing` are the parties that have settled. `named` has every mesh that a party would have as a mediator, with the
    parties that would; whom both would is one of the `mediators`.
    """

    basin: str
    parties: Parties
    raised: ActId | None
    about: tuple[ActId, ...]
    text: str
    wish: str
    at_ms: int | None
    words: tuple[Word, ...]
    commitments: tuple[Commitment, ...]
    willing: tuple[MeshId, ...]
    withdrawn: bool
    named: dict[MeshId, tuple[MeshId, ...]]

    @property
    def id(self) -> str:
        """Eight letters that name it."""
        return self.basin[len(_PREFIX) : len(_PREFIX) + _SHORT]

    @property
    def state(self) -> State:
        """Where it stands."""
        if set(self.willing) == set(self.parties):
            return State.SETTLED
        return State.WITHDRAWN if self.withdrawn else State.OPEN

    @property
    def mediators(self) -> tuple[MeshId, ...]:
        """The meshes that both parties would have as a mediator."""
        return tuple(mesh for mesh, by in self.named.items() if set(by) == set(self.parties))

    @property
    def members(self) -> frozenset[MeshId]:
        """Who may hear it and speak in it."""
        return frozenset((*self.parties, *self.mediators))


class _Raised(msgspec.Struct, frozen=True):
    """What the body of a `raise` has beside its text. `mesh`: with whom; `wish`: what its author would like."""

    mesh: Reference
    wish: Text = ""


class _Named(msgspec.Struct, frozen=True):
    """What the body of a `respond` may have: a mesh that its author would have, or not have, as a mediator."""

    mediator: Reference
    consent: bool = True


def short(identity: bytes) -> str:
    """Eight letters that tell an act from the others of a dispute, and a dispute from others."""
    return base64.b32encode(identity[-_SHORT_BYTES:]).decode().lower()


def dispute_basin(raiser: MeshId, other: MeshId, identity: bytes) -> str:
    """The name of the basin of a dispute that begins with a `raise` of this id.

    From the name, each of the two sees at once that it concerns them, and nobody else is taken for one of them.
    """
    return _basin(raiser, other, identity[-_SHORT_BYTES:])


def is_dispute(basin: str) -> bool:
    """Whether a basin is that of a dispute."""
    return basin.startswith(_PREFIX) and _BASIN.fullmatch(basin) is not None


def concerns(basin: str, one: MeshId, other: MeshId) -> bool:
    """Whether a basin is that of a dispute which one of these two raised with the other."""
    if not is_dispute(basin):
        return False
    end = base64.b32decode(basin[len(_PREFIX) : len(_PREFIX) + _SHORT].upper())
    return basin in (_basin(one, other, end), _basin(other, one, end))


def parties_of(basin: str, mesh: MeshId, act: Act) -> Parties | None:
    """Between whom a `raise` by `mesh` opens the dispute of this basin; None for whatever does not open it."""
    said = _body(act, _Raised) if act.kind == "raise" else None
    if said is None or said.mesh == mesh or not _is_mesh(said.mesh):
        return None
    parties = Parties(mesh, MeshId(said.mesh))
    return parties if dispute_basin(*parties, act.id) == basin else None


def follow(basin: str, parties: Parties, heard: Iterable[Heard], now_ms: int, is_person: IsPerson) -> Dispute:
    """The dispute at `now_ms`, from what was heard in its basin, each act once and in any order.

    `is_person` tells whether an author is a mesh's own person: nobody else is a party. Of what a mesh other than the
    parties said, only the words of mediators are shown; they decide nothing.
    """
    ordered = sorted(heard, key=lambda one: (one[1].at_ms, one[1].id))
    spoken = [one for one in ordered if _is_partys(basin, parties, one, is_person)]
    counted = [one for one in spoken if not is_husk(one[1])]
    consents = _consents(parties, counted)
    raised = next((act for _, act in spoken if act.kind == "raise"), None)
    said = _body(raised, _Raised) if raised else None
    shown = {*parties, *(mesh for mesh in consents[parties.raiser] if mesh in consents[parties.other])}
    outcomes = _outcomes(parties, counted)
    named = {mesh: _would(parties, consents, mesh) for mesh in sorted({*consents[parties[0]], *consents[parties[1]]})}
    return Dispute(
        basin,
        parties,
        raised=raised.id if raised else None,
        about=tuple(raised.refs) if raised else (),
        text=raised.text if raised else "",
        wish=said.wish if said else "",
        at_ms=raised.at_ms if raised else None,
        words=tuple(_word(mesh, act) for mesh, act in ordered if mesh in shown and act.kind in COUNTED | TALK),
        commitments=tuple(
            Commitment(act.id, by, act.text, act.at_ms, _due(act), outcomes.standing(by, act, now_ms))
            for party in parties
            for by, act in [one for one in spoken if one[0] == party and one[1].kind == "remedy"][:MAX_COMMITMENTS]
        ),
        willing=outcomes.willing,
        withdrawn=outcomes.withdrawn,
        named={mesh: by for mesh, by in named.items() if by},
    )


def _basin(raiser: str, other: str, end: bytes) -> str:
    mark = hashlib.blake2b(f"{raiser}\x00{other}\x00".encode() + end, digest_size=_MARK_BYTES).digest()
    return _PREFIX + base64.b32encode(end + mark).decode().lower()


def _is_partys(basin: str, parties: Parties, heard: Heard, is_person: IsPerson) -> bool:
    """Whether a person of a party said an act, about this dispute. What was taken back is still theirs."""
    mesh, act = heard
    if act.kind not in COUNTED or mesh not in parties or not is_person(mesh, act.author):
        return False
    if act.kind == "raise":
        return mesh == parties.raiser and dispute_basin(*parties, act.id) == basin
    return bool(act.refs) and basin.startswith(_PREFIX + short(act.refs[0]))


def _consents(parties: Parties, counted: Sequence[Heard]) -> dict[MeshId, dict[MeshId, bool]]:
    """By party: the meshes that it named, and whether it would have them as a mediator; its latest word counts."""
    found = {party: dict[MeshId, bool]() for party in parties}
    for by, act in counted:
        said = _body(act, _Named) if act.kind == "respond" else None
        if said is None or said.mediator in parties or not _is_mesh(said.mediator):
            continue
        mesh = MeshId(said.mediator)
        if mesh in found[by] or len(found[by]) < MAX_NAMED:
            found[by][mesh] = said.consent
    return found


def _would(parties: Parties, consents: Mapping[MeshId, Mapping[MeshId, bool]], mesh: MeshId) -> tuple[MeshId, ...]:
    """The parties that would have a mesh as a mediator."""
    return tuple(party for party in parties if consents[party].get(mesh))


class _Outcomes(NamedTuple):
    """What the parties have said of the dispute and of its commitments: (who, about which)."""

    parties: Parties
    done: frozenset[tuple[MeshId, ActId]]
    released: frozenset[tuple[MeshId, ActId]]
    willing: tuple[MeshId, ...]
    withdrawn: bool

    def standing(self, by: MeshId, act: Act, now_ms: int) -> Standing:
        """How the commitment that `by` made with a `remedy` stands."""
        raiser, other = self.parties
        if is_husk(act):
            return Standing.TAKEN_BACK
        if (by, act.id) in self.done:
            return Standing.KEPT
        if (other if by == raiser else raiser, act.id) in self.released or (self.withdrawn and by == other):
            return Standing.RELEASED
        due_ms = _due(act)
        return Standing.OVERDUE if due_ms is not None and due_ms < now_ms else Standing.OPEN


def _outcomes(parties: Parties, counted: Sequence[Heard]) -> _Outcomes:
    settled = [(by, act) for by, act in counted if act.kind == "settle"]
    reported = [(by, act) for by, act in counted if act.kind == "report" and act.body.get("outcome", "done") == "done"]
    whole = {by for by, act in settled if len(act.refs) == 1}  # those that refer to more are about commitments
    return _Outcomes(
        parties,
        frozenset((by, ref) for by, act in reported for ref in act.refs[1:]),
        frozenset((by, ref) for by, act in settled for ref in act.refs[1:]),
        tuple(party for party in parties if party in whole),
        any(act.kind == "withdraw" and by == parties.raiser for by, act in counted),
    )


def _due(act: Act) -> int | None:
    said = _body(act, Remedy)
    return said.due_ms if said else None


def _word(mesh: MeshId, act: Act) -> Word:
    refs = act.refs if act.kind in TALK | {"raise"} else act.refs[1:]
    return Word(act.id, mesh, act.author, act.at_ms, act.kind, act.text, tuple(refs), is_husk(act))


def _is_mesh(text: str) -> bool:
    try:
        decode_public(text, KeyKind.MESH)
    except BadKey:
        return False
    return True


def _body(act: Act, kind: type[B]) -> B | None:
    """The body of an act as this kind; None for one that is not."""
    try:
        return msgspec.convert(act.body, kind)
    except msgspec.ValidationError:
        return None
