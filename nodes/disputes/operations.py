"""What the owner's commands may ask about disputes of a running node."""

from typing import Annotated, Any, Final

import msgspec

from nodes.control import Nothing, Operations
from nodes.disputes.disputes import Disputes, Offered
from nodes.disputes.telling import Telling, fitting
from nodes.errors import NodeError
from protocol.acts import MAX_REFS, ActId
from protocol.dispute import Commitment, Dispute, State, short
from protocol.errors import BadKey
from protocol.keys import KeyKind, MeshId, decode_public, fingerprint
from protocol.vocabulary import MAX_TEXT

MAX_LISTED: Final = 500  # disputes in one list, the newest
MAX_DUE_S: Final = 3660 * 86_400

Words = Annotated[str, msgspec.Meta(max_length=MAX_TEXT)]


class Raise(msgspec.Struct, forbid_unknown_fields=True):
    """Raise a dispute with a peer. `about`: ids of acts, in hex; `wish`: what the person would like."""

    peer: str
    text: Words
    about: Annotated[list[str], msgspec.Meta(max_length=MAX_REFS)] = []
    wish: Words = ""


class Say(msgspec.Struct, forbid_unknown_fields=True):
    """Say something in a dispute."""

    dispute: str
    text: Words


class Remedy(msgspec.Struct, forbid_unknown_fields=True):
    """Say what one is ready to do. `due_s`: by when, in seconds from now; None for no day."""

    dispute: str
    text: Words
    due_s: Annotated[int, msgspec.Meta(ge=1, le=MAX_DUE_S)] | None = None


class Report(msgspec.Struct, forbid_unknown_fields=True):
    """Say what became of a commitment of one's own, or, with `release`, ask no more for one of the other side."""

    commitment: str
    text: Words


class Mediator(msgspec.Struct, forbid_unknown_fields=True):
    """Name a mesh as one that one would have, or not have, as a mediator: a peer, a mesh id, or one named before."""

    dispute: str
    mesh: str
    text: Words = ""
    consent: bool = True


class Of(msgspec.Struct, forbid_unknown_fields=True):
    """About a dispute."""

    dispute: str


def operations(disputes: Disputes) -> Operations:
    """The operations by their names. They raise NodeError, MeshError, ProtocolError, ValueError."""
    asked = _Asked(disputes)
    return {
        "dispute_raise": (Raise, asked.raise_),
        "dispute_respond": (Say, asked.respond),
        "dispute_remedy": (Remedy, asked.remedy),
        "dispute_report": (Report, asked.report),
        "dispute_release": (Report, asked.release),
        "dispute_settle": (Say, asked.settle),
        "dispute_withdraw": (Say, asked.withdraw),
        "dispute_mediator": (Mediator, asked.mediator),
        "dispute_mediate": (Of, asked.mediate),
        "dispute_show": (Of, asked.show),
        "dispute_list": (Nothing, asked.list),
    }


class _Asked:
    """Answers them."""

    def __init__(self, disputes: Disputes) -> None:
        self._disputes, self._peers = disputes, disputes.peers
        self._telling = Telling(disputes.peers, disputes.node.config.name, disputes.node.ground.store)

    async def raise_(self, request: Raise) -> dict[str, Any]:
        text = _said(request.text)
        peer = self._peers.find(request.peer)
        about = [ActId(bytes.fromhex(one)) for one in request.about]
        for one in about:
            if not self._telling.knows(one):
                raise NodeError(f"no act {one.hex()} is known here; mesh tap --json and mesh why show ids")
        return self._told(await self._disputes.raise_(peer, text, about, request.wish.strip()))

    async def respond(self, request: Say) -> dict[str, Any]:
        return await self._say(self._disputes.find(request.dispute), "respond", _said(request.text))

    async def remedy(self, request: Remedy) -> dict[str, Any]:
        due = {} if request.due_s is None else {"due_ms": self._peers.now_ms() + request.due_s * 1000}
        return await self._say(self._disputes.find(request.dispute), "remedy", _said(request.text), **due)

    async def report(self, request: Report) -> dict[str, Any]:
        dispute, act, made = self._commitment(request.commitment)
        if made.mesh != self._peers.me:
            raise NodeError("that commitment is the other side's to report; you may release them from it")
        return await self._say(dispute, "report", request.text.strip() or "Done.", act, outcome="done")

    async def release(self, request: Report) -> dict[str, Any]:
        dispute, act, made = self._commitment(request.commitment)
        if made.mesh == self._peers.me:
            raise NodeError("that commitment is your own: report it, or let the other side release you from it")
        return await self._say(dispute, "settle", request.text.strip() or "I ask no more for it.", act)

    async def settle(self, request: Say) -> dict[str, Any]:
        text = request.text.strip() or "It is settled for me."
        return await self._say(self._disputes.find(request.dispute), "settle", text)

    async def withdraw(self, request: Say) -> dict[str, Any]:
        text = request.text.strip() or "I drop it."
        return await self._say(self._disputes.find(request.dispute), "withdraw", text)

    async def mediator(self, request: Mediator) -> dict[str, Any]:
        dispute = self._disputes.find(request.dispute)
        mesh = self._mesh(dispute, request.mesh)
        if mesh in dispute.parties:
            raise NodeError("a party of the dispute cannot mediate in it")
        if self._peers.me not in dispute.parties:
            raise NodeError("the parties name a mediator, and nobody else")
        would = "I would have" if request.consent else "I would no longer have"
        text = request.text.strip() or f"{would} {mesh} mediate."
        more = {"mediator": mesh, **({} if request.consent else {"consent": False})}
        return await self._say(dispute, "respond", text, **more)

    async def mediate(self, request: Of) -> dict[str, Any]:
        wanted = request.dispute.strip().lower()
        told = [one for one in self._disputes.offered() if not one.ours and _is_named(one, wanted)]
        if not told:
            raise NodeError(f"nobody asks you to mediate in {request.dispute[:40]!a}; see: mesh dispute list")
        for one in told:
            await self._disputes.mediate(one)
        return self._telling.offered(told[0])

    async def show(self, request: Of) -> dict[str, Any]:
        return self._telling.whole(self._disputes.find(request.dispute))

    async def list(self, _: Nothing) -> dict[str, Any]:
        halls = self._disputes.halls
        read = [one for basin in halls.parties if (one := halls.read(basin)) is not None]
        newest = sorted(read, key=lambda one: (one.state == State.OPEN, one.at_ms or 0))[-MAX_LISTED:]
        offered = [one for one in self._disputes.offered() if one.basin not in halls.parties]
        return {
            "disputes": fitting(self._telling.short(one) for one in reversed(newest)),
            "offered": fitting(self._telling.offered(one) for one in offered),
        }

    async def _say(self, dispute: Dispute, kind: str, text: str, *refs: ActId, **more: Any) -> dict[str, Any]:  # noqa: ANN401 - a body
        act = await self._disputes.say(dispute, kind, refs, {"text": text, **more})
        return self._told(dispute.basin) | {"said": short(act.id)}

    def _told(self, basin: str) -> dict[str, Any]:
        dispute = self._disputes.halls.read(basin)
        return {} if dispute is None else self._telling.short(dispute)

    def _commitment(self, name: str) -> tuple[Dispute, ActId, Commitment]:
        dispute, act = self._disputes.find_commitment(name)
        return dispute, act, next(one for one in dispute.commitments if one.id == act)

    def _mesh(self, dispute: Dispute, name: str) -> MeshId:
        """The mesh of this name or id; of those that were named before, also by its fingerprint. Raises NodeError."""
        named = [mesh for mesh in dispute.named if fingerprint(mesh) == name.removeprefix("~")]
        if len(named) > 1:
            raise NodeError(f"several meshes that were named begin with {name}; write the whole id of the one you mean")
        if named:
            return named[0]
        try:
            decode_public(name, KeyKind.MESH)
        except BadKey:
            return self._peers.find(name).mesh
        return MeshId(name)


def _said(text: str) -> str:
    if not text.strip():
        raise NodeError("there is nothing to say; write it behind the name, in quotes")
    return text.strip()


def _is_named(one: Offered, wanted: str) -> bool:
    return bool(wanted) and (one.basin == wanted or one.basin.partition("-")[2].startswith(wanted))
