"""Finding what was said about something, among the newest acts of some basins."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from mesh.entries import Entry, recent
from mesh.forgetting import forgotten_among
from mesh.store import Store
from nodes.records import texts
from nodes.room import is_shown
from protocol.errors import ProtocolError
from protocol.frame import MAX_ACTS, decode_frame
from protocol.husk import is_husk
from protocol.receipt import MAX_CITED

LOOKED: Final = 10_000  # newest acts that are looked through for one question, in all basins together
CANDIDATES: Final = 32  # best acts among which those are cited that can be proved
MAX_FRAME_SENT: Final = 50_000  # bytes of a frame that is cited: one message holds 60,000, and the certificate too
SEARCHED: Final = 4_000  # characters of an act's text that are looked at


class Cited(NamedTuple):
    """A frame as signed, by whom, and the acts of it that answer a question."""

    data: bytes
    mesh: str
    node: str
    acts: list[bytes]


def search(path: Path, basins: Collection[str], question: str) -> list[Cited]:
    """The acts that tell most about a question, best first. It opens the database by itself: call it in a thread.

    An act is found only by its words as they stand: not when they were edited since, or taken back. A frame is left
    out when it does not verify any more, or would show what was taken back. Raises StoreFailed.
    """
    store = Store(path, read_only=True)
    try:
        entries = [entry for basin in basins for entry in recent(store, basin, LOOKED // len(basins))]
        now = zip(entries, texts(entries), strict=True)
        said = [entry for entry, text in now if _is_talk(entry) and text == entry.act.text]
        return _cited(store, [said[index] for index in _best([entry.act.text for entry in said], question)])
    finally:
        store.close()


def _is_talk(entry: Entry) -> bool:
    act = entry.act
    return (is_shown(act.kind) or act.kind == "edit") and bool(act.text.strip())


def _best(said: Sequence[str], question: str) -> list[int]:
    from nodes.retrieval import Bm25

    return [index for index, _ in Bm25.fit([text[:SEARCHED] for text in said]).top(question, CANDIDATES)]


def _cited(store: Store, best: Sequence[Entry]) -> list[Cited]:
    """As many of the best as an answer holds, by their frames; of acts with one id, the better: an answer names ids."""
    found: dict[int, Cited | None] = {}
    ids, left = set[bytes](), MAX_CITED
    for entry in best:
        n = entry.n // MAX_ACTS
        if n not in found:
            found[n] = _frame(store, n, entry)
        cited = found[n]
        if cited is not None and left and entry.act.id not in ids:
            ids.add(entry.act.id)
            cited.acts.append(entry.act.id)
            left -= 1
    return [cited for cited in found.values() if cited is not None and cited.acts]


def _frame(store: Store, n: int, entry: Entry) -> Cited | None:
    data: bytes = store.one("SELECT frame FROM frames WHERE n = ?", (n,))[0]
    if len(data) > MAX_FRAME_SENT:
        return None
    try:
        frame = decode_frame(data)
    except ProtocolError:  # somebody else's, with words that were taken back: it proves nothing any more
        return None
    whole = [act.id for act in frame.acts if not is_husk(act)]
    return None if forgotten_among(store, whole, entry.mesh) else Cited(data, entry.mesh, entry.node, [])
