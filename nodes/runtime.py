"""The runtime performs what the pure parts decide: it hears acts, lets ems take their turns, and speaks for them."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import structlog

from mesh.clock import Clock
from mesh.entries import Entry, at, find, recent
from mesh.errors import MeshError
from mesh.forgetting import forgotten_among, is_unwanted
from mesh.outbox import Outbox
from mesh.store import Store
from nodes.chains import Chains, Mint
from nodes.chatlog import Line
from nodes.em import Em
from nodes.errors import ModelError, ModelRefused
from nodes.models.base import Usage
from nodes.prompt import tokens
from nodes.purse import Purse
from nodes.room import TAIL, Room
from nodes.speaker import Draft, Models, Reply, ask, draft
from nodes.spoken import Spoken, split
from nodes.turn import Roster, decide
from nodes.turns import Ending, Taken, Turns
from nodes.words.lore import Lore, NoLore
from protocol.acts import Act, ActId, reply_id
from protocol.budget import Budget
from protocol.keys import MeshId

RETRY: Final = "retry"
GONE: Final = "what it would answer was taken back"
UNWANTED: Final = "it was taken back while it was being written"
ASKED: Final = {RETRY: "a person asked for another try", "continue": "a person asked it to go on"}  # by `do`

log = structlog.get_logger(__name__)

Show = Callable[[str, Act], None]  # basin and an `attend` act with the words so far; never stored
Placed = tuple[str, Act]  # a basin and an act that is to be said there
Ended = Callable[[Taken, Act | None], None]  # a turn and the reply it came to; within the transaction that records it


@dataclass(frozen=True, slots=True)
class Parts:
    """What a runtime is made of."""

    mesh: MeshId
    reply_key: bytes  # see protocol.acts
    store: Store
    outbox: Outbox
    models: Models
    clock: Clock
    show: Show
    ended: Ended
    queue: int  # turns an em may have before it; beyond that it skips to what is newer


class Runtime:
    """Hosts ems: a queue each, and a task each while it has something to do."""

    def __init__(self, parts: Parts, mint: Mint | None = None) -> None:
        """`mint` tells what a chain gets here, at most, that another mesh began; None: what that mesh says."""
        self._parts = parts
        self.turns = Turns(parts.store)
        self.chains = Chains(parts.mesh, mint, self._sharers)
        self.purse = Purse(self.chains, parts.models, self.turns, parts.clock)
        self.words: Lore = NoLore()
        self.rooms: dict[str, Room] = {}
        self.ems: dict[str, Em] = {}
        self._taken: list[Taken] = []
        self._queues: dict[str, deque[Taken]] = {}
        self._scopes: dict[str, tuple[Taken, asyncio.Timeout]] = {}
        self._group: asyncio.TaskGroup | None = None
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()

    def _sharers(self, basin: str) -> int:
        return self.purse.quotas.sharers(basin)

    def host(self, ems: Iterable[Em], listens: Callable[[Em, str], bool], basins: Iterable[str] = ()) -> None:
        """Host exactly these ems from now on. `listens` tells who listens where; rooms keep what they remember.

        `basins` are those that matter beside the ones which the ems' settings name.
        """
        self.ems = {em.name: em for em in ems}
        at_start = not self.rooms
        named = {basin for em in self.ems.values() for basin in em.settings.basins}
        for basin in named | set(self.rooms) | set(basins):
            roster = Roster(em for em in self.ems.values() if listens(em, basin))
            if basin in self.rooms:
                self.rooms[basin].roster = roster
            else:
                self.rooms[basin] = self._recall(basin, roster, at_start=at_start)

    def hear(self, entries: Sequence[Entry]) -> None:
        """Take in new acts and decide who answers. Called within the ledger's transaction."""
        silences = list[tuple[bytes, dict[str, list[str]]]]()
        for entry in entries:
            self.chains.hear(entry)
            if self.chains.is_stop(entry):
                self._halt(lambda turn, basin=entry.basin: turn.basin == basin)
            if entry.act.kind == "redact" and entry.act.refs and entry.mesh == self._parts.mesh:
                redact = entry.act
                self._halt(lambda turn, redact=redact: (turn.id, turn.em) == (redact.refs[0], redact.author))
            if room := self.rooms.get(entry.basin):
                room.hear(entry)
                if silent := self._decide(room, entry):
                    silences.append((entry.act.id, silent))
        if silences:
            self.turns.keep_silent(silences)

    def forget(self, entries: Sequence[Entry]) -> None:
        """Let go of what was taken back, of the prompts it was in, and of answers to it that are being written.

        Called within the ledger's transaction.
        """
        for entry in entries:
            if room := self.rooms.get(entry.basin):
                room.forget(entry)
        self.turns.forget(entries)
        gone = {entry.n for entry in entries}
        self._halt(lambda turn: turn.place in gone)

    def proceed(self) -> None:
        """Begin the turns that the last transaction decided. Called after it has committed."""
        taken, self._taken = self._taken, []
        for turn in taken:
            self._queue(turn)

    async def run(self) -> None:
        """Take turns until cancelled; first those that a crash interrupted."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            for act in self._parts.outbox.acts():
                self.chains.promise(act)
            self._taken.clear()
            self._queues.clear()
            for turn in self.turns.open():
                self._queue(turn)
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                self._group = None  # what is still heard while all ends waits for the next start

    async def drain(self) -> None:
        """Begin no further turns and wait for those that run; what waits is taken up at the next start."""
        self._draining = True
        await self._idle.wait()

    def speaking(self) -> list[str]:
        """The ems that are writing now."""
        return sorted(self._scopes)

    def _recall(self, basin: str, roster: Roster, *, at_start: bool) -> Room:
        """A room with what was said in it. Chains hear of it at the start alone: later they have heard it live."""
        room = Room(basin, roster, self._parts.mesh)
        for entry in recent(self._parts.store, basin, TAIL):
            if at_start:
                self.chains.hear(entry)
            room.hear(entry)
        return room

    def _decide(self, room: Room, entry: Entry) -> dict[str, list[str]]:
        """Record who answers; gives who does not, by reason."""
        act, now = entry.act, self._parts.clock()
        heard = room.roster.hear(
            entry, self._answered(room, entry), self.chains.spent(act, now), is_ours=entry.mesh == self._parts.mesh
        )
        silent: dict[str, list[str]] = {}
        for em in room.roster.ems.values():
            decision = decide(em, heard)
            if not decision.answers:
                silent.setdefault(decision.rule, []).append(em.name)
                continue
            self._decided(em.name, entry, decision.rule, now)
        if asked := self._asked(entry):
            em_name, rule = asked
            self._decided(em_name, entry, rule, now)
        return silent

    def _decided(self, em: str, entry: Entry, rule: str, now_ms: int) -> None:
        """Record that an em is to answer an act, once."""
        identity = reply_id(self._parts.reply_key, em, entry.mesh, entry.act, 0)
        turn = Taken(identity, em, entry.act.id, entry.basin, rule, now_ms, entry.n)
        if self.turns.take(turn):
            self._taken.append(turn)

    def _asked(self, entry: Entry) -> tuple[str, str] | None:
        """The em that a person's reaction asks for another turn, and the rule that says so."""
        rule = ASKED.get(str(entry.act.body.get("do")))
        if entry.act.kind != "react" or not entry.act.is_root or entry.mesh != self._parts.mesh or rule is None:
            return None
        target = find(self._parts.store, entry.act.refs[0], self._parts.mesh) if entry.act.refs else None
        if target is None or target.act.author not in self.ems:
            return None
        em = self._sitting(target.act.author, entry.basin)
        is_able = em is not None and not em.settings.mute and target.basin == entry.basin
        return (target.act.author, rule) if is_able and target.act.refs else None

    def _sitting(self, name: str, basin: str) -> Em | None:
        """An em that listens in a basin."""
        room = self.rooms.get(basin)
        return room.roster.ems.get(name) if room else None

    def _about(self, entry: Entry) -> tuple[ActId, MeshId | None]:
        """What a turn's prompt ends with: what it answers, or what a reaction wants redone or continued; and whose."""
        if entry.act.kind != "react":
            return entry.act.id, entry.mesh
        target, mesh = entry.act.refs[0], self._parts.mesh
        tried = find(self._parts.store, target, mesh) if entry.act.body.get("do") == RETRY else None
        return (tried.act.refs[0], None) if tried and tried.act.refs else (target, mesh)

    def _answered(self, room: Room, entry: Entry) -> str | None:
        """The em whose act a person answers. Ems answer one another all the time: that alone addresses nobody."""
        if not entry.act.refs or not entry.act.is_root or entry.act.body.get("bot") is True:
            return None
        said, mesh = entry.act.refs[0], self._parts.mesh
        target = room.find(said, mesh) or find(self._parts.store, said, mesh)
        if target is None or target.act.author not in self.ems:
            return None
        return target.act.author

    def _queue(self, turn: Taken) -> None:
        queue = self._queues.setdefault(turn.em, deque())
        queue.append(turn)
        if len(queue) > self._parts.queue:
            self._end(
                queue.popleft(),
                Ending("silent", f"it fell behind by more than {self._parts.queue} and skipped to what is newer"),
            )
        if self._group is not None and not self._draining and turn.em not in self._scopes:
            scope = asyncio.timeout(None)
            self._scopes[turn.em] = (turn, scope)
            self._idle.clear()
            self._group.create_task(self._work(turn.em), name=f"em {turn.em}")

    async def _work(self, name: str) -> None:
        try:
            while not self._draining and (queue := self._queues.get(name)):
                await self._take(queue.popleft())
        finally:
            self._scopes.pop(name, None)
            if not self._scopes:
                self._idle.set()

    async def _take(self, turn: Taken) -> None:
        """One turn, to its end. Whatever goes wrong with it stays with it; a failing store ends the node."""
        self._scopes[turn.em] = (turn, asyncio.timeout(None))  # that of the turn before cannot be ended any more
        store = self._parts.store
        em, entry = self.ems.get(turn.em), at(store, turn.place) if turn.place else find(store, turn.act)
        if em is None or entry is None:
            gone = "the em is no longer here" if em is None else "what it would answer is gone"
            self._end(turn, Ending("silent", gone))
            return
        try:
            ending, acts = await self._reply(em, turn, entry)
        except MeshError:
            raise
        except Exception as error:
            log.exception("a turn failed", em=em.name)
            ending, acts = Ending("silent", f"a mistake in the node: {type(error).__name__}"), ()
        self._end(turn, ending, acts)

    async def _reply(self, em: Em, turn: Taken, entry: Entry) -> tuple[Ending, Sequence[Placed]]:
        room = self.rooms.get(turn.basin)
        about, mesh = self._about(entry)
        heard, lines = room.until(about, mesh) if room else (0, list[Line]())
        if not lines or lines[-1].source != f"act:{about.hex()}":
            return Ending("silent", f"{GONE}, or is too long ago"), ()
        glosses = self.words.glosses(lines[-1].text, turn.basin) if em.settings.vocabulary else ()
        try:
            plan = await draft(em, self._parts.models, heard, lines, int.from_bytes(turn.id[8:], "big"), glosses)
        except ModelError as error:
            return Ending("silent", str(error)), ()
        if gone := self._gone(turn, entry):  # while the prompt was made
            return Ending("silent", gone), ()
        made_from = (plan.request.model, plan.request.turns)
        if reason := self.purse.reserve(em, entry, plan):
            return Ending("silent", reason, *made_from), ()
        reply, usage, outcome = None, Usage(0, 0), "it said nothing"
        try:
            reply = await self._write(em, turn, entry, plan)
            usage = reply.usage
        except (ModelError, TimeoutError, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError) and _is_cancelled():
                raise
            outcome = self._failed(turn, entry, error)
            usage = Usage(0, 0) if isinstance(error, ModelRefused) else Usage(tokens(plan.request.turns), 0)
            told = log.info if self.chains.stopped(entry.act) or outcome in {GONE, UNWANTED} else log.warning
            told("an em could not answer", em=em.name, model=plan.request.model, reason=outcome)
        finally:
            budget = self.purse.settle(entry, plan, usage)
        gone = self._gone(turn, entry)  # maybe in the very moment when it was ready
        if reply is None or not reply.text or gone:
            return Ending("silent", gone or outcome, *made_from, usage), ()
        acts = self._speak(em, turn, entry, reply.text, budget)
        return Ending("spoken", "spoken", *made_from, usage), acts

    def _speak(self, em: Em, turn: Taken, entry: Entry, text: str, budget: Budget) -> Sequence[Placed]:
        """A reply as acts, each in its basin: the em's words, and what it does beside them as far as the chain lasts.

        Their ids follow from what is answered, and so stay the same however often the reply is made.
        """
        answered = entry.act
        kind = "answer" if answered.kind == "ask" else "say"
        words, spoken = split(text, em.settings.acts, lambda name: self.words.meant(name, turn.basin))
        spoken.sort(key=lambda one: one.basin is not None)  # wishes last: the first act has the turn's id and place
        if words:
            spoken.insert(0, Spoken(kind, words))
        now, placed = self._parts.clock(), list[Placed]()
        for number, one in enumerate(spoken):
            if number and self.chains.reserve(answered, 0, now):
                break
            left = self.chains.settle(answered, 0, 0) if number else budget
            identity = reply_id(self._parts.reply_key, em.name, entry.mesh, answered, number) if number else turn.id
            act = Act(ActId(identity), one.kind, em.name, [answered.id], answered.root, left, now, one.body)
            self.chains.promise(act)
            placed.append((one.basin or turn.basin, act))
        return placed

    async def _write(self, em: Em, turn: Taken, entry: Entry, plan: Draft) -> Reply:
        """Ask the model, within the chain's time; a person's stop ends it at once."""
        left_s = (entry.act.budget.until_ms - self._parts.clock()) / 1000
        async with asyncio.timeout(left_s) as scope:
            self._scopes[em.name] = (turn, scope)

            def show(text: str) -> None:
                body = {"text": text, "state": "writing"}
                act, now = entry.act, self._parts.clock()
                self._parts.show(
                    turn.basin, Act(ActId(turn.id), "attend", em.name, [act.id], act.root, act.budget, now, body)
                )

            show("")
            await asyncio.sleep(em.settings.delay_s)
            return await ask(em, self._parts.models, plan.request, show)

    def _failed(self, turn: Taken, answered: Entry, error: BaseException) -> str:
        if isinstance(error, ModelError):
            return str(error)
        if isinstance(error, asyncio.CancelledError):
            return "the model gave the call up"
        if gone := self._gone(turn, answered):
            return gone
        return "a person stopped it" if self.chains.stopped(answered.act) else "the chain's time was over"

    def _gone(self, turn: Taken, entry: Entry) -> str | None:
        """Why a turn is not to be ended by its words: what it answers, or these themselves, have been taken back."""
        store, (about, mesh) = self._parts.store, self._about(entry)
        if forgotten_among(store, [entry.act.id], entry.mesh) or forgotten_among(store, [about], mesh):
            return GONE
        return UNWANTED if is_unwanted(store, turn.id, self._parts.mesh, turn.em) else None

    def _end(self, turn: Taken, ending: Ending, acts: Sequence[Placed] = ()) -> None:
        """Record the end of a turn, and with it the acts that are to be said."""
        with self._parts.store.transaction():
            self.turns.end(turn, ending, self._parts.clock())
            waiting = [self._parts.outbox.put(basin, act) for basin, act in acts]
            self._parts.ended(turn, acts[0][1] if acts else None)
        for one in waiting:
            self._parts.outbox.send(one)

    def _halt(self, ends: Callable[[Taken], bool]) -> None:
        """End the turns that are being written of which `ends` is true."""
        for turn, scope in self._scopes.values():
            if scope.when() is not None and not scope.expired() and ends(turn):
                scope.reschedule(asyncio.get_running_loop().time())


def _is_cancelled() -> bool:
    """Whether the running task itself is to end, rather than something that it waits for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
