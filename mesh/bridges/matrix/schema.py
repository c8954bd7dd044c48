"""The Matrix bridge's tables in the node's database."""

from typing import Final

from mesh.bridges.matrix.inbox import MATRIX_INBOX
from mesh.bridges.matrix.rows import MATRIX_OUTBOX
from mesh.bridges.matrix.sealed import MATRIX_SEALED

MATRIX_PROFILES: Final = """
    CREATE TABLE matrix_profiles (
        user_id TEXT PRIMARY KEY, name TEXT NOT NULL, avatar TEXT NOT NULL
    ) WITHOUT ROWID;
"""
MATRIX_SCHEMA: Final = (MATRIX_INBOX + MATRIX_OUTBOX + MATRIX_PROFILES + MATRIX_SEALED,)
