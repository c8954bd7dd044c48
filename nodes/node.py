"""A node at work: its parts, joined by one task group."""

import asyncio
import contextlib
import itertools
import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import structlog

from mesh.bus.base import Bus
from mesh.clock import Clock
from mesh.entries import Entry, find
from mesh.errors import MeshError
from mesh.forgetting import Forgetting, Own
from mesh.ledger import Ledger
from mesh.outbox import Outbox
from mesh.store import Store
from mesh.trust import Trust
from mesh.words import plain
from nodes.companion import Alone, Companion
from nodes.config import MeshConfig
from nodes.em import MAX_MEMORY_FILES, Em, load_ems
from nodes.errors import HomeError, NodeError
from nodes.media import Media
from nodes.passports import standing
from nodes.picture import pictures
from nodes.runtime import Parts, Runtime
from nodes.speaker import Models
from nodes.turns import Taken
from protocol.acts import RANDOM_BYTES, Act, ActId, new_id, reply_key
from protocol.address import Subject, check_name
from protocol.budget import Budget
from protocol.certificate import Certificate
from protocol.frame import EPHEMERAL, encode_frame
from protocol.husk import is_husk
from protocol.keys import MeshId, NodeId, Signer

PARTIALS: Final = 256  # words-so-far that wait to be shown; when full, new ones are dropped: the reply comes anyway
SETTLE_S: Final = 0.01  # between two looks whether everything is stored
WATCH_S: Final = 2.0  # between two looks at the em folders
MINUTE_MS: Final = 60_000

log = structlog.get_logger(__name__)

Change = tuple[str, int, int]  # a file's name, when it was written (ns) and its bytes; 0 for what cannot be read
Signature = tuple[Change, ...]  # all files of an em


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this node is, and whom it believes."""

    signer: Signer
    certificate: Certificate
    trust: Trust
    client: NodeId  # the key that the owner's other programs sign their requests with

    @property
    def mesh(self) -> MeshId:
        """Whose node it is."""
        return self.certificate.mesh


@dataclass(frozen=True, slots=True)
class Ground:
    """What a node stands on; nodes.commands chooses it. `media` is where pictures are, None for nowhere."""

    bus: Bus
    store: Store
    models: Models
    clock: Clock
    media: Media | None = None


class Node:
    """One node: run it until it is cancelled."""

    def __init__(self, config: MeshConfig, ems: Path, identity: Identity, ground: Ground) -> None:
        """`ems` is the folder of em folders; it is watched while the node runs."""
        self.config, self.identity, self.ground = config, identity, ground
        forgetting = Forgetting(ground.store, Own(identity.mesh, identity.signer), self._forget)
        self.ledger = Ledger(ground.bus, ground.store, identity.trust, ground.clock, self._hear, forgetting)
        self.outbox = Outbox(
            ground.bus, ground.store, identity.signer, identity.certificate, ground.clock, self.ledger.take
        )
        parts = Parts(
            identity.mesh,
            reply_key(identity.signer),
            ground.store,
            self.outbox,
            ground.models,
            ground.clock,
            self._show,
            self._ended,
            config.limits.queue,
        )
        self.runtime = Runtime(parts, self._mint)
        self.companion: Companion = Alone()
        self.ready = asyncio.Event()
        self._ems = ems
        self._signature: Mapping[str, Signature] | None = None
        self._told: frozenset[str] = frozenset()
        self._lapse_ms: int | None = None  # when the next loan of an em ends, or is to be warned of
        self._partials: asyncio.Queue[tuple[str, Act]] = asyncio.Queue(PARTIALS)

    async def run(self) -> None:
        """Hear what was said while the node was away, then speak. Raises MeshError, within an ExceptionGroup."""
        await self.load()
        async with asyncio.TaskGroup() as group:

            def caught_up() -> None:
                self.outbox.resume(self._sequences())
                group.create_task(self.outbox.run(), name="outbox")
                group.create_task(self.runtime.run(), name="runtime")
                group.create_task(self._send_partials(), name="partials")
                group.create_task(self._watch(), name="watch")
                group.create_task(self.companion.run(), name="companion")
                self.ready.set()

            durable = f"node-{self.identity.mesh[:12]}"
            group.create_task(self.ledger.run(durable, caught_up, self._proceed), name="ledger")

    async def say(self, basin: str, text: str, refs: list[ActId], kind: str = "say", **more: Any) -> Act:  # noqa: ANN401 - a body
        """Say something in the person's name: a root, with the basin's budget. Returns when the stream has it."""
        return await self._begin(basin, self.config.human, refs, kind, {"text": text, **more})

    async def redact(self, identity: ActId, reason: str) -> Act:
        """Take back what the person said, or one of this node's ems; in the name of its author, who alone may.

        Returns when the stream has it; the words go when it is heard. Raises NodeError.
        """
        entry = find(self.ground.store, identity, self.identity.mesh) or find(self.ground.store, identity)
        if entry is None:
            raise NodeError(f"no act {identity.hex()} is known here")
        author, ours = entry.act.author, entry.mesh == self.identity.mesh
        if not ours or not (author == self.config.human or self.runtime.turns.spoke(author)):
            raise NodeError(f"{plain(author)} said that; only what you or your own ems said can be taken back here")
        if is_husk(entry.act):
            raise NodeError(f"{identity.hex()} has been taken back before")
        return await self._begin(entry.basin, author, [identity], "redact", {"text": reason})

    async def _begin(self, basin: str, author: str, refs: list[ActId], kind: str, body: dict[str, Any]) -> Act:
        """Say a root."""
        act = self.root(basin, author, refs, kind, body)
        await self.outbox.say(basin, act)
        return act

    def root(self, basin: str, author: str, refs: list[ActId], kind: str, body: dict[str, Any]) -> Act:
        """An act that begins a chain with the basin's budget; it is not said yet."""
        now = self.ground.clock()
        identity = new_id(now, secrets.token_bytes(RANDOM_BYTES))
        return Act(identity, kind, author, refs, identity, self._mint(check_name(basin), now), now, body)

    def _mint(self, basin: str, now_ms: int) -> Budget:
        """What a chain that begins now in a basin may spend."""
        budget = self.config.basin(basin).budget
        return Budget(budget.hops, budget.acts, budget.tokens, now_ms + int(budget.minutes * MINUTE_MS))

    async def load(self) -> bool:
        """Read what changed in the em folders and host what is in them now; returns whether anything changed.

        An em whose folder has become unreadable goes on as it was: a slip in its settings must not silence it.
        """
        signature = await asyncio.to_thread(_signature, self._ems)
        now = self.ground.clock()
        if signature == self._signature and (self._lapse_ms is None or now < self._lapse_ms):
            return False
        before, self._signature = self._signature or {}, signature
        same = {name: em for name, em in self.runtime.ems.items() if before.get(name) == signature.get(name)}
        ems, problems = await asyncio.to_thread(load_ems, self._ems, same)
        read = {em.name for em in ems}
        ems += [em for name, em in self.runtime.ems.items() if signature.get(name) and name not in read]
        seen = await asyncio.to_thread(standing, ems, self.identity.mesh, now)
        ems, self._lapse_ms, problems = seen.ems, seen.next_ms, [*problems, *seen.told]
        for problem in problems:
            if problem not in self._told:
                log.warning("an em has a problem", problem=problem)
        self._told = frozenset(problems)
        self.host(ems)
        return True

    def host(self, ems: Iterable[Em] | None = None) -> None:
        """Host these ems, or the same as before, where their settings and the companion have them listen."""
        hosted = list(self.runtime.ems.values()) if ems is None else ems
        self.runtime.host(hosted, self._listens, self.companion.basins())
        self.companion.hosted()

    def _listens(self, em: Em, basin: str) -> bool:
        there = self.companion.listens(em.name, basin)
        return em.listens(basin, self.config.basin(basin).listeners) if there is None else there

    def _hear(self, entries: Sequence[Entry]) -> None:
        self.runtime.hear(entries)
        self.companion.hear(entries)

    def _ended(self, turn: Taken, act: Act | None) -> None:
        self.companion.ended(turn, act)

    def _forget(self, entries: Sequence[Entry]) -> None:
        """Let go of acts that are taken back, and of the pictures that they showed."""
        self.runtime.forget(entries)
        for picture in itertools.chain.from_iterable(pictures(entry.act) for entry in entries):
            if self.ground.media is not None and not self._is_shown(picture.sha256):
                with contextlib.suppress(HomeError):  # pruning takes it later
                    self.ground.media.forget(picture.sha256)

    def _is_shown(self, sha256: str) -> bool:
        """Whether any act that is kept shows a picture. Reads all frames: a picture is seldom taken back."""
        sql = "SELECT 1 FROM frames WHERE instr(frame, ?) LIMIT 1"
        return self.ground.store.one(sql, (sha256.encode(),)) is not None

    def _proceed(self) -> None:
        self.runtime.proceed()
        self.companion.proceed()

    async def drain(self, timeout_s: float) -> bool:
        """Begin nothing new, end what is being written and have it stored; returns whether there was time for it."""
        try:
            async with asyncio.timeout(timeout_s):
                await self.runtime.drain()
                while await self._busy():  # noqa: ASYNC110 - it ends in other tasks, and in another process
                    await asyncio.sleep(SETTLE_S)
        except (TimeoutError, MeshError):
            return False
        return True

    async def _busy(self) -> bool:
        """Whether anything is on its way to the stream, from it, or out of it."""
        if self.outbox.waiting() or self.ledger.erasing():
            return True
        return self.ledger.cursor < await self.ground.bus.last_seq()

    def _sequences(self) -> dict[str, int]:
        """The last sequence this node used, by basin."""
        me = NodeId(self.identity.signer.public)
        return self.ledger.marks_of(self.identity.mesh, me)

    def _show(self, basin: str, act: Act) -> None:
        self.companion.show(basin, act)
        with contextlib.suppress(asyncio.QueueFull):
            self._partials.put_nowait((basin, act))

    async def _send_partials(self) -> None:
        signer = self.identity.signer
        while True:
            basin, act = await self._partials.get()
            subject = Subject(False, basin, self.identity.mesh, NodeId(signer.public))
            frame = encode_frame(signer, EPHEMERAL, self.ground.clock(), basin, [act])
            await self.ground.bus.send(str(subject), frame)

    async def _watch(self) -> None:
        """Take up what a person changes in the em folders."""
        while True:
            await asyncio.sleep(WATCH_S)
            before = set(self.runtime.ems)
            if await self.load():
                after = set(self.runtime.ems)
                log.info(
                    "the em folders changed", ems=len(after), new=sorted(after - before), gone=sorted(before - after)
                )


def _signature(root: Path) -> dict[str, Signature]:
    """What changes when an em's files do, of every folder in `root`; nothing for a link that leads to none.

    Plain strings, since it looks at a thousand folders every two seconds: half the CPU of Path objects.
    """
    found: dict[str, Signature] = {}
    with contextlib.suppress(OSError), os.scandir(root) as entries:
        for entry in entries:
            if entry.is_dir():
                files = _changes(entry.path)
                memory = [_changes(f"{entry.path}/{name}") for name, _, _ in files if name.endswith(".chr")]
                found[entry.name] = (_change(entry), *files, *itertools.chain(*memory))
            elif entry.is_symlink():
                found[entry.name] = ()
    return found


def _changes(folder: str) -> list[Change]:
    """The state of each file in a folder; none for what is no folder, or cannot be read."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        return sorted(map(_change, itertools.islice(entries, MAX_MEMORY_FILES)))
    return []


def _change(entry: os.DirEntry[str]) -> Change:
    try:
        stat = entry.stat()
    except OSError:
        return entry.name, 0, 0
    return entry.name, stat.st_mtime_ns, stat.st_size
