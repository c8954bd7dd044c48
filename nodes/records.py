"""What a node has kept, read from its database: also while no node runs."""

import string
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from mesh.entries import Entry, count, missing, recent
from mesh.errors import StoreFailed
from mesh.store import Store
from nodes.config import MeshConfig
from nodes.em import Em
from nodes.errors import NodeError
from nodes.home import Home
from nodes.room import SHOWN
from nodes.turns import Turns
from protocol.acts import ID_BYTES
from protocol.frame import MAX_ACTS
from protocol.husk import is_husk

MIN_DIGITS: Final = 6  # of an id that is not written out; fewer are a slip, not a name
LAST: Final = "last"
RECENT: Final = 100  # acts in which `last` looks for words: edits, reactions and stops are passed over
GONE: Final = "(taken back)"

_HEX: Final = frozenset(string.hexdigits)
_LOOKUP: Final = (  # turns too: a reply that was never said has an id as well
    "SELECT id FROM acts WHERE id BETWEEN ? AND ? UNION SELECT id FROM turns WHERE id BETWEEN ? AND ? LIMIT 2"
)


class Talk(NamedTuple):
    """How much was said in a basin. `last_ms`: when last, by its author's clock (Unix milliseconds)."""

    acts: int
    last_ms: int


@contextmanager
def records(home: Home) -> Generator[Store | None]:
    """The node's database, to read; None when no node has run here yet. Raises StoreFailed."""
    if not home.database.exists() or home.database.stat().st_size == 0:
        yield None
        return
    store = Store(home.database, read_only=True)
    try:
        yield store
    finally:
        store.close()


def damaged(path: Path | str) -> str:
    """What to do about a database of ours that SQLite cannot read."""
    if Path(path).name != "node.db":
        return f"{path} is damaged; move it away and start again"
    return (
        f"{path} is damaged; move it away and start again: it is rebuilt from the stream, all but what `mesh why` knows"
        " and which Matrix rooms there are"
    )


def failed(home: Home, act: bytes) -> tuple[list[tuple[bytes, str, str]], bool]:
    """The turns (id, em, reason) that were to answer an act and came to nothing; and whether others still go on.

    Whatever cannot be read counts as nothing: this is asked again and again beside a node that runs.
    """
    try:
        with records(home) as store:
            told = [] if store is None else Turns(store).about(act)
    except StoreFailed:
        return [], False
    ended = [(one.taken.id, one.taken.em, one.outcome or "") for one in told if one.state == "silent"]
    return ended, any(one.state == "decided" for one in told)


def numbers(store: Store | None) -> dict[str, int]:
    """Acts kept, acts waiting in the outbox, frames missing and things refused."""
    if store is None:
        return {"acts": 0, "waiting": 0, "missing": 0, "refused": 0}
    return {
        "acts": count(store),
        "waiting": store.one("SELECT count(*) FROM outbox")[0],
        "missing": missing(store),
        "refused": store.one("SELECT coalesce(sum(times), 0) FROM refusals")[0],
    }


def talks(store: Store | None) -> dict[str, Talk]:
    """How much was said, by basin."""
    if store is None:
        return {}
    sql = "SELECT basin, count(*) FROM acts JOIN frames ON frames.n = acts.place / ? GROUP BY basin"
    kept = dict[str, int](store.rows(sql, (MAX_ACTS,)))
    return {basin: Talk(acts, recent(store, basin, 1)[-1].act.at_ms) for basin, acts in kept.items()}


def listeners(config: MeshConfig, ems: Iterable[Em], basin: str) -> list[str]:
    """The ems that listen in a basin, by name, where its settings let them."""
    allowed = config.basin(basin).listeners
    return sorted(em.name for em in ems if em.listens(basin, allowed))


def texts(entries: Sequence[Entry]) -> list[str | None]:
    """What each of these acts says now: edits made, and None for what was taken back, by its own author alone."""
    places = {(entry.mesh, entry.act.id): place for place, entry in enumerate(entries)}
    said = [None if is_husk(entry.act) else entry.act.text for entry in entries]
    for number, entry in enumerate(entries):
        if entry.act.kind in {"edit", "redact"} and entry.act.refs:
            place = places.get((entry.mesh, entry.act.refs[0]))
            is_its = place is not None and entries[place].act.author == entry.act.author
            if place is not None and is_its and said[place] is not None and said[number] is not None:
                said[place] = entry.act.text if entry.act.kind == "edit" else None
    return said


def lookup(store: Store | None, text: str) -> bytes:
    """The id that somebody means: in hex, its first digits, or `last`. Raises NodeError when it names none, or many."""
    if text.lower() == LAST:
        basin = None if store is None else store.one("SELECT basin FROM frames ORDER BY n DESC LIMIT 1")
        newest = recent(store, basin[0], RECENT) if store and basin else []
        said = [entry for entry in newest if entry.act.kind in SHOWN]
        if not said:
            raise NodeError("nothing was said here yet")
        return said[-1].act.id
    digits = text.lower()
    if not MIN_DIGITS <= len(digits) <= 2 * ID_BYTES or not _HEX.issuperset(digits):
        raise NodeError(
            f"{text[:40]!a} is no id of an act: give its {2 * ID_BYTES} hex digits, the first {MIN_DIGITS} "
            f"or more, or {LAST}"
        )
    first, last = (bytes.fromhex(digits.ljust(2 * ID_BYTES, fill)) for fill in "0f")
    found: list[tuple[bytes]] = []
    if store is not None:
        found = store.rows(_LOOKUP, (first, last, first, last))
    if not found:
        raise NodeError(f"no act {digits} is known here; mesh basin show BASIN lists those that are")
    if len(found) > 1:
        raise NodeError(f"more than one act has an id that begins with {digits}; give more digits of it")
    return found[0][0]
