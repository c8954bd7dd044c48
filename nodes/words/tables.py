"""What a node remembers of words: terms, what was said about them, and what peers' nodes say that they use."""

from typing import Final

import msgspec

from mesh.store import Store
from protocol.errors import BadTerm
from protocol.keys import MeshId
from protocol.lexicon import Changed, Lexicon
from protocol.terms import Said, read_term, write_term
from protocol.vocabulary import Digest, Term

WORDS_SCHEMA: Final = (
    """
    CREATE TABLE terms (digest TEXT PRIMARY KEY, term BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE term_acts (
        mesh TEXT NOT NULL, author TEXT NOT NULL, digest TEXT NOT NULL, slot TEXT NOT NULL, said BLOB NOT NULL,
        PRIMARY KEY (mesh, author, digest, slot)
    ) WITHOUT ROWID;
    CREATE TABLE term_holders (mesh TEXT PRIMARY KEY, digests BLOB NOT NULL) WITHOUT ROWID;
    """,
)


class Tables:
    """Reads and writes them; writes belong within a transaction of the caller's."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def restore(self, lexicon: Lexicon) -> None:
        """Give an empty lexicon what an earlier run knew."""
        said = (msgspec.msgpack.decode(data, type=Said) for (data,) in self._store.rows("SELECT said FROM term_acts"))
        told = {
            MeshId(mesh): msgspec.msgpack.decode(data, type=frozenset[Digest])
            for mesh, data in self._store.rows("SELECT mesh, digests FROM term_holders")
        }
        terms = [_read(data) for (data,) in self._store.rows("SELECT term FROM terms")]
        lexicon.restore([term for term in terms if term is not None], said, told)

    def keep(self, changed: Changed) -> None:
        """Write what has changed."""
        for key, said in changed.said.items():
            if said is None:
                sql = "DELETE FROM term_acts WHERE mesh = ? AND author = ? AND digest = ? AND slot = ?"
                self._store.execute(sql, key)
            else:
                sql = "INSERT OR REPLACE INTO term_acts VALUES (?, ?, ?, ?, ?)"
                self._store.execute(sql, (*key, msgspec.msgpack.encode(said)))
        for digest, term in changed.terms.items():
            if term is None:
                self._store.execute("DELETE FROM terms WHERE digest = ?", (digest,))
            else:
                self._store.execute("INSERT OR REPLACE INTO terms VALUES (?, ?)", (digest, write_term(term)))

    def keep_told(self, mesh: MeshId, digests: frozenset[Digest]) -> None:
        """Write what a peer says that it uses."""
        data = msgspec.msgpack.encode(sorted(digests))
        self._store.execute("INSERT OR REPLACE INTO term_holders VALUES (?, ?)", (mesh, data))


def _read(data: bytes) -> Term | None:
    """A term; None for one that is none by now: what is printable is another Unicode's matter in another Python."""
    try:
        return read_term(data)
    except BadTerm:
        return None
