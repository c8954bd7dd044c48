"""What was decided, and why: every turn an em took, and every silence.

A turn is recorded in the transaction that hears the act it answers, and its reply in the transaction that puts the
reply into the outbox. Between the two a node may die as often as it likes.
"""

import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import msgspec

from mesh.entries import Entry
from mesh.forgetting import forgotten_among
from mesh.store import Store
from nodes.models.base import Turn, Usage
from protocol.acts import ID_BYTES, Act

State = Literal["decided", "spoken", "silent"]

KEPT_PROMPTS: Final = 5_000  # the newest prompts are kept whole, about 5 KB each; older turns keep all but the prompt
KEPT_SILENCES: Final = 100_000  # acts whose silences are kept, about 100 bytes each
SWEPT: Final = 1_000  # more of them, until the oldest go
FORGOTTEN: Final = b""  # in place of a prompt in which something was taken back; NULL is an old one, or none

_ACT = re.compile(rf"act:([0-9a-f]{{{2 * ID_BYTES}}})")

TURNS_SCHEMA: Final = (
    """
    CREATE TABLE turns (
        n INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, em TEXT NOT NULL, act BLOB NOT NULL, basin TEXT NOT NULL,
        rule TEXT NOT NULL, state TEXT NOT NULL, decided_ms INTEGER NOT NULL, ended_ms INTEGER,
        outcome TEXT, model TEXT, prompt BLOB, prompt_tokens INTEGER, completion_tokens INTEGER, cached_tokens INTEGER
    );
    CREATE INDEX turns_of_act ON turns (act);
    CREATE INDEX turns_open ON turns (n) WHERE state = 'decided';
    CREATE INDEX turns_of_em ON turns (em, ended_ms);
    CREATE TABLE silences (n INTEGER PRIMARY KEY, act BLOB NOT NULL UNIQUE, reasons BLOB NOT NULL);
    """,
    "CREATE INDEX turns_of_basin ON turns (basin, decided_ms)",
    # Where the answered act stands: another mesh may have one under the same id. 0: whichever was heard first.
    "ALTER TABLE turns ADD COLUMN place INTEGER NOT NULL DEFAULT 0",
)


@dataclass(frozen=True, slots=True)
class Taken:
    """A turn that an em is to take: `id` is the id its reply will have.

    `place` is where the act that it answers stands, 0 where that is not known.
    """

    id: bytes
    em: str
    act: bytes
    basin: str
    rule: str
    decided_ms: int
    place: int = 0


@dataclass(frozen=True, slots=True)
class Ending:
    """How a turn ends: `outcome` in words for a person, and what it was made from."""

    state: State
    outcome: str
    model: str = ""
    prompt: tuple[Turn, ...] = ()
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class Told:
    """All that is known about a turn, times in Unix milliseconds.

    `prompt` is None when it was pruned or never made, or when something in it was taken back (`forgotten`).
    """

    taken: Taken
    state: State
    ended_ms: int | None
    outcome: str | None
    model: str | None
    prompt: tuple[Turn, ...] | None
    usage: Usage | None
    forgotten: bool = False


class Turns:
    """The table of turns and silences."""

    def __init__(self, store: Store) -> None:
        self._store, self._unswept = store, 0

    def take(self, turn: Taken) -> bool:
        """Record a decision to answer. Returns False when it was recorded before. Within a transaction."""
        sql = (
            "INSERT OR IGNORE INTO turns (id, em, act, basin, rule, state, decided_ms, place)"
            " VALUES (?, ?, ?, ?, ?, 'decided', ?, ?)"
        )
        row = (turn.id, turn.em, turn.act, turn.basin, turn.rule, turn.decided_ms, turn.place)
        return self._store.insert(sql, row) is not None

    def keep_silent(self, silences: Sequence[tuple[bytes, Mapping[str, Sequence[str]]]]) -> None:
        """Record who said nothing to which act, by reason; the oldest make room. Within a transaction."""
        rows = [(act, msgspec.msgpack.encode(reasons)) for act, reasons in silences]
        self._unswept += self._store.many("INSERT OR IGNORE INTO silences (act, reasons) VALUES (?, ?)", rows)
        if self._unswept >= SWEPT:
            self._unswept = 0
            self._store.execute("DELETE FROM silences WHERE n <= (SELECT max(n) FROM silences) - ?", (KEPT_SILENCES,))

    def end(self, turn: Taken, ending: Ending, now_ms: int) -> None:
        """Record how a turn ended. Within a transaction."""
        packed = zlib.compress(msgspec.msgpack.encode(ending.prompt), 1) if ending.prompt else None
        if packed and forgotten_among(self._store, _acts_in(ending.prompt)):  # taken back while it was being answered
            packed = FORGOTTEN
        usage = ending.usage
        counts = (usage.prompt, usage.completion, usage.cached) if usage else (None, None, None)
        self._store.execute(
            "UPDATE turns SET state = ?, outcome = ?, ended_ms = ?, model = ?, prompt = ?,"
            " prompt_tokens = ?, completion_tokens = ?, cached_tokens = ? WHERE id = ?",
            (ending.state, ending.outcome, now_ms, ending.model, packed, *counts, turn.id),
        )
        self._store.execute(
            "UPDATE turns SET prompt = NULL WHERE n = (SELECT n - ? FROM turns WHERE id = ?)", (KEPT_PROMPTS, turn.id)
        )

    def forget(self, entries: Sequence[Entry]) -> None:
        """Drop the prompts that show any of these acts, or what they edit. Within a transaction.

        The prompts are searched as they are packed: 5,000 of them take a quarter of a second, and those
        of turns before the act are left out.
        """
        ids = {identity for entry in entries for identity in (entry.act.id, *_edited(entry.act))}
        sources = [_source(identity).encode() for identity in ids]
        basins = {entry.basin for entry in entries}
        rows = self._store.rows(_PROMPTS, (KEPT_PROMPTS, min(entry.n for entry in entries)))
        shown = [n for n, basin, packed in rows if basin in basins and _shows(packed, sources)]
        self._store.many("UPDATE turns SET prompt = ? WHERE n = ?", ((FORGOTTEN, n) for n in shown))

    def open(self) -> list[Taken]:
        """Turns that were decided and not ended: what a crash interrupted, oldest first."""
        return [Taken(*row) for row in self._store.rows(f"{_TAKEN} WHERE state = 'decided' ORDER BY n")]

    def about(self, act: bytes) -> list[Told]:
        """The turn whose reply `act` is, or the turns that it led to."""
        rows = self._store.rows(f"{_TOLD} WHERE id = ?", (act,)) or self._store.rows(
            f"{_TOLD} WHERE act = ? ORDER BY n", (act,)
        )
        return [_told(row) for row in rows]

    def spoke(self, em: str) -> bool:
        """Whether an em of this name ever took a turn here, also one that is no longer hosted."""
        return self._store.one("SELECT 1 FROM turns WHERE em = ? LIMIT 1", (em,)) is not None

    def silences(self, act: bytes) -> dict[str, list[str]]:
        """Who said nothing to an act: reason → ems."""
        row = self._store.one("SELECT reasons FROM silences WHERE act = ?", (act,))
        return {} if row is None else msgspec.msgpack.decode(row[0], type=dict[str, list[str]])

    def spent_since(self, em: str, since_ms: int) -> tuple[int, int]:
        """How many replies an em gave since a time, and tokens it used, also for replies that came to nothing."""
        row = self._store.one(
            "SELECT count(*) FILTER (WHERE state = 'spoken'), coalesce(sum(prompt_tokens + completion_tokens), 0)"
            " FROM turns WHERE em = ? AND ended_ms >= ?",
            (em, since_ms),
        )
        return row[0], row[1]


_TAKEN: Final = "SELECT id, em, act, basin, rule, decided_ms, place FROM turns"
_PROMPTS: Final = (
    "SELECT turns.n, basin, prompt FROM turns JOIN acts ON acts.id = turns.act"
    " WHERE turns.n > (SELECT max(n) FROM turns) - ? AND length(prompt) > 0"
    " AND max(acts.place, turns.place) >= ?"
)
_TOLD: Final = (
    "SELECT id, em, act, basin, rule, decided_ms, state, ended_ms, outcome, model, prompt,"
    " prompt_tokens, completion_tokens, cached_tokens FROM turns"
)


def _edited(act: Act) -> Sequence[bytes]:
    return act.refs[:1] if act.kind == "edit" else ()


def _source(identity: bytes) -> str:
    """How a span says that it shows an act."""
    return f"act:{identity.hex()}"


def _shows(packed: bytes, sources: Iterable[bytes]) -> bool:
    prompt = zlib.decompress(packed)
    return any(source in prompt for source in sources)


def _acts_in(prompt: Iterable[Turn]) -> set[bytes]:
    found = [_ACT.fullmatch(span.source) for turn in prompt for span in turn.spans]
    return {bytes.fromhex(one[1]) for one in found if one}


def _told(row: tuple[Any, ...]) -> Told:
    *taken, state, ended, outcome, model, packed, prompt, completion, cached = row
    turns = msgspec.msgpack.decode(zlib.decompress(packed), type=tuple[Turn, ...]) if packed else None
    usage = None if prompt is None else Usage(prompt, completion, cached)
    return Told(Taken(*taken), state, ended, outcome, model, turns, usage, packed == FORGOTTEN)
