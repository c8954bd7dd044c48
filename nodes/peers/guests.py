"""Invitations at work: what the person here gives to others, and what others gave to them.

Whoever shows an invitation's secret is told the offer behind it, signed. A person reads it; if they agree, their node
comes again with an offer of its own, which uses the invitation up, and the inviter says `invite` to that mesh.
"""

import asyncio
import secrets
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from typing import Final, Protocol

from mesh.clock import Clock
from mesh.errors import MeshError
from mesh.links.channel import NotAdmitted, Proved, Sealed, Self
from mesh.links.knocking import knocking
from mesh.links.messages import BadMessage, Kept, Note, Offered, decode, encode
from mesh.links.wire import WireBroken
from mesh.words import plain
from nodes.errors import NodeError
from nodes.peers.tables import Given, Peer, Tables
from nodes.peers.ways import Ways
from protocol.errors import BadInvitation, BadLink
from protocol.invitation import SECRET_BYTES, Invitation
from protocol.keys import MeshId, NodeId
from protocol.link import Relationship, Standing, State
from protocol.offer import Offer, read_offer, sign_offer
from protocol.statement import Changes, May, Trust, check_shareable
from protocol.vocabulary import Digest

GREET_S: Final = 10.0  # for a whole visit: the persons decide between two visits, not within one
VISIT_S: Final = 18.0  # for a visit of ours: the other node says its person's `invite` before it answers
ROOM_VISIT_S: Final = (
    100.0  # the same in a room: homeservers make accounts wait five seconds before each of its packets
)
SEEN: Final = 16  # offers that were looked at lately, so that accepting one is a single visit
MAX_WAITING: Final = 1_000  # invitations that nobody has used yet
USED_UP: Final = "the invitation is unknown there, used up, or has expired; ask for a new one"


@dataclass(frozen=True, slots=True)
class Here:
    """Who we are to others: keys, the name we would like to be called, the digest of our words."""

    who: Self
    name: str
    vocabulary: Digest
    clock: Clock


@dataclass(frozen=True, slots=True)
class Wish:
    """What an invitation, or the answer to one, is to say. `petname`: what to call the other; None: as it wishes."""

    gives: Mapping[str, May]
    takes: Mapping[str, May]
    trust: Trust
    petname: str | None


class House(Protocol):
    """The peers, as far as guests become some of them (nodes.peers.peers)."""

    me: MeshId
    peers: dict[MeshId, Peer]

    def transaction(self) -> AbstractContextManager[None]:
        """One of the node's store."""
        ...

    def stir(self) -> None:
        """Look again at where guests are waited for."""
        ...

    def relationship(self, mesh: MeshId) -> Relationship:
        """How the two stand."""
        ...

    def petname(self, wished: str, mesh: MeshId) -> str:
        """A name that nobody else has here."""
        ...

    def meet(self, peer: Peer) -> None:
        """Keep a new peer, or what has changed about one."""
        ...

    async def say(self, peer: Peer, kind: str, changes: Changes) -> None:
        """Say the person's next statement. Raises BadLink, MeshError."""
        ...


class Guests:
    """Both ends of an invitation."""

    def __init__(self, here: Here, tables: Tables, peers: House, ways: Ways) -> None:
        self._here, self._tables, self._peers, self._ways = here, tables, peers, ways
        self._seen: dict[NodeId, tuple[Offer, bytes]] = {}

    # Our own invitations

    def invite(self, wish: Wish, addresses: tuple[str, ...], expires_s: int, room: str | None = None) -> Invitation:
        """Make an invitation, and keep what answers it; `room`: one that we have entered, where the guest is met too.

        Raises ValueError, BadAddress, NodeError.
        """
        now_s = self._here.clock() // 1000
        if self._tables.waiting(now_s) >= MAX_WAITING:
            raise NodeError(f"{MAX_WAITING} invitations wait to be accepted; let some of them expire first")
        invitation = Invitation(self._peers.me, secrets.token_bytes(SECRET_BYTES), expires_s, addresses)
        guest = NodeId(invitation.guest().public)
        offer = self._signed(guest, wish, expires_s)
        with self._peers.transaction():
            self._tables.give(Given(guest, wish.petname, wish.trust, offer, expires_s), now_s)
            self._ways.host_in(guest, room)
        self._peers.stir()
        return invitation

    def _signed(self, guest: NodeId, wish: Wish, expires_s: int) -> bytes:
        for basin in (*wish.gives, *wish.takes):
            check_shareable(basin)
        here = self._here
        offer = Offer(
            self._peers.me,
            here.name,
            guest,
            here.who.certificate,
            dict(wish.gives),
            dict(wish.takes),
            expires_s,
            here.vocabulary,
        )
        return sign_offer(here.who.signer, offer)

    def admit(self, proved: Proved) -> str | None:
        """Why somebody who shows a secret is not let in, or None."""
        given = self._given(proved)
        if given is None or given.used_by not in (None, proved.mesh):
            return "it shows an invitation that is unknown here, used up, or has expired"
        return None

    def _given(self, proved: Proved) -> Given | None:
        if len(proved.secret) != SECRET_BYTES:
            return None
        given = self._tables.given(NodeId(Invitation(self._peers.me, proved.secret, 0).guest().public))
        return given if given is not None and self._here.clock() < given.expires_s * 1000 else None

    async def greet(self, wire: Sealed, proved: Proved) -> None:
        """Tell a guest the offer; if it answers with its own, invite its mesh. Raises WireBroken, BadMessage."""
        with suppress(TimeoutError):
            async with asyncio.timeout(max(GREET_S, wire.beat_s)):
                given = self._given(proved)
                if given is None:
                    return
                await wire.send(encode(Offered(given.offer)))
                answer = decode(await wire.receive())
                if not isinstance(answer, Offered):
                    raise BadMessage("a guest answered an offer with something else")
                problem = await self._answered(given, proved, answer.data)
                if problem is None:
                    with self._peers.transaction():
                        self._ways.met(proved.mesh, wire.shared, given.guest)
                    self._peers.stir()
                await wire.send(encode(Note(problem) if problem else Kept(1, 0)))

    async def _answered(self, given: Given, proved: Proved, data: bytes) -> str | None:
        """A guest's person has agreed; returns why nothing comes of it, or None."""
        now = self._here.clock()
        try:
            theirs = read_offer(data, given.guest, proved.mesh, now)
            ours = read_offer(given.offer, given.guest, self._peers.me, now)
        except BadInvitation as error:
            return str(error)
        held = self._tables.given(given.guest)  # two may have come at once
        if held is None or held.used_by not in (None, proved.mesh):
            return USED_UP
        seen = self._peers.relationship(proved.mesh)
        if seen.state in (State.LINKED, State.PAUSED):
            return "the two are linked already; whoever wants to begin anew says first: mesh peer leave"
        with self._peers.transaction():
            self._tables.use(given.guest, proved.mesh)
        known = self._peers.peers.get(proved.mesh)
        petname = self._peers.petname(given.petname or theirs.name, proved.mesh)
        peer = known or Peer(proved.mesh, petname, (), seen)
        self._peers.meet(peer)
        if seen.state == State.INVITED and seen.mine.standing != Standing.NOTHING and held.used_by == proved.mesh:
            return None  # it came again, since our answer was lost: the invitation is said
        kind = "link" if seen.state == State.INVITED and seen.theirs.standing == Standing.INVITED else "invite"
        text = "I invite you to link our meshes." if kind == "invite" else "We are linked."
        takes = dict[str, May | None](ours.takes)
        until = given.expires_s * 1000 if kind == "invite" else None
        try:
            await self._peers.say(
                peer, kind, Changes(text=text, gives=ours.gives, takes=takes, trust=given.trust, until_ms=until)
            )
        except (BadLink, MeshError) as error:
            return plain(str(error), 400)
        return None

    # Others' invitations

    async def look(self, invitation: Invitation, room: str | None = None) -> tuple[Offer, bytes]:
        """What is offered behind an invitation, also as signed; `room`: where the inviter waits as well.

        Raises NodeError, BadInvitation.
        """
        invitation.check(self._here.clock())
        if invitation.mesh == self._peers.me:
            raise NodeError("this is your own invitation; give it to somebody else")
        if self._peers.relationship(invitation.mesh).state in (State.LINKED, State.PAUSED):
            raise NodeError("you are linked with that mesh already; see: mesh peer list")
        found = (await self._visit(invitation, room, None))[:2]
        if len(self._seen) >= SEEN:
            self._seen.clear()
        self._seen[NodeId(invitation.guest().public)] = found
        return found

    async def seen(self, invitation: Invitation, room: str | None = None) -> tuple[Offer, bytes]:
        """What `look` found, once; looks where nobody has. Raises NodeError, BadInvitation."""
        return self._seen.pop(NodeId(invitation.guest().public), None) or await self.look(invitation, room)

    async def accept(self, invitation: Invitation, seen: bytes, wish: Wish, room: str | None = None) -> Peer:
        """Agree to the offer that the person has `seen`. Raises NodeError, BadInvitation, ValueError."""
        guest = NodeId(invitation.guest().public)
        answer = self._signed(guest, wish, invitation.expires_s)
        mesh = MeshId(invitation.mesh)
        offer, told, shared = await self._visit(invitation, room, (seen, answer))
        if told != seen:
            raise NodeError("they offer something else by now; look at it again")
        name = self._peers.petname(wish.petname or offer.name, mesh)
        takes = dict[str, May | None](wish.takes)
        accepted = Changes(text="We are linked.", gives=dict(wish.gives), takes=takes, trust=wish.trust)
        known = self._peers.peers.get(mesh)
        peer = known or Peer(mesh, name, (), self._peers.relationship(mesh))
        peer.addresses, peer.accepted = invitation.addresses, accepted
        with self._peers.transaction():
            self._ways.met(mesh, shared)
            if room is not None:
                self._ways.set_room(mesh, room)
        self._peers.meet(peer)
        return peer

    async def _visit(
        self, invitation: Invitation, room: str | None, answer: tuple[bytes, bytes] | None
    ) -> tuple[Offer, bytes, bytes]:
        """Show the secret and hear the offer; answer, if it is the one that the person has seen.

        Returns the offer, also as signed, and what the two ends of the wire share.
        """
        guest, mesh = NodeId(invitation.guest().public), MeshId(invitation.mesh)
        ways, visit_s = self._ways.to_inviter(invitation, room), VISIT_S if room is None else ROOM_VISIT_S
        try:
            async with asyncio.timeout(visit_s), knocking(ways, self._here.who, mesh, invitation.secret) as wire:
                try:
                    told = _offer(decode(await wire.receive()))
                except WireBroken:
                    raise NodeError(USED_UP) from None
                offer = read_offer(told, guest, mesh, self._here.clock())
                if answer is not None and told == answer[0]:
                    await wire.send(encode(Offered(answer[1])))
                    last = decode(await wire.receive())
                    if isinstance(last, Note):
                        raise NodeError(f"their node says: {plain(last.text)}")
                return offer, told, wire.shared
        except TimeoutError:
            raise NodeError("their node is too slow; try again") from None
        except (WireBroken, NotAdmitted, BadMessage) as error:
            raise NodeError(
                f"their node cannot be reached: {error}; is it running, and is that address yours to reach?"
            ) from None


def _offer(message: object) -> bytes:
    if not isinstance(message, Offered):
        raise BadMessage("whoever is there does not tell what is offered")
    return message.data
