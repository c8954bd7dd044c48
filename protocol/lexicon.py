"""What all that meshes have said about words comes to: who uses which reading, and who reads it otherwise. Pure.

Nobody is outvoted: each mesh takes a reading into use for itself, one for a name, and reads a word otherwise without
anybody's leave. Of what one author says about one reading the newest counts, so that acts may come in any order.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeVar

from protocol.keys import MeshId
from protocol.terms import Key, Said, Slot, check_term, fold, one_line
from protocol.vocabulary import Digest, Term

MAX_SAID: Final = 1_024  # things kept that one mesh has said about terms; as many of all whom nobody here knows
SLACK: Final = 64  # kept beyond that for a while: letting go of many at once costs each act little
Place = TypeVar("Place")
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Reading:
    """One reading of a word. `term` is None while only its digest is known.

    `proposed` and `contested` are authors with their meshes; `used` are meshes; `ems` are the ems that would use it.
    """

    digest: Digest
    term: Term | None
    proposed: tuple[tuple[MeshId, str], ...]
    used: tuple[MeshId, ...]
    contested: tuple[tuple[MeshId, str], ...]
    ems: tuple[tuple[MeshId, str], ...]


@dataclass(slots=True)
class Changed:
    """What was changed since it was last asked: None for what is gone."""

    said: dict[Key, Said | None] = field(default_factory=dict[Key, "Said | None"])
    terms: dict[Digest, Term | None] = field(default_factory=dict[Digest, "Term | None"])


class Lexicon:
    """All readings of all words that a mesh has heard of, and what others have said about them."""

    def __init__(self, me: MeshId, knows: Callable[[MeshId], bool]) -> None:
        """`knows` tells the meshes that each get room of their own: this one's peers."""
        self.me, self._knows = me, knows
        self.terms: dict[Digest, Term] = {}
        self.told: dict[MeshId, frozenset[Digest]] = {}
        self._changed = Changed()
        self._said: dict[Key, Said] = {}
        self._of: dict[MeshId, set[Key]] = {}
        self._about: dict[Digest, set[Key]] = {}
        self._named: dict[str, set[Digest]] = {}
        self._uses: dict[MeshId, dict[str, Digest]] = {}  # worked out when asked for

    # In

    def hear(self, said: Said) -> bool:
        """Take in what somebody said; returns whether it is news. What is older than what is known changes nothing."""
        known = self._said.get(said.key)
        if known is not None and known.order >= said.order:
            return False
        self._put(said)
        self._trim(said.mesh)
        return True

    def retract(self, mesh: MeshId, author: str, identity: bytes) -> None:
        """An author has taken back an act: it says nothing any more."""
        for key in [key for key in self._of.get(mesh, ()) if self._said[key].id == identity]:
            if self._said[key].author == author:
                self._drop(key)

    def learn(self, term: Term) -> None:
        """Know a term by its digest, as long as anybody speaks of it. Raises BadTerm."""
        named = check_term(term)
        if named not in self.terms and self._is_spoken_of(named):
            self.terms[named] = self._changed.terms[named] = term
            self._named.setdefault(fold(term.name), set()).add(named)
            self._look_again(named)

    def tell(self, mesh: MeshId, digests: Collection[Digest]) -> None:
        """A peer's node says what its mesh uses, all of it: at most MAX_HELD, by check_digest's rule."""
        before = self.told.get(mesh, frozenset())
        self.told[mesh] = frozenset(digests)
        for one in before - self.told[mesh]:
            self._let_go(one)

    def restore(self, terms: Iterable[Term], said: Iterable[Said], told: Mapping[MeshId, frozenset[Digest]]) -> None:
        """What was kept of an earlier run."""
        self.told.update(told)
        for one in said:
            self._put(one)
        for term in terms:
            self.learn(term)
        self._changed = Changed()

    def take_changed(self) -> Changed:
        """What was heard, learned and let go since this was last asked."""
        changed, self._changed = self._changed, Changed()
        return changed

    # Out

    def uses(self, mesh: MeshId) -> Mapping[str, Digest]:
        """The reading that a mesh uses of each word, by folded name, from what its person said: the newest counts."""
        if mesh not in self._uses:
            newest: dict[str, Said] = {}
            for key in self._of.get(mesh, ()):
                term = self.terms.get(key.digest)
                if key.slot == Slot.USE and not key.author and term is not None:
                    said, name = self._said[key], fold(term.name)
                    newest[name] = max(newest.get(name, said), said, key=lambda one: one.order)
            self._uses[mesh] = {name: said.digest for name, said in newest.items() if said.uses}
        return self._uses[mesh]

    def held(self, mesh: MeshId) -> frozenset[Digest]:
        """The digests of what a mesh uses: what its node tells us, and what its person was heard to adopt.

        A node tells us of no word that it knows from a basin which it does not share with us, though others may.
        """
        return self.told.get(mesh, frozenset()) | frozenset(self.uses(mesh).values())

    def of(self, mesh: MeshId, about: Digest, slot: Slot = Slot.USE) -> Said | None:
        """What a mesh's person has said last about a term."""
        return self._said.get(Key(mesh, "", about, slot))

    def basins(self, about: Digest, *slots: Slot) -> set[str]:
        """Where these things, or anything, were said about a term; none where nobody here has heard of it."""
        said = (self._said[key] for key in self._about.get(about, ()) if not slots or key.slot in slots)
        return {one.basin for one in said}

    def names(self) -> list[str]:
        """The folded names of all words whose terms are known."""
        return sorted(self._named)

    def find(self, wanted: str) -> list[Digest]:
        """The readings of a name, in any case, or of a digest or its first hex digits; the longest known first."""
        found = list(self._named.get(fold(one_line(wanted)), ()))
        if not found and wanted.startswith("b2:"):
            found = [one for one in self.terms if one.startswith(wanted)]
        return sorted(found, key=self._age)

    def reading(self, about: Digest) -> Reading:
        """All that is known about one reading."""
        said = sorted((self._said[key] for key in self._about.get(about, ())), key=lambda one: one.order)
        return Reading(
            about,
            self.terms.get(about),
            tuple((one.mesh, one.author) for one in said if one.slot == Slot.PROPOSE),
            tuple(sorted(self._users(about))),
            tuple((one.mesh, one.author) for one in said if one.slot == Slot.CONTEST and not self._came_round(one)),
            tuple((one.mesh, one.author) for one in said if one.slot == Slot.USE and one.uses and not one.person),
        )

    def contested(self, name: str) -> bool:
        """Whether a word is read in more than one way: one reading is contested, or two are in use."""
        readings = [self.reading(one) for one in self.find(name)]
        return any(one.contested for one in readings) or sum(bool(one.used) for one in readings) > 1

    # Within

    def _users(self, about: Digest) -> set[MeshId]:
        """The meshes that use a reading. Only those that spoke of it are looked at: there may be very many others."""
        told = {mesh for mesh, digests in self.told.items() if about in digests}
        spoke = {key.mesh for key in self._about.get(about, ()) if key.slot == Slot.USE} - self.told.keys()
        term = self.terms.get(about)
        name = None if term is None else fold(term.name)
        return told | {mesh for mesh in spoke if name is not None and self.uses(mesh).get(name) == about}

    def _came_round(self, contest: Said) -> bool:
        """Whether who contested a reading has adopted it since."""
        key = contest.key
        use = self._said.get(Key(key.mesh, key.author, key.digest, Slot.USE))
        return use is not None and use.uses and use.order > contest.order

    def _age(self, about: Digest) -> tuple[tuple[int, bytes], Digest]:
        first = min((self._said[key].order for key in self._about.get(about, ())), default=(2**63, b""))
        return first, about

    def _put(self, said: Said) -> None:
        key = said.key
        self._said[key] = self._changed.said[key] = said
        self._of.setdefault(key.mesh, set()).add(key)
        self._about.setdefault(key.digest, set()).add(key)
        self._uses.pop(key.mesh, None)

    def _drop(self, key: Key) -> None:
        del self._said[key]
        self._changed.said[key] = None
        _unlink(self._of, key.mesh, key)
        _unlink(self._about, key.digest, key)
        self._uses.pop(key.mesh, None)
        self._let_go(key.digest)

    def _is_spoken_of(self, about: Digest) -> bool:
        return about in self._about or any(about in told for told in self.told.values())

    def _let_go(self, about: Digest) -> None:
        """Forget a term that nobody speaks of any more."""
        if about in self.terms and not self._is_spoken_of(about):
            _unlink(self._named, fold(self.terms.pop(about).name), about)
            self._changed.terms[about] = None
            self._look_again(about)

    def _look_again(self, about: Digest) -> None:
        """What those use who spoke of a term is to be worked out anew."""
        for key in self._about.get(about, ()):
            self._uses.pop(key.mesh, None)

    def _trim(self, mesh: MeshId) -> None:
        """Keep within bounds what a mesh has said; the oldest goes first, and what it uses last."""
        if self._knows(mesh) or mesh == self.me:
            pool = [self._of.get(mesh, set[Key]())]
        else:
            pool = [said for one, said in self._of.items() if one != self.me and not self._knows(one)]
        if sum(map(len, pool)) > MAX_SAID + SLACK:
            keys = [key for said in pool for key in said]
            keys.sort(key=lambda key: (key.slot == Slot.USE and not key.author, self._said[key].order))
            for key in keys[: len(keys) - MAX_SAID]:
                self._drop(key)


def _unlink(index: dict[Place, set[Item]], place: Place, item: Item) -> None:
    index[place].discard(item)
    if not index[place]:
        del index[place]
