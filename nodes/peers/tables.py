"""What a node remembers of its peers, and of the invitations that its person has given."""

from dataclasses import dataclass, field
from typing import Final, NamedTuple

import msgspec

from mesh.store import Store
from protocol.keys import MeshId, NodeId
from protocol.link import Relationship
from protocol.quota import DAY_MS, Spent
from protocol.statement import Changes, Trust

KEPT_DAYS: Final = 31  # of what each peer's acts and chains came to
NOTES: Final = 20  # newest words of each peer's node that are kept for the person
WISHES: Final = 100  # of ems that wait for their person

PEERS_SCHEMA: Final = (
    """
    CREATE TABLE peers (
        mesh TEXT PRIMARY KEY, petname TEXT NOT NULL UNIQUE, addresses TEXT NOT NULL, relationship BLOB NOT NULL,
        spent BLOB NOT NULL, accepted BLOB
    ) WITHOUT ROWID;
    CREATE TABLE peer_days (
        mesh TEXT NOT NULL, day INTEGER NOT NULL, acts INTEGER NOT NULL, replies INTEGER NOT NULL,
        PRIMARY KEY (mesh, day)
    ) WITHOUT ROWID;
    CREATE TABLE invitations (
        guest TEXT PRIMARY KEY, petname TEXT, trust TEXT NOT NULL, offer BLOB NOT NULL, expires_s INTEGER NOT NULL,
        used_by TEXT
    ) WITHOUT ROWID;
    """,
    # Money beside tokens; words of peers' nodes; changes that ems have asked for.
    """
    ALTER TABLE peer_days ADD COLUMN price REAL NOT NULL DEFAULT 0;
    ALTER TABLE peer_days ADD COLUMN unpriced INTEGER NOT NULL DEFAULT 0;
    CREATE TABLE peer_notes (n INTEGER PRIMARY KEY, mesh TEXT NOT NULL, at_ms INTEGER NOT NULL, text TEXT NOT NULL);
    CREATE TABLE peer_wishes (
        id BLOB PRIMARY KEY, em TEXT NOT NULL, kind TEXT NOT NULL, text TEXT NOT NULL, at_ms INTEGER NOT NULL
    ) WITHOUT ROWID;
    """,
    "ALTER TABLE peer_days ADD COLUMN barred INTEGER NOT NULL DEFAULT 0;",
)


@dataclass(slots=True)
class Peer:
    """Another mesh, under the name that the person here gave it. Change it only together with its row.

    `addresses` are where it is dialled. `accepted` is what the person has agreed to and the node has not yet said: it
    waits for the other side's `invite`.
    """

    mesh: MeshId
    petname: str
    addresses: tuple[str, ...]
    relationship: Relationship
    spent: Spent = field(default_factory=Spent)
    accepted: Changes | None = None


@dataclass(frozen=True, slots=True)
class Given:
    """An invitation that the person here gave: known by its guest key; `offer` is signed; None: not used yet."""

    guest: NodeId
    petname: str | None
    trust: Trust
    offer: bytes
    expires_s: int
    used_by: MeshId | None = None


class Day(NamedTuple):
    """A day's acts that were taken from a peer, replies to its chains, their price, and how many have none known.

    `barred`: replies that were not given, since its quota was used up.
    """

    acts: int = 0
    replies: int = 0
    price: float = 0.0
    unpriced: int = 0
    barred: int = 0


class Wished(NamedTuple):
    """A change of a relationship that an em asks its person for: the act's id, kind and text."""

    id: bytes
    em: str
    kind: str
    text: str
    at_ms: int


class Tables:
    """Reads and writes them; writes belong within a transaction of the caller's."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def peers(self) -> list[Peer]:
        """All peers."""
        sql = "SELECT mesh, petname, addresses, relationship, spent, accepted FROM peers ORDER BY petname"
        return [
            Peer(
                MeshId(mesh),
                petname,
                msgspec.json.decode(addresses, type=tuple[str, ...]),
                msgspec.json.decode(relationship, type=Relationship),
                msgspec.json.decode(spent, type=Spent),
                None if accepted is None else msgspec.json.decode(accepted, type=Changes),
            )
            for mesh, petname, addresses, relationship, spent, accepted in self._store.rows(sql)
        ]

    def put(self, peer: Peer) -> None:
        """Keep a peer as it is now."""
        row = (
            peer.mesh,
            peer.petname,
            msgspec.json.encode(peer.addresses).decode(),
            msgspec.json.encode(peer.relationship),
            msgspec.json.encode(peer.spent),
            None if peer.accepted is None else msgspec.json.encode(peer.accepted),
        )
        self._store.execute("INSERT OR REPLACE INTO peers VALUES (?, ?, ?, ?, ?, ?)", row)

    def put_spent(self, peer: Peer) -> None:
        """Keep what a peer has used by now."""
        self._store.execute("UPDATE peers SET spent = ? WHERE mesh = ?", (msgspec.json.encode(peer.spent), peer.mesh))

    def count(self, mesh: MeshId, now_ms: int, acts: int) -> None:
        """Count acts that were taken from a peer today."""
        self._count(mesh, now_ms, Day(acts))

    def count_reply(self, mesh: MeshId, now_ms: int, price: float | None) -> None:
        """Count a reply that a peer's chain was given, and what it cost; None: nobody knows."""
        self._count(mesh, now_ms, Day(0, 1, price or 0.0, int(price is None)))

    def count_barred(self, mesh: MeshId, now_ms: int) -> None:
        """Count a reply that was not given, since the peer's quota was used up."""
        self._count(mesh, now_ms, Day(barred=1))

    def _count(self, mesh: MeshId, now_ms: int, more: "Day") -> None:
        day = now_ms // DAY_MS
        sql = (
            "INSERT INTO peer_days (mesh, day, acts, replies, price, unpriced, barred) VALUES (?, ?, ?, ?, ?, ?, ?)"
            " ON CONFLICT DO UPDATE SET acts = acts + excluded.acts, replies = replies + excluded.replies,"
            " price = price + excluded.price, unpriced = unpriced + excluded.unpriced,"
            " barred = barred + excluded.barred"
        )
        self._store.execute(sql, (mesh, day, *more))
        self._store.execute("DELETE FROM peer_days WHERE mesh = ? AND day < ?", (mesh, day - KEPT_DAYS))

    def day(self, mesh: MeshId, now_ms: int) -> "Day":
        """What a peer's acts and chains came to today."""
        sql = "SELECT acts, replies, price, unpriced, barred FROM peer_days WHERE mesh = ? AND day = ?"
        return Day(*(self._store.one(sql, (mesh, now_ms // DAY_MS)) or ()))

    def note(self, mesh: MeshId, now_ms: int, text: str) -> None:
        """Keep what a peer's node has said to the person here; the oldest makes room."""
        self._store.execute("INSERT INTO peer_notes (mesh, at_ms, text) VALUES (?, ?, ?)", (mesh, now_ms, text))
        sql = (
            "DELETE FROM peer_notes WHERE mesh = ? AND n NOT IN"
            " (SELECT n FROM peer_notes WHERE mesh = ? ORDER BY n DESC LIMIT ?)"
        )
        self._store.execute(sql, (mesh, mesh, NOTES))

    def notes(self, mesh: MeshId) -> list[tuple[int, str]]:
        """What a peer's node has said, and when (Unix milliseconds), oldest first."""
        return self._store.rows("SELECT at_ms, text FROM peer_notes WHERE mesh = ? ORDER BY n", (mesh,))

    def wish(self, wish: "Wished") -> None:
        """Keep a change that an em asks for; the oldest makes room."""
        self._store.execute("INSERT OR IGNORE INTO peer_wishes VALUES (?, ?, ?, ?, ?)", wish)
        sql = "DELETE FROM peer_wishes WHERE id NOT IN (SELECT id FROM peer_wishes ORDER BY at_ms DESC LIMIT ?)"
        self._store.execute(sql, (WISHES,))

    def wishes(self) -> "list[Wished]":
        """What ems ask for, oldest first."""
        return [Wished(*row) for row in self._store.rows("SELECT * FROM peer_wishes ORDER BY at_ms, id")]

    def granted(self, identity: bytes) -> int:
        """A wish has been dealt with; returns whether there was one."""
        return self._store.execute("DELETE FROM peer_wishes WHERE id = ?", (identity,))

    def refusals(self, mesh: MeshId) -> dict[str, int]:
        """How often something of a peer's was refused, by the kind of fault."""
        return dict(self._store.rows("SELECT reason, times FROM refusals WHERE mesh = ? ORDER BY reason", (mesh,)))

    def refuse(self, mesh: MeshId, reason: str) -> None:
        """Count a refusal."""
        sql = "INSERT INTO refusals VALUES (?, ?, 1) ON CONFLICT DO UPDATE SET times = times + 1"
        self._store.execute(sql, (mesh, reason))

    def untold(self, me: MeshId, peer: MeshId, basin: str) -> bool:
        """Whether anything we said in a basin has not reached a peer."""
        sql = (
            "SELECT 1 FROM frames JOIN origins USING (origin) WHERE basin = ? AND mesh = ? AND n >"
            " coalesce((SELECT n FROM link_cursors WHERE peer = ? AND basin = ?), 0) LIMIT 1"
        )
        return self._store.one(sql, (basin, me, peer, basin)) is not None

    def give(self, given: Given, now_s: int) -> None:
        """Keep an invitation; those that have ended are forgotten."""
        self._store.execute("DELETE FROM invitations WHERE expires_s < ?", (now_s,))
        row = (given.guest, given.petname, given.trust.value, given.offer, given.expires_s, given.used_by)
        self._store.execute("INSERT INTO invitations VALUES (?, ?, ?, ?, ?, ?)", row)

    def given(self, guest: NodeId) -> Given | None:
        """The invitation with this guest key."""
        row = self._store.one("SELECT * FROM invitations WHERE guest = ?", (guest,))
        return Given(row[0], row[1], Trust(row[2]), *row[3:]) if row else None

    def waiting(self, now_s: int) -> int:
        """How many invitations nobody has used yet."""
        sql = "SELECT count(*) FROM invitations WHERE used_by IS NULL AND expires_s >= ?"
        return self._store.one(sql, (now_s,))[0]

    def use(self, guest: NodeId, mesh: MeshId) -> None:
        """An invitation has been used by this mesh."""
        self._store.execute("UPDATE invitations SET used_by = ? WHERE guest = ?", (mesh, guest))
