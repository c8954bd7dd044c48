"""Receipts at work: given for what peers took back, once it is erased, and kept for what was taken back here.

A redaction crosses a link as any act, and is honoured when it is heard (mesh.forgetting); the stream and the leftovers
of the database are erased after that (mesh.erasing). A receipt is signed when nothing is left to be erased, and is said
over every new link until the author's node has it. A part of the node (nodes.peers.parts).
"""

import asyncio
from collections.abc import Iterable, Sequence
from typing import Annotated, Final

import msgspec
import structlog

from mesh.entries import Entry, find
from mesh.errors import MeshError
from mesh.links.messages import BadMessage
from nodes.node import Node
from nodes.peers.peers import Peers
from nodes.peers.tables import Peer
from nodes.receipts.tables import Forgot, Owed, Tables
from protocol.acts import ActId, Id
from protocol.crossing import sent_basins
from protocol.document import MAX_DOCUMENT
from protocol.errors import BadDocument
from protocol.frame import MAX_ACTS
from protocol.keys import MeshId
from protocol.receipt import Forgotten, read_forgotten, sign_forgotten

BATCH: Final = 64  # receipts in one message; each has some 500 bytes
BATCH_BYTES: Final = 50_000  # of them, in one message that holds 60,000
LOOK_S: Final = 0.2  # between two looks whether all is erased: it is, within milliseconds, unless the server is away

log = structlog.get_logger(__name__)


class Given(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag="given"):
    """Receipts, as signed."""

    receipts: Annotated[list[Annotated[bytes, msgspec.Meta(max_length=MAX_DOCUMENT)]], msgspec.Meta(max_length=BATCH)]


class Taken(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag="taken"):
    """The receipts for these redactions are kept; they need not be said again."""

    redactions: Annotated[list[Id], msgspec.Meta(max_length=BATCH)]


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(Given | Taken).decode


class Receipts:
    """All receipts of one node, by it and to it."""

    topic = "receipt"

    def __init__(self, node: Node, peers: Peers) -> None:
        self._node, self._peers = node, peers
        self._store = node.ground.store
        self._tables = Tables(self._store)
        self._due = asyncio.Event()
        peers.join(self, self.run)

    # A part's

    def begin(self, peer: MeshId) -> Iterable[bytes]:
        """Say the receipts that the peer has not taken yet."""
        return _messages(self._tables.made(peer))

    def told(self, peer: MeshId, data: bytes) -> None:
        """A peer gives receipts, or has taken ours. Raises BadMessage."""
        try:
            message: Given | Taken = _decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            raise BadMessage("what a peer says about forgetting cannot be read") from None
        match message:
            case Given():
                self._given(peer, message)
            case Taken():
                with self._store.transaction():
                    for redaction in message.redactions:
                        self._tables.taken(peer, redaction)

    def _given(self, peer: MeshId, message: Given) -> None:
        taken, problem = list[ActId](), None
        for data in message.receipts:
            try:
                taken.append(self._keep(peer, data))
            except (BadDocument, BadMessage) as error:
                problem = error
        if taken:
            self._peers.tell(peer, self.topic, _encode(Taken(taken)))
        if problem is not None:
            raise BadMessage(f"a receipt does not count: {problem}")

    def _keep(self, peer: MeshId, data: bytes) -> ActId:
        """Verify and keep a receipt. Raises BadDocument, BadMessage."""
        receipt = read_forgotten(data, self._peers.me, self._peers.now_ms())
        if not self._peers.is_by(peer, receipt):
            raise BadMessage("it is not the peer's own, or of a node that its mesh has revoked")
        ours = self._tables.forgot(receipt.redaction)
        if ours is None or ours.target != receipt.target:
            raise BadMessage("nothing of that kind was taken back here")
        with self._store.transaction():
            self._tables.confirm(receipt.redaction, peer, data, held=receipt.held, at_ms=receipt.made_ms)
        return receipt.redaction

    def hear(self, entries: Sequence[Entry]) -> None:
        """Note what is taken back; it is honoured already, in the same transaction."""
        for entry in entries:
            if entry.act.kind != "redact" or not entry.act.refs:
                continue
            target = find(self._store, entry.act.refs[0], entry.mesh) or find(self._store, entry.act.refs[0])
            if target is not None and (target.mesh, target.act.author) != (entry.mesh, entry.act.author):
                continue  # who is not the author takes nothing back
            if entry.mesh == self._peers.me and target is not None:
                self._took_back(entry, target)
            elif entry.mesh != self._peers.me and entry.mesh in self._peers.peers:
                self._tables.owe(Owed(entry.act.id, entry.mesh, entry.act.refs[0], target is not None))

    def proceed(self) -> None:
        """See to what is owed."""
        self._due.set()

    def _took_back(self, entry: Entry, target: Entry) -> None:
        """Note who may have had what we take back, while it is still known."""
        act = entry.act
        self._tables.put(Forgot(act.id, target.act.id, target.basin, act.author, act.at_ms))
        for peer in self._peers.peers.values():
            sent = self._sent(peer, target)
            if sent is not None:
                self._tables.put_peer(act.id, peer.mesh, sent=sent)

    def _sent(self, peer: Peer, target: Entry) -> bool | None:
        """Whether a peer may have had an act; None: it is of no concern to it."""
        since_ms = sent_basins(peer.relationship).get(target.basin)
        sent = self._tables.may_have(peer.mesh, target.basin, target.n // MAX_ACTS, target.act.at_ms)
        if since_ms is None or sent:
            return sent
        on_its_way = peer.mesh in self._peers.links.sessions  # and not acknowledged yet
        return on_its_way and since_ms <= target.act.at_ms

    async def run(self) -> None:
        """Make receipts when all is erased, until cancelled."""
        while True:
            self._due.clear()
            if owed := self._tables.unsigned():
                await self._erased()
                self._sign(owed)
            await self._due.wait()

    async def _erased(self) -> None:
        """Wait until nothing of what was taken back until now stands in the stream or in the database's leftovers."""
        mark = None
        while mark is None or self._node.ledger.cursor < mark or self._erasing():
            try:
                mark = await self._node.ground.bus.last_seq() if mark is None else mark
            except MeshError as error:
                log.debug("the stream is away", reason=str(error))
            if mark is None or self._node.ledger.cursor < mark or self._erasing():
                await asyncio.sleep(LOOK_S)

    def _erasing(self) -> bool:
        """Also what the server has refused to erase counts: a receipt must be true."""
        return self._store.one("SELECT 1 FROM erasures LIMIT 1") is not None

    def _sign(self, owed: Sequence[Owed]) -> None:
        who, made = self._peers.who, dict[MeshId, list[bytes]]()
        with self._store.transaction():
            for one in owed:
                receipt = Forgotten(
                    mesh=self._peers.me,
                    certificate=who.certificate,
                    to=one.mesh,
                    made_ms=self._peers.now_ms(),
                    target=ActId(one.target),
                    redaction=ActId(one.redaction),
                    held=one.held,
                )
                try:
                    data = sign_forgotten(who.signer, receipt)
                except ValueError as error:  # our own certificate has ended: the next start has another
                    log.warning("no receipt can be given", reason=str(error))
                    return
                self._tables.sign(one, data)
                made.setdefault(one.mesh, []).append(data)
        for mesh, receipts in made.items():
            for message in _messages(receipts):
                self._peers.tell(mesh, self.topic, message)


def _messages(receipts: Sequence[bytes]) -> Iterable[bytes]:
    """Receipts in messages that hold as many as fit."""
    part, size = list[bytes](), 0
    for receipt in receipts:
        if part and (len(part) == BATCH or size + len(receipt) > BATCH_BYTES):
            yield _encode(Given(part))
            part, size = [], 0
        part.append(receipt)
        size += len(receipt)
    if part:
        yield _encode(Given(part))
