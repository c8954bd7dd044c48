"""The tables of the bridge, which nodes.matrix.tables reads and writes. Later entries are added by later versions."""

from typing import Final

BRIDGE_SCHEMA: Final = (
    """
    CREATE TABLE rooms (
        room TEXT PRIMARY KEY, basin TEXT NOT NULL, name TEXT NOT NULL, everyone INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX rooms_of_basin ON rooms (basin);
    CREATE TABLE room_members (
        room TEXT NOT NULL, em TEXT NOT NULL, state TEXT NOT NULL, reason TEXT NOT NULL, user TEXT NOT NULL,
        PRIMARY KEY (room, em)
    ) WITHOUT ROWID;
    CREATE TABLE room_events (
        n INTEGER PRIMARY KEY, event_id TEXT NOT NULL UNIQUE, room TEXT NOT NULL, act BLOB NOT NULL,
        speaker TEXT NOT NULL, thread TEXT
    );
    CREATE INDEX room_events_of_act ON room_events (act, room);
    CREATE TABLE room_drafts (
        act BLOB NOT NULL, room TEXT NOT NULL, em TEXT NOT NULL, edits INTEGER NOT NULL, PRIMARY KEY (act, room)
    ) WITHOUT ROWID;
    CREATE TABLE room_chains (
        n INTEGER PRIMARY KEY, root BLOB NOT NULL UNIQUE, shared BLOB NOT NULL, hops INTEGER NOT NULL,
        elsewhere BLOB NOT NULL
    );
    CREATE INDEX room_chains_of_shared ON room_chains (shared);
    CREATE INDEX room_chains_elsewhere ON room_chains (elsewhere);
    CREATE TABLE room_begun (event_id TEXT PRIMARY KEY, sender TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE room_moves (new TEXT PRIMARY KEY, old TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE room_heeded (sender TEXT PRIMARY KEY, since_ms INTEGER NOT NULL, times INTEGER NOT NULL) WITHOUT ROWID;
    CREATE INDEX room_heeded_since ON room_heeded (since_ms);
    CREATE TABLE room_people (room TEXT PRIMARY KEY, at_ms INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE room_space (one INTEGER PRIMARY KEY CHECK (one = 1), room TEXT NOT NULL);
    CREATE TABLE room_avatars (user_id TEXT PRIMARY KEY, digest TEXT NOT NULL, mxc TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE room_mutes (basin TEXT NOT NULL, em TEXT NOT NULL, until_ms INTEGER NOT NULL, PRIMARY KEY (basin, em))
    WITHOUT ROWID;
    """,
    # Acts of other meshes under an id that somebody has used before: rooms know them by another one.
    "CREATE TABLE room_aliases (alias BLOB PRIMARY KEY, act BLOB NOT NULL) WITHOUT ROWID",
    # Anybody can begin messages and never end them, or end others' under their own name.
    """
    DROP TABLE room_begun;
    CREATE TABLE room_begun (
        n INTEGER PRIMARY KEY, event_id TEXT NOT NULL UNIQUE, sender TEXT NOT NULL, act BLOB NOT NULL
    );
    CREATE INDEX room_begun_acts ON room_begun (act, n);
    """,
)
