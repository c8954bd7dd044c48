"""Erasing: what is still to be taken out of the stream, and out of the database's own leftovers, after a redaction.

The list is a table, so a crash or a server that is away only delays it. A message of the stream is overwritten on the
server's disk. What shared its frame is said again first, with the husk in its place: whoever rebuilds a node from the
stream must miss neither an act nor a number, and ids keep everybody else from hearing it twice.
"""

import asyncio
import contextlib
from typing import Final

import structlog

from mesh.bus.base import Bus, Stored
from mesh.clock import Clock
from mesh.errors import BusFull, BusRefused, BusUnavailable
from mesh.forgetting import DATABASE, Forgetting, Own
from mesh.store import Store
from protocol.acts import Act
from protocol.address import Subject, parse_subject
from protocol.errors import ProtocolError
from protocol.frame import EPHEMERAL, encode_frame, frame_id, reread_frame
from protocol.husk import hollow
from protocol.keys import NodeId

RETRY_S: Final = 2.0  # between two attempts while the server is away, or another process reads the database

log = structlog.get_logger(__name__)


class Eraser:
    """Works off the list of what is to be erased."""

    def __init__(self, bus: Bus, store: Store, clock: Clock, forgetting: Forgetting) -> None:
        self._bus, self._store, self._clock, self._forgetting = bus, store, clock, forgetting
        self._refused: set[int] = set()

    def waiting(self) -> int:
        """How many erasures are still to be done, those left aside that the server has refused."""
        return len({seq for (seq,) in self._store.rows("SELECT seq FROM erasures")} - self._refused)

    async def run(self) -> None:
        """Erase for ever. Raises StoreFailed."""
        while True:
            self._forgetting.due.clear()
            if await self._all():
                await self._forgetting.due.wait()
            else:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(RETRY_S):
                        await self._forgetting.due.wait()

    async def _all(self) -> bool:
        """Erase all that is due; returns whether nothing is left that another attempt could do."""
        for (seq,) in self._store.rows("SELECT seq FROM erasures ORDER BY seq"):
            if seq in self._refused:
                continue
            try:
                done = self._store.scrub() if seq == DATABASE else await self._erase(seq)
            except (BusUnavailable, BusFull):
                return False
            except BusRefused as error:
                if not self._refused:
                    log.warning("what was taken back stays in the stream until the next start", reason=str(error))
                self._refused.add(seq)
                continue
            if not done:
                return False
            self._store.execute("DELETE FROM erasures WHERE seq = ?", (seq,))
        return True

    async def _erase(self, seq: int) -> bool:
        """Erase one message of the stream, if it holds what is gone."""
        for message in await self._bus.read(seq, seq):
            ids = self._gone(message)
            if ids:
                again = repeated(message, ids, self._forgetting.own, self._clock())
                if again is not None:
                    subject, data = again
                    await self._bus.publish(subject, data, frame_id(data))
                await self._bus.erase(seq)
        return True

    def _gone(self, message: Stored) -> set[bytes]:
        """The acts in a message that have been forgotten and still have their words in it."""
        try:
            acts = reread_frame(message.data).acts
        except ProtocolError:  # never kept, so nothing of it was ever taken back
            return set()
        marks = ",".join("?" * len(acts))
        sql = f"SELECT id FROM forgotten WHERE mesh = ? AND id IN ({marks})"  # noqa: S608 - question marks only
        rows = self._store.rows(sql, [parse_subject(message.subject).mesh, *(act.id for act in acts)])
        ids = {identity for (identity,) in rows}
        return ids if hollow(message.data, lambda act: act.id in ids, None) is not message.data else set()


def repeated(message: Stored, gone: set[bytes], own: Own | None, now_ms: int) -> tuple[str, bytes] | None:
    """What is to be said again when a message is erased: subject and frame; None for what others have said.

    A frame of this node keeps its number. A frame that another node of the mesh signed, or this one with an earlier
    key, is said again by this node, outside the count. `message` must have been checked before.
    """
    subject = parse_subject(message.subject)
    if own is None or subject.mesh != own.mesh:
        return None

    def is_gone(act: Act) -> bool:
        return act.id in gone

    data = hollow(message.data, is_gone, own.signer)
    node = NodeId(own.signer.public)
    if subject.node == node:
        return message.subject, data
    frame = reread_frame(data)
    data = encode_frame(own.signer, EPHEMERAL, now_ms, frame.basin, frame.acts)
    return str(Subject(True, frame.basin, own.mesh, node)), data
