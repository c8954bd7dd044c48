"""Listening through a node's restarts: what `mesh tap` and `mesh chat` share."""

import asyncio
from collections import OrderedDict
from typing import Any, Final, Protocol

from mesh.errors import BusRefused, BusUnavailable, MeshError
from nodes.client import Client, Heard, Inbox
from nodes.commands.assembly import connect
from nodes.control import shown_act
from nodes.errors import NodeError, NotRunning
from nodes.home import Home

BEAT_S: Final = 1.0  # between two looks at the node: who is writing, and whether it is still there
PROBE_S: Final = 5.0  # a node that takes longer to say how it is counts as away
RETRY_S: Final = 1.0  # between two attempts to find the node again
CAUGHT_UP: Final = 200  # acts of a basin that are shown after the node was away; older ones are in its history
REMEMBERED: Final = 4_096  # ids of acts that were shown, so that none is shown twice

Record = dict[str, Any]  # an act as nodes.control shows it: id, kind, author, basin, mesh, text, budget, …


class Audience(Protocol):
    """Who is told. None of these may wait."""

    def joined(self, client: Client) -> None:
        """The node is there (again); `client` serves until `away`."""
        ...

    def away(self) -> None:
        """The node went away; it is waited for."""
        ...

    def hear(self, record: Record) -> None:
        """An act, verified, once."""
        ...

    def writing(self, record: Record) -> None:
        """The words so far of the act that will have this id."""
        ...

    def beat(self, status: Record, missed: int, refused: int) -> None:
        """How the node is, about every BEAT_S, and how much could not be shown so far."""
        ...


class Follower:
    """Tells an audience what is said in a basin (None: in all of them), live and verified."""

    def __init__(self, home: Home, basin: str | None, audience: Audience) -> None:
        self._home, self._basin, self._audience = home, basin, audience
        self._seen: OrderedDict[str, None] = OrderedDict()
        self._told = -1  # everything up to this number was told, or is older than the listening; -1 before it began
        self._missed = self._refused = 0  # by earlier connections
        self._there = False

    async def run(self, last: int = 0, *, patient: bool = True) -> None:
        """Follow until cancelled, first telling the `last` acts. A `patient` one waits when the node goes away.

        Raises NotRunning when there is no node (any more), NodeError and MeshError when it refuses.
        """
        while True:
            try:
                async with connect(self._home) as client, client.listening(self._basin) as inbox:
                    await self._catch_up(client, last)
                    self._there = True
                    self._audience.joined(client)
                    await self._listen(client, inbox)
            except (NotRunning, BusUnavailable, BusRefused) as error:
                if self._told < 0 or not patient:
                    raise self._gone(error) from None
                if self._there:
                    self._there = False
                    self._audience.away()
            await asyncio.sleep(RETRY_S)

    def _gone(self, error: NodeError | MeshError) -> NodeError | MeshError:
        """What to say of a node that cannot be reached."""
        if self._told < 0 and not isinstance(error, BusUnavailable):
            return error
        more = "" if self._told < 0 else " any more"
        return NotRunning(f"the node of {self._home.path} does not answer{more}; start it with: mesh up")

    async def _catch_up(self, client: Client, last: int) -> None:
        """Tell what was said before, or while the node was away."""
        status = await _probe(client)
        self._audience.beat(status, self._missed, self._refused)
        first = self._told < 0
        limit = max(last, 1) if first else CAUGHT_UP
        basins = status["basins"] if self._basin is None else [self._basin]
        records = [record for basin in basins for record in await client.history(basin, limit)]
        records.sort(key=lambda record: record["n"])
        if first:
            for record in records[-last:] if last else []:
                self._tell(record)
        else:
            for record in records:
                if record["n"] > self._told:
                    self._tell(record)
        self._told = max([self._told, 0, *(record["n"] for record in records)])

    async def _listen(self, client: Client, inbox: Inbox) -> None:
        """Tell what comes. Raises NotRunning when the node is gone."""
        loop = asyncio.get_running_loop()
        missed, refused = self._missed, self._refused
        beat = loop.time() + BEAT_S
        while True:
            try:
                async with asyncio.timeout_at(beat):
                    self._take(await anext(inbox))
            except TimeoutError:
                status = await _probe(client)
                self._missed, self._refused = missed + inbox.missed, refused + inbox.refused
                self._audience.beat(status, self._missed, self._refused)
                beat = loop.time() + BEAT_S

    def _take(self, heard: Heard) -> None:
        act = heard.act
        record = {"basin": heard.basin, "mesh": heard.mesh, **shown_act(act)}
        if heard.kept:
            self._tell(record)
        elif act.kind == "attend" and act.body.get("state") == "writing":
            self._audience.writing(record)

    def _tell(self, record: Record) -> None:
        if record["id"] in self._seen:
            return
        self._seen[record["id"]] = None
        if len(self._seen) > REMEMBERED:
            self._seen.popitem(last=False)
        self._audience.hear(record)


async def _probe(client: Client) -> Record:
    """How the node is. Raises NotRunning when it does not say."""
    try:
        async with asyncio.timeout(PROBE_S):
            return await client.status()
    except TimeoutError:
        raise NotRunning(f"the node did not answer within {PROBE_S:g} s") from None
