"""The outbox: what this node is about to say, kept until the stream has it.

Group commit: what waits for a basin goes in one frame; when nothing waits, one act goes at once. A frame that the
server has not acknowledged is sent again, byte for byte, until it has.
"""

import asyncio
from typing import Final

import structlog

from mesh.bus.base import Bus
from mesh.clock import Clock
from mesh.errors import BusFull, BusUnavailable
from mesh.ledger import decode_act, encode_act
from mesh.store import Store
from protocol.acts import Act
from protocol.address import Subject
from protocol.frame import FLUSH_BYTES, MAX_ACTS, encode_frame, frame_id
from protocol.keys import MeshId, NodeId, Signer

RETRY_S: Final = 0.2  # between attempts while the server is away; the client reconnects by itself
MAX_WAITING: Final = 100_000  # acts; beyond it new ones are refused, so that a dead server cannot fill the disk

log = structlog.get_logger(__name__)


class Outbox:
    """Frames, signs and publishes acts, in order per basin."""

    def __init__(self, bus: Bus, store: Store, signer: Signer, mesh: MeshId, clock: Clock) -> None:
        """`sequences` continue where the ledger's marks for this node end: start `run` only when that has caught up."""
        self._bus, self._store, self._signer, self._mesh, self._clock = bus, store, signer, mesh, clock
        self._sequences: dict[str, int] = {}
        self._wake = asyncio.Event()
        self._sent: dict[bytes, asyncio.Event] = {}

    def put(self, basin: str, act: Act) -> None:
        """Keep an act for sending. Call it within a transaction, and `wake` after it. The same id is kept once."""
        self._store.insert(
            "INSERT OR IGNORE INTO outbox (id, basin, act) VALUES (?, ?, ?)", (act.id, basin, encode_act(act))
        )

    def wake(self) -> None:
        """Say that a transaction with `put` in it has committed."""
        self._wake.set()

    def done(self, acts: list[Act]) -> None:
        """Forget acts that the ledger has heard. Call it within a transaction."""
        self._store.many("DELETE FROM outbox WHERE id = ?", [(act.id,) for act in acts])

    def waiting(self) -> int:
        """How many acts the stream has not acknowledged yet."""
        return self._store.one("SELECT count(*) FROM outbox")[0]

    def acts(self) -> list[Act]:
        """What the stream has not acknowledged yet, in order."""
        return [decode_act(row[0]) for row in self._store.rows("SELECT act FROM outbox ORDER BY n")]

    async def say(self, basin: str, act: Act) -> None:
        """Put one act and wait until the stream has it. Raises BusFull when too much is waiting already."""
        if self.waiting() >= MAX_WAITING:
            raise BusFull(f"{MAX_WAITING} acts wait for a server that is away; nothing more is taken")
        sent = self._sent.setdefault(act.id, asyncio.Event())
        with self._store.transaction():
            self.put(basin, act)
        self.wake()
        try:
            await sent.wait()
        finally:
            self._sent.pop(act.id, None)

    async def run(self, sequences: dict[str, int]) -> None:
        """Publish for ever; `sequences` holds the last sequence this node used in each basin.

        Raises BusFull or BusRefused (within an ExceptionGroup): a person must do something, and nothing is lost.
        """
        self._sequences = dict(sequences)
        while True:
            self._wake.clear()
            basins = [row[0] for row in self._store.rows("SELECT DISTINCT basin FROM outbox")]
            async with asyncio.TaskGroup() as group:
                for basin in basins:
                    group.create_task(self._flush(basin), name=f"outbox {basin}")
            if not basins:
                await self._wake.wait()

    async def _flush(self, basin: str) -> None:
        """One frame of what waits for a basin."""
        rows = self._store.rows("SELECT act FROM outbox WHERE basin = ? ORDER BY n LIMIT ?", (basin, MAX_ACTS))
        acts: list[Act] = []
        size = 0
        for (data,) in rows:
            size += len(data)
            if acts and size > FLUSH_BYTES:
                break
            acts.append(decode_act(data))
        await self._publish(basin, acts)
        with self._store.transaction():
            self.done(acts)
        for act in acts:
            if waiting := self._sent.get(act.id):
                waiting.set()

    async def _publish(self, basin: str, acts: list[Act]) -> None:
        sequence = self._sequences.get(basin, 0) + 1
        data = encode_frame(self._signer, sequence, self._clock(), basin, acts)
        subject = str(Subject(True, basin, self._mesh, NodeId(self._signer.public)))
        identity = frame_id(data)
        told = False
        while True:
            try:
                await self._bus.publish(subject, data, identity)
            except BusUnavailable as error:
                if not told:
                    log.warning("the bus is away; what was said is kept and sent when it is back", reason=str(error))
                told = True
                await asyncio.sleep(RETRY_S)
                continue
            self._sequences[basin] = sequence
            return
