"""What the bridge remembers: which room is which basin, who sits where, which event is which act."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final, Literal

from mesh.store import Store
from protocol.acts import ID_BYTES
from protocol.keys import MeshId

KEPT_EVENTS: Final = 500_000  # events whose acts are known, about 100 bytes each; replies to older ones answer nobody
KEPT_BEGUN: Final = 10_000  # messages of other nodes that are being written; those that are not ended are forgotten
PRUNE_EVERY: Final = 1_000  # events between two prunings
BOT: Final = "_bot"  # the node's own user: no em's name begins with an underscore


@dataclass(frozen=True, slots=True)
class Member:
    """An em, or BOT, and whether it sits in a room: `out` is one that left or was put out, and why.

    `user` is the Matrix user that it sat there with.
    """

    em: str
    state: Literal["joined", "out"]
    reason: str = ""
    user: str = ""


@dataclass(frozen=True, slots=True)
class Chained:
    """What an act that begins a chain here is to all nodes in a room.

    `shared` is the root that they all know, `hops` what lay behind it, `elsewhere` the id by which they know the act.
    """

    shared: bytes
    hops: int
    elsewhere: bytes


@dataclass(frozen=True, slots=True)
class Known:
    """An event that stands for an act. `speaker` is who of ours said it, empty for other people's."""

    event_id: str
    room: str
    act: bytes
    speaker: str
    thread: str | None


class Tables:
    """Reads and writes them; writes belong within a transaction of the caller's."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._noted = 0

    def basin_of(self, room: str) -> str | None:
        """The basin that a room stands for."""
        row = self._store.one("SELECT basin FROM rooms WHERE room = ?", (room,))
        return row[0] if row else None

    def rooms_of(self, basin: str) -> list[str]:
        """The rooms that stand for a basin."""
        return [room for (room,) in self._store.rows("SELECT room FROM rooms WHERE basin = ? ORDER BY room", (basin,))]

    def rooms(self) -> list[tuple[str, str, str]]:
        """All rooms: id, basin, name."""
        return self._store.rows("SELECT room, basin, name FROM rooms ORDER BY basin, room")

    def set_room(self, room: str, basin: str, *, everyone: bool) -> None:
        """Have a room stand for a basin. `everyone`: whoever listens in the basin is to sit there, now and later."""
        sql = (
            "INSERT INTO rooms VALUES (?, ?, '', ?) ON CONFLICT DO UPDATE"
            " SET basin = excluded.basin, everyone = excluded.everyone"
        )
        self._store.execute(sql, (room, basin, everyone))

    def for_everyone(self) -> list[tuple[str, str]]:
        """The rooms, with their basins, in which all listeners are to sit."""
        return self._store.rows("SELECT room, basin FROM rooms WHERE everyone")

    def set_name(self, room: str, name: str) -> None:
        """What people call a room."""
        self._store.execute("UPDATE rooms SET name = ? WHERE room = ?", (name, room))

    def drop_room(self, room: str) -> None:
        """Forget a room and who sat in it; what was said there stays said."""
        for table in ("rooms", "room_members", "room_people"):
            self._store.execute(f"DELETE FROM {table} WHERE room = ?", (room,))  # noqa: S608 - our own words

    def members(self, room: str) -> list[Member]:
        """Everybody of ours who sits in a room or once did."""
        sql = "SELECT em, state, reason, user FROM room_members WHERE room = ? ORDER BY em"
        return [Member(*row) for row in self._store.rows(sql, (room,))]

    def joined(self, room: str) -> list[str]:
        """Everybody of ours who sits in a room."""
        sql = "SELECT em FROM room_members WHERE room = ? AND state = 'joined' ORDER BY em"
        return [em for (em,) in self._store.rows(sql, (room,))]

    def seated(self) -> list[str]:
        """The rooms where any of ours sits, be it only for links."""
        sql = "SELECT DISTINCT room FROM room_members WHERE state = 'joined' ORDER BY room"
        return [room for (room,) in self._store.rows(sql)]

    def sits(self, em: str, room: str) -> bool:
        """Whether an em sits in a room."""
        sql = "SELECT 1 FROM room_members WHERE room = ? AND em = ? AND state = 'joined'"
        return self._store.one(sql, (room, em)) is not None

    def knows(self, em: str, room: str) -> bool:
        """Whether an em sits in a room, was asked to, or was put out."""
        return self._store.one("SELECT 1 FROM room_members WHERE room = ? AND em = ?", (room, em)) is not None

    def places(self) -> list[tuple[str, str]]:
        """Who sits in a room of which basin."""
        sql = "SELECT DISTINCT em, basin FROM room_members NATURAL JOIN rooms WHERE state = 'joined'"
        return self._store.rows(sql)

    def absences(self) -> list[tuple[str, str]]:
        """Who was put out of, or left, a room of which basin."""
        sql = "SELECT DISTINCT em, basin FROM room_members NATURAL JOIN rooms WHERE state = 'out'"
        return self._store.rows(sql)

    def set_member(self, room: str, member: Member) -> None:
        """Note that somebody of ours came or went."""
        row = (room, member.em, member.state, member.reason, member.user)
        self._store.execute("INSERT OR REPLACE INTO room_members VALUES (?, ?, ?, ?, ?)", row)

    def note(self, known: Known) -> None:
        """Remember which act an event stands for."""
        sql = "INSERT OR IGNORE INTO room_events (event_id, room, act, speaker, thread) VALUES (?, ?, ?, ?, ?)"
        self._store.execute(sql, (known.event_id, known.room, known.act, known.speaker, known.thread))
        self._noted += 1
        if self._noted >= PRUNE_EVERY:
            self._noted = 0
            for table in ("room_events", "room_chains"):
                prune = f"DELETE FROM {table} WHERE n <= (SELECT max(n) FROM {table}) - ?"  # noqa: S608 - our own words
                self._store.execute(prune, (KEPT_EVENTS,))

    def forget_event(self, event_id: str) -> None:
        """An event stands for nothing any more."""
        self._store.execute("DELETE FROM room_events WHERE event_id = ?", (event_id,))

    def event(self, event_id: str) -> Known | None:
        """What an event stands for, by the act's own id."""
        row = self._store.one(f"{_KNOWN} WHERE event_id = ?", (event_id,))
        known = Known(*row) if row else None
        alias = known and self._store.one("SELECT act FROM room_aliases WHERE alias = ?", (known.act,))
        return replace(known, act=alias[0]) if known and alias else known

    def events(self, act: bytes, room: str | None = None) -> list[Known]:
        """The events that stand for an act, the first of each room first."""
        if room is None:
            return [Known(*row) for row in self._store.rows(f"{_KNOWN} WHERE act = ? ORDER BY n", (act,))]
        return [Known(*row) for row in self._store.rows(f"{_KNOWN} WHERE act = ? AND room = ? ORDER BY n", (act, room))]

    def alias(self, act: bytes, mesh: MeshId) -> bytes:
        """The id by which rooms know an act of another mesh, whose own id somebody has used before."""
        alias = hashlib.blake2b(act + mesh.encode(), digest_size=ID_BYTES).digest()
        self._store.execute("INSERT OR IGNORE INTO room_aliases VALUES (?, ?)", (alias, act))
        return alias

    def is_turn(self, act: bytes) -> bool:
        """Whether an id is one that a reply of ours has, or will have."""
        return self._store.one("SELECT 1 FROM turns WHERE id = ?", (act,)) is not None

    def drafts(self, act: bytes) -> list[tuple[str, str, int]]:
        """Where an act is shown while it is written: room, em, edits made."""
        return self._store.rows("SELECT room, em, edits FROM room_drafts WHERE act = ?", (act,))

    def set_draft(self, act: bytes, room: str, em: str, edits: int) -> None:
        """Note that an act is shown while it is written."""
        self._store.execute("INSERT OR REPLACE INTO room_drafts VALUES (?, ?, ?, ?)", (act, room, em, edits))

    def end_draft(self, act: bytes, room: str) -> bool:
        """Forget a draft; returns whether there was one."""
        return self._store.execute("DELETE FROM room_drafts WHERE act = ? AND room = ?", (act, room)) > 0

    def chain(self, root: bytes) -> Chained | None:
        """What a chain of ours is to all nodes in a room."""
        row = self._store.one("SELECT shared, hops, elsewhere FROM room_chains WHERE root = ?", (root,))
        return Chained(*row) if row else None

    def set_chain(self, root: bytes, chained: Chained) -> None:
        """Note how other nodes know the act that begins a chain here."""
        sql = "INSERT OR IGNORE INTO room_chains (root, shared, hops, elsewhere) VALUES (?, ?, ?, ?)"
        self._store.execute(sql, (root, chained.shared, chained.hops, chained.elsewhere))

    def came(self, elsewhere: bytes) -> bool:
        """Whether an act that all nodes know by this id is here already: it came another way, or is our own."""
        own = self._store.one("SELECT 1 FROM acts WHERE id = ?", (elsewhere,))
        return bool(own or self._store.one("SELECT 1 FROM room_chains WHERE elsewhere = ?", (elsewhere,)))

    def begin(self, event_id: str, sender: str, act: bytes) -> None:
        """Note the words so far of somebody else's em: only their sender may bring the whole."""
        sql = "INSERT OR IGNORE INTO room_begun (event_id, sender, act) VALUES (?, ?, ?)"
        self._store.execute(sql, (event_id, sender, act))
        self._store.execute("DELETE FROM room_begun WHERE n <= (SELECT max(n) FROM room_begun) - ?", (KEPT_BEGUN,))

    def ends(self, event_id: str, sender: str) -> bool:
        """Whether somebody brings the whole of what they have begun in an event; asked once."""
        sql = "DELETE FROM room_begun WHERE event_id = ? AND sender = ?"
        return self._store.execute(sql, (event_id, sender)) > 0

    def is_anothers(self, act: bytes, sender: str) -> bool:
        """Whether somebody else was the first to begin an act, and may still be writing it."""
        row = self._store.one("SELECT sender FROM room_begun WHERE act = ? ORDER BY n LIMIT 1", (act,))
        return row is not None and row[0] != sender

    def set_move(self, old: str, new: str) -> None:
        """Note where a room says it has moved: we follow when we are let in. What it said before counts no more."""
        self._store.execute("DELETE FROM room_moves WHERE old = ?", (old,))
        self._store.execute("INSERT OR REPLACE INTO room_moves VALUES (?, ?)", (new, old))

    def moved_from(self, new: str) -> str | None:
        """Which of our rooms said that it moved to this one."""
        row = self._store.one(
            "SELECT old FROM room_moves WHERE new = ? AND (old IN (SELECT room FROM rooms)"
            " OR old IN (SELECT room FROM room_members WHERE state = 'joined'))",
            (new,),
        )
        return row[0] if row else None

    def chains_of(self, shared: bytes) -> list[bytes]:
        """The roots here of one chain that several nodes share: each is an act of somebody else."""
        return [root for (root,) in self._store.rows("SELECT root FROM room_chains WHERE shared = ?", (shared,))]

    def heed(self, sender: str, now_ms: int, window_ms: int, most: int) -> bool:
        """Count a message of a sender; returns whether it is one of the first `most` in the window."""
        row = self._store.one("SELECT since_ms, times FROM room_heeded WHERE sender = ?", (sender,))
        since, times = row if row and 0 <= now_ms - row[0] < window_ms else (now_ms, 0)
        self._store.execute("INSERT OR REPLACE INTO room_heeded VALUES (?, ?, ?)", (sender, since, times + 1))
        self._store.execute("DELETE FROM room_heeded WHERE since_ms < ?", (now_ms - HEEDED_MS,))
        return times < most

    def person_spoke(self, room: str, now_ms: int) -> None:
        """Note that a person said something in a room."""
        self._store.execute("INSERT OR REPLACE INTO room_people VALUES (?, ?)", (room, now_ms))

    def spent_since_person(self, room: str, basin: str) -> int:
        """Model tokens that a room's basin has cost since a person spoke there last."""
        row = self._store.one("SELECT at_ms FROM room_people WHERE room = ?", (room,))
        sql = "SELECT coalesce(sum(prompt_tokens + completion_tokens), 0) FROM turns WHERE basin = ? AND decided_ms > ?"
        return self._store.one(sql, (basin, row[0] if row else 0))[0]

    def space(self) -> str | None:
        """The space that lists the rooms."""
        row = self._store.one("SELECT room FROM room_space")
        return row[0] if row else None

    def set_space(self, room: str) -> None:
        """Note the space that lists the rooms."""
        self._store.execute("INSERT OR REPLACE INTO room_space VALUES (1, ?)", (room,))

    def avatar(self, user_id: str) -> tuple[str, str] | None:
        """The picture that a user was given last: a digest of the file, and its `mxc://` address."""
        return self._store.one("SELECT digest, mxc FROM room_avatars WHERE user_id = ?", (user_id,))

    def set_avatar(self, user_id: str, digest: str, mxc: str) -> None:
        """Note the picture of a user."""
        self._store.execute("INSERT OR REPLACE INTO room_avatars VALUES (?, ?, ?)", (user_id, digest, mxc))

    def mutes(self, now_ms: int) -> set[tuple[str, str]]:
        """Who is to keep silent where: em and basin."""
        return set(self._store.rows("SELECT em, basin FROM room_mutes WHERE until_ms > ?", (now_ms,)))

    def mute(self, basin: str, em: str, until_ms: int) -> None:
        """Have an em keep silent in a basin; a time that has passed ends it."""
        self._store.execute("INSERT OR REPLACE INTO room_mutes VALUES (?, ?, ?)", (basin, em, until_ms))

    def next_unmute(self, now_ms: int) -> int | None:
        """When the next mute ends (Unix milliseconds)."""
        return self._store.one("SELECT min(until_ms) FROM room_mutes WHERE until_ms > ?", (now_ms,))[0]

    def move(self, old: str, new: str) -> None:
        """A room has a successor."""
        self._store.execute(
            "INSERT OR IGNORE INTO rooms SELECT ?, basin, name, everyone FROM rooms WHERE room = ?", (new, old)
        )
        self.drop_room(old)
        self._store.execute("DELETE FROM room_moves WHERE new = ?", (new,))


HEEDED_MS: Final = 25 * 3_600_000  # how long a sender's count is kept; every window is shorter

_KNOWN: Final = "SELECT event_id, room, act, speaker, thread FROM room_events"


def missing(wanted: Iterable[str], members: Iterable[Member]) -> list[str]:
    """Who is to sit in a room and neither does nor left it: whoever was put out is not sent in again."""
    known = {member.em for member in members}
    return sorted(set(wanted) - known)
