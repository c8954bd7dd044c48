"""How far each node was heard in each basin, and what is missing of what it said."""

from collections import OrderedDict
from typing import Final

import structlog

from mesh.store import Store
from protocol.address import Subject
from protocol.frame import EPHEMERAL, Frame
from protocol.keys import MeshId, NodeId

RECENT: Final = 4_096  # frames whose numbers are remembered, to notice two nodes that count with one key

log = structlog.get_logger(__name__)


class Marks:
    """The highest sequence of every (node, basin), and the gaps below it. All but `of` within a transaction."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._recent: OrderedDict[tuple[int, str, int], bytes] = OrderedDict()  # the first act of recent frames
        self._rivals: set[int] = set()  # nodes that were told of
        self._origins: dict[tuple[str, str], int] = {
            (mesh, node): origin for origin, mesh, node in store.rows("SELECT origin, mesh, node FROM origins")
        }
        self._marks: dict[tuple[int, str], int] = {
            (origin, basin): sequence
            for origin, basin, sequence in store.rows("SELECT origin, basin, sequence FROM marks")
        }

    def of(self, mesh: MeshId, node: NodeId) -> dict[str, int]:
        """The highest frame sequence heard from a node, by basin."""
        origin = self._origins.get((mesh, node))
        return {basin: mark for (one, basin), mark in self._marks.items() if one == origin}

    def note(self, subject: Subject, frame: Frame) -> int:
        """Follow the sequence of a node: note what is missing, and what has come after all; gives the node's number."""
        origin = self._origin(subject)
        self._notice(origin, frame)
        mark = self._marks.get((origin, frame.basin), 0)
        if frame.sequence <= mark:
            self._close_gap(origin, frame.basin, frame.sequence)
            return origin
        if frame.sequence > mark + 1:
            missing = (mark + 1, frame.sequence - 1)
            log.warning("frames are missing", node=frame.node[:8], basin=frame.basin, first=missing[0], last=missing[1])
            self._store.execute("INSERT OR REPLACE INTO gaps VALUES (?, ?, ?, ?)", (origin, frame.basin, *missing))
        self._marks[origin, frame.basin] = frame.sequence
        self._store.execute("INSERT OR REPLACE INTO marks VALUES (?, ?, ?)", (origin, frame.basin, frame.sequence))
        return origin

    def _notice(self, origin: int, frame: Frame) -> None:
        """Tell when a number is given to something else than before: a home and a copy of it both run."""
        if frame.sequence == EPHEMERAL:
            return
        place, first = (origin, frame.basin, frame.sequence), frame.acts[0].id
        if self._recent.setdefault(place, first) != first and origin not in self._rivals:
            self._rivals.add(origin)
            log.warning("two nodes speak with one key; one of them is a copy: stop it", node=frame.node[:8])
        if len(self._recent) > RECENT:
            self._recent.popitem(last=False)

    def is_new(self, subject: Subject, frame: Frame) -> bool:
        """Whether the number of a frame is beyond all that were heard, or missing among them."""
        origin = self._origins.get((subject.mesh, subject.node))
        if origin is None or frame.sequence > self._marks.get((origin, frame.basin), 0):
            return True
        where = (origin, frame.basin, frame.sequence)
        sql = "SELECT 1 FROM gaps WHERE origin = ? AND basin = ? AND ? BETWEEN first AND last"
        return self._store.one(sql, where) is not None

    def _origin(self, subject: Subject) -> int:
        key = (subject.mesh, subject.node)
        if key not in self._origins:
            self._store.execute("INSERT OR IGNORE INTO origins (mesh, node) VALUES (?, ?)", key)
            self._origins[key] = self._store.one("SELECT origin FROM origins WHERE mesh = ? AND node = ?", key)[0]
        return self._origins[key]

    def _close_gap(self, origin: int, basin: str, sequence: int) -> None:
        where = (origin, basin)
        sql = "SELECT first, last FROM gaps WHERE origin = ? AND basin = ? AND ? BETWEEN first AND last"
        if row := self._store.one(sql, (*where, sequence)):
            first, last = row
            self._store.execute("DELETE FROM gaps WHERE origin = ? AND basin = ? AND first = ?", (*where, first))
            rest = [(first, sequence - 1), (sequence + 1, last)]
            parts = [(*where, low, high) for low, high in rest if low <= high]
            self._store.many("INSERT INTO gaps VALUES (?, ?, ?, ?)", parts)
