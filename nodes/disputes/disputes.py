"""Disputes as a companion of the node: what its person says in them, and what the node does by itself.

By itself it hears a complaint, up to a bound: that needs nobody's consent. And when both parties have named the same
mediator, it shares the dispute with that mesh. Both are statements of the relationship, said once; the person may undo
them.
"""

import asyncio
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import structlog

from mesh.entries import Entry, find
from mesh.errors import MeshError
from mesh.words import plain
from nodes.companion import Alone
from nodes.disputes.halls import MAX_SAID, Halls
from nodes.errors import NodeError
from nodes.node import Node
from nodes.peers.gates import is_heard
from nodes.peers.peers import AGAIN_S, HEARD_S, Peers
from nodes.peers.statements import terms
from nodes.peers.tables import Peer
from protocol.acts import ID_BYTES, RANDOM_BYTES, Act, ActId, new_id
from protocol.dispute import Dispute, concerns, dispute_basin, is_dispute, short
from protocol.errors import BadLink
from protocol.link import State as Linked
from protocol.statement import STATEMENTS, Changes

MAX_OPEN: Final = 8  # disputes that one peer has raised and that are open: more is no complaint but a flood
MAX_TAKEN: Final = 64  # disputes that the node ever hears of one peer by itself
BUDGET_OF: Final = "dispute"  # the basin in mesh.yaml whose settings say what a dispute's chains begin with
RAISED: Final = "You may read and write {}: it is a dispute that I raise with you."
REOPENED: Final = "You may read and write {}: we have a dispute there."
MEDIATE: Final = "You may read and write {}: both of us would have you mediate in a dispute."
ENDED: Final = "{} is no longer yours to read: not both of us would have you mediate any more."

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Offered:
    """A dispute's basin that a peer shares and this node does not hear; `ours`: the peer has it with us."""

    basin: str
    peer: Peer
    ours: bool


class Disputes(Alone):
    """All disputes of one node."""

    def __init__(self, node: Node, peers: Peers) -> None:
        self.node, self.peers, self._store = node, peers, node.ground.store
        self.me = node.identity.mesh
        self.halls = Halls(self.me, self._store, node.ground.clock, self._is_em)
        peers.gates.disputes = self.halls.bars
        self._stirred = False
        self._wake = asyncio.Event()
        self._heard = asyncio.Event()

    # A companion's part

    def hear(self, entries: Sequence[Entry]) -> None:
        """Take in what is said in disputes."""
        stated = any(entry.act.kind in STATEMENTS for entry in entries)
        self._stirred |= self.halls.hear(entries) or stated

    def proceed(self) -> None:
        """Do what follows from it."""
        if self._stirred:
            self._stirred = False
            self._wake.set()
            self._heard.set()

    def listens(self, em: str, basin: str) -> bool | None:  # noqa: ARG002 - a Companion's
        """No em has a place in a dispute."""
        return False if is_dispute(basin) else None

    async def run(self) -> None:
        """Hear complaints and invite mediators until cancelled."""
        while True:
            self._wake.clear()
            try:
                for peer in list(self.peers.peers.values()):
                    if is_heard(peer):
                        await self._attend(peer)
            except MeshError as error:
                log.info("a dispute waits", reason=plain(str(error)))
                await asyncio.sleep(AGAIN_S)
                continue
            await self._wake.wait()

    async def _attend(self, peer: Peer) -> None:
        """Do by itself what is to be done with a peer."""
        while (basin := self._to_take(peer)) is not None:
            await self._step(peer, basin, "link", terms(f"I hear you in {basin}.", takes={basin: "write"}))
        for basin, parties in list(self.halls.parties.items()):
            is_given, is_ours = basin in peer.relationship.mine.terms.gives, self.me in parties
            wanted = is_ours and peer.mesh in self.halls.members(basin) and peer.mesh not in parties
            if wanted and not is_given and not self._stepped(peer, basin):
                text = MEDIATE.format(basin)
                await self._step(peer, basin, "share", Changes(text=text, basin=basin, may="write"))
            elif is_given and is_ours and not wanted and peer.mesh not in parties:
                await self._step(peer, basin, "unshare", Changes(text=ENDED.format(basin), basin=basin))

    def _to_take(self, peer: Peer) -> str | None:
        """A dispute's basin that a peer shares and that is to be heard without asking the person."""
        offered = self._offered(peer)
        has_room = bool(offered) and self._has_room(peer)
        return next((one.basin for one in offered if self._is_to_take(one, has_room=has_room)), None)

    def _is_to_take(self, offered: Offered, *, has_room: bool) -> bool:
        peer, basin, parties = offered.peer, offered.basin, self.halls.parties.get(offered.basin)
        if self._stepped(peer, basin):
            return False
        if not offered.ours:  # we mediate, asked by one of them: then both are heard
            return parties is not None and peer.mesh in parties and self._hears(basin)
        return has_room or (parties is not None and parties.raiser == self.me)

    def _has_room(self, peer: Peer) -> bool:
        """Whether another complaint of a peer is heard: so many are heard here, and so many of them are not over."""
        heard = [basin for basin in peer.relationship.mine.terms.takes if concerns(basin, self.me, peer.mesh)]
        theirs = [one for one in heard if one not in self.halls.parties or self.halls.parties[one].raiser != self.me]
        still = sum(self.halls.is_open(basin) for basin in theirs)
        return still < MAX_OPEN and len(self.halls.tables.taken(peer.mesh)) < MAX_TAKEN

    def _hears(self, basin: str) -> bool:
        return any(basin in peer.relationship.mine.terms.takes for peer in self.peers.peers.values())

    def _stepped(self, peer: Peer, basin: str) -> bool:
        return self.halls.tables.took(basin, peer.mesh, peer.relationship.round)

    async def _step(self, peer: Peer, basin: str, kind: str, changes: Changes) -> None:
        """Say a statement that is the node's own doing, once. Raises MeshError."""
        try:
            await self.peers.say(peer, kind, changes)
        except BadLink as error:
            log.warning("a dispute cannot be shared", peer=peer.petname, reason=plain(str(error)))
        with self._store.transaction():
            if kind == "unshare":
                self.halls.tables.forget(basin, peer.mesh)
            else:
                self.halls.tables.take(basin, peer.mesh, peer.relationship.round)

    # What the person does

    async def raise_(self, peer: Peer, text: str, about: Sequence[ActId], wish: str) -> str:
        """Raise a dispute with a peer; returns its basin when it is raised here. Raises NodeError, MeshError."""
        self._check_link(peer)
        mine = [basin for basin, parties in self.halls.parties.items() if parties == (self.me, peer.mesh)]
        if sum(self.halls.is_open(basin) for basin in mine) >= MAX_OPEN:
            raise NodeError(f"{MAX_OPEN} disputes that you raised with {peer.petname} are open; settle or withdraw one")
        now = self.node.ground.clock()
        identity = new_id(now, secrets.token_bytes(RANDOM_BYTES))
        basin = dispute_basin(self.me, peer.mesh, identity)
        body = {"text": text, "mesh": peer.mesh, **({"wish": wish} if wish else {})}
        drafted = self.node.root(BUDGET_OF, self.node.config.human, list(about), "raise", body)
        await self._say(basin, msgspec.structs.replace(drafted, id=identity, root=identity))
        # After it: cut off in between, it stands here for the person to see, and whatever they say next shares it.
        await self.peers.say(peer, "share", Changes(text=RAISED.format(basin), basin=basin, may="write"))
        return basin

    async def say(self, dispute: Dispute, kind: str, refs: Sequence[ActId], body: dict[str, Any]) -> Act:
        """Say something in a dispute; returns when it is heard here. Raises NodeError, MeshError."""
        refs = self.check(dispute, kind, refs)
        await self._reach(dispute)
        act = self.node.root(BUDGET_OF, self.node.config.human, refs, kind, body)
        await self._say(dispute.basin, act)
        return act

    def check(self, dispute: Dispute, kind: str, refs: Sequence[ActId]) -> list[ActId]:
        """What an act in a dispute refers to, with the dispute first. Raises NodeError where it would not count."""
        if self.me not in dispute.members or dispute.raised is None:
            raise NodeError(f"you are not a party of the dispute {dispute.id}")
        if self.me not in dispute.parties and kind not in {"respond", "remedy"}:
            raise NodeError("a mediator says respond or remedy; what comes of a dispute is the parties' own")
        if kind == "withdraw" and self.me != dispute.parties.raiser:
            raise NodeError("only who raised a dispute withdraws it; you may settle it")
        if kind == "withdraw" and dispute.withdrawn:
            raise NodeError("you have withdrawn it before")
        if kind == "settle" and not refs and self.me in dispute.willing:
            raise NodeError("you have settled it before; it is settled when both have")
        if self.halls.said(dispute.basin) >= MAX_SAID:
            raise NodeError(f"you have said {MAX_SAID} things in this dispute, which is all that one may say")
        return [dispute.raised, *refs]

    async def mediate(self, offered: Offered) -> None:
        """Agree to mediate: hear a dispute of others. Raises MeshError."""
        basin = offered.basin
        await self.peers.say(offered.peer, "link", terms(f"I mediate in {basin}.", takes={basin: "write"}))

    def offered(self) -> list[Offered]:
        """What peers share of disputes and is not heard here."""
        return [one for peer in self.peers.peers.values() if is_heard(peer) for one in self._offered(peer)]

    def _offered(self, peer: Peer) -> list[Offered]:
        seen = peer.relationship
        return [
            Offered(basin, peer, concerns(basin, self.me, peer.mesh))
            for basin, share in seen.theirs.terms.gives.items()
            if is_dispute(basin) and share.may == "write" and basin not in seen.mine.terms.takes
        ]

    def find(self, name: str) -> Dispute:
        """A dispute by its eight letters, or some of the first, or by its basin. Raises NodeError."""
        wanted = name.strip().lower()
        basins = [basin for basin in self.halls.parties if _may_be_named(basin, wanted)]
        found = [one for basin in basins if (one := self.halls.read(basin)) and _is_named(one, wanted)]
        if len(found) == 1:
            return found[0]
        raise NodeError(
            f"{plain(name, 40)!a} could be {', '.join(one.id for one in found)}; write more of it"
            if found
            else f"there is no dispute {plain(name, 40)!a} here; see: mesh dispute list"
        )

    def find_commitment(self, name: str) -> tuple[Dispute, ActId]:
        """A commitment by its eight letters, or some of the first. Raises NodeError."""
        wanted = name.strip().lower()
        read = [one for basin in self.halls.parties if (one := self.halls.read(basin))]
        found = [
            (one, made.id) for one in read for made in one.commitments if wanted and short(made.id).startswith(wanted)
        ]
        if len(found) == 1:
            return found[0]
        raise NodeError(
            f"{plain(name, 40)!a} could be {', '.join(short(made) for _, made in found)}; write more of it"
            if found
            else f"there is no commitment {plain(name, 40)!a} here; mesh dispute show has them"
        )

    async def _reach(self, dispute: Dispute) -> None:
        """See to it that what is said in a dispute is heard by the other side. Raises NodeError, MeshError."""
        if self.me not in dispute.parties:
            if not self._hears(dispute.basin):
                raise NodeError("you do not hear that dispute any more; see: mesh dispute list")
            return
        peer = self._other(dispute)
        if not self._is_shared(peer, dispute.basin):
            text = REOPENED.format(dispute.basin)
            await self.peers.say(peer, "share", Changes(text=text, basin=dispute.basin, may="write"))

    def check_reach(self, dispute: Dispute) -> None:
        """Raise NodeError unless what is said in a dispute is heard by the other side without further ado."""
        is_heard_there = (
            self._is_shared(self._other(dispute), dispute.basin)
            if self.me in dispute.parties
            else self._hears(dispute.basin)
        )
        if not is_heard_there:
            raise NodeError("the other side does not hear this any more; say it once with: mesh dispute")

    def _other(self, dispute: Dispute) -> Peer:
        """The other side, with which there is a link. Raises NodeError."""
        raiser, other = dispute.parties
        peer = self.peers.peers.get(other if self.me == raiser else raiser)
        if peer is None:
            raise NodeError("there is no link with the other side any more")
        self._check_link(peer)
        return peer

    def _is_shared(self, peer: Peer, basin: str) -> bool:
        seen = peer.relationship
        return basin in seen.mine.terms.gives or (basin in seen.theirs.terms.gives and basin in seen.mine.terms.takes)

    def _check_link(self, peer: Peer) -> None:
        state = peer.relationship.state
        if state not in {Linked.LINKED, Linked.PAUSED}:
            how = "has ended" if state == Linked.LEFT else f"is {state.value}"
            raise NodeError(f"the link with {peer.petname} {how}: they would not hear it; invite them to go on")

    async def _say(self, basin: str, act: Act) -> None:
        await self.node.outbox.say(basin, act)
        try:
            async with asyncio.timeout(HEARD_S):
                while find(self._store, act.id) is None:
                    self._heard.clear()
                    await self._heard.wait()
        except TimeoutError:
            raise MeshError("the node does not hear itself; what was said holds when it does") from None

    def _is_em(self, author: str) -> bool:
        return author in self.node.runtime.ems or self.node.runtime.turns.spoke(author)


def _may_be_named(basin: str, wanted: str) -> bool:
    """Whether a dispute of this basin need be read to see if it is the one: to read all of them takes its time."""
    return wanted == basin or len(wanted) == 2 * ID_BYTES or basin.partition("-")[2].startswith(wanted)


def _is_named(dispute: Dispute, wanted: str) -> bool:
    return bool(wanted) and (dispute.id.startswith(wanted) or wanted in {dispute.basin, (dispute.raised or b"").hex()})
