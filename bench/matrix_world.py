"""What `bench/matrix.py` measures in: a real Synapse, people with bare clients, and nodes in processes of their own."""

import asyncio
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import aiohttp
from aiohttp import web

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from homeserver import SERVER_NAME, Synapse, free_port
from openai_server import Answer, FakeOpenAI
from process import client, make_home, up

from mesh.bridges.matrix.account import log_in
from mesh.bridges.matrix.content import MARK
from mesh.bridges.matrix.registration import Registration, new_registration
from nodes.client import Client
from nodes.home import Home
from nodes.matrix.login import Listening, Login, write_login

PATIENCE_S: Final = 60.0
CALM: Final = 5  # looks in a row at a node that does nothing, until it is believed
LOOK_S: Final = 0.05
AT_ONCE: Final = 16  # model calls
READY: Final = 10_000  # replies that the model has ready
BUDGET: Final = {"budget": {"hops": 1, "acts": 8}}
FILTER: Final = json.dumps({"presence": {"types": []}, "room": {"timeline": {"limit": 50}}})


class Person:
    """A person with as little client as there can be, which keeps when it saw what."""

    def __init__(self, url: str, login: dict[str, Any]) -> None:
        self.id: str = login["user_id"]
        self._url = f"{url}/_matrix/client/v3"
        self._session = aiohttp.ClientSession(headers={"Authorization": f"Bearer {login['access_token']}"})
        self._numbers = itertools.count()
        self._changed = asyncio.Event()
        self.seen: dict[str, float] = {}  # event → when; likewise the first and the whole reply to an event
        self.first: dict[str, float] = {}
        self.whole: dict[str, float] = {}
        self._asked: dict[str, str] = {}  # reply → what it is a reply to

    async def close(self) -> None:
        """Hang up."""
        await self._session.close()

    async def call(self, method: str, path: str, body: object = None, **query: str) -> dict[str, Any]:
        """One request, which must succeed."""
        async with self._session.request(method, self._url + path, json=body, params=query) as answer:
            assert answer.status == 200, await answer.text()
            return await answer.json()

    async def room(self, *others: "Person") -> str:
        """A new room that anybody may join, with these people."""
        room = str((await self.call("POST", "/createRoom", {"preset": "public_chat"}))["room_id"])
        for other in others:
            await other.call("POST", f"/join/{quote(room)}", {})
        return room

    async def say(self, room: str, text: str) -> str:
        """Say something; returns the event's id."""
        path = f"/rooms/{quote(room)}/send/m.room.message/bench{next(self._numbers)}"
        return str((await self.call("PUT", path, {"msgtype": "m.text", "body": text}))["event_id"])

    async def messages(self, room: str) -> list[dict[str, Any]]:
        """All messages of a room, oldest first."""
        found, query = list[dict[str, Any]](), dict[str, str]()
        while True:
            page = await self.call("GET", f"/rooms/{quote(room)}/messages", dir="f", limit="500", **query)
            found += [event for event in page["chunk"] if event["type"] == "m.room.message"]
            if not page["chunk"] or "end" not in page:
                return found
            query = {"from": page["end"]}

    async def watch(self) -> None:
        """Sync until cancelled, as every client does."""
        since = dict[str, str]()
        while True:
            answer = await self.call("GET", "/sync", filter=FILTER, timeout="30000" if since else "0", **since)
            now, since = time.perf_counter(), {"since": str(answer["next_batch"])}
            for room in answer.get("rooms", {}).get("join", {}).values():
                for event in room["timeline"]["events"]:
                    self._take(event, now)
            self._changed.set()

    def _take(self, event: dict[str, Any], now: float) -> None:
        identity, content = str(event["event_id"]), event["content"]
        self.seen.setdefault(identity, now)
        asked = answered(event)
        if asked is None:
            asked = self._asked.get(content.get("m.relates_to", {}).get("event_id", ""))  # an edit of a reply
        if asked is None:
            return
        self._asked[identity] = asked
        self.first.setdefault(asked, now)
        shown = content.get("m.new_content", content)
        if not (shown.get(MARK) or content.get(MARK, {})).get("writing"):
            self.whole[asked] = now

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until what was seen is so."""
        async with asyncio.timeout(PATIENCE_S):
            while not holds():
                self._changed.clear()
                await self._changed.wait()


def answered(event: dict[str, Any]) -> str | None:
    """What an event is a reply to."""
    return event["content"].get("m.relates_to", {}).get("m.in_reply_to", {}).get("event_id")


class Tap:
    """Stands before a node's listener and keeps what the homeserver pushes."""

    def __init__(self, target: str) -> None:
        self._target, self.port = target, free_port()
        self.pushes: list[tuple[str, bytes]] = []  # authorization, body

    @asynccontextmanager
    async def running(self) -> AsyncGenerator["Tap"]:
        """Pass requests on, for the block."""
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_route("*", "/{path:.*}", self._pass)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        async with aiohttp.ClientSession() as self._session:
            await web.TCPSite(runner, "127.0.0.1", self.port).start()
            try:
                yield self
            finally:
                await runner.cleanup()

    async def _pass(self, request: web.Request) -> web.Response:
        body, who = await request.read(), request.headers.get("Authorization", "")
        if "/transactions/" in request.path:
            self.pushes.append((who, body))
        return web.Response(status=await self._send(request.method, request.raw_path, who, body), body=b"{}")

    async def _send(self, method: str, path: str, who: str, body: bytes) -> int:
        headers = {"Authorization": who, "Content-Type": "application/json"}
        try:
            async with self._session.request(method, self._target + path, data=body, headers=headers) as answer:
                await answer.read()
                return answer.status
        except aiohttp.ClientError:
            return 502

    async def again(self) -> int:
        """Push everything once more, in transactions of other names; returns how many events that were."""
        before = list(self.pushes)
        for number, (who, body) in enumerate(before):
            status = await self._send("PUT", f"/_matrix/app/v1/transactions/again{number}", who, body)
            assert status == 200
        return sum(len(json.loads(body)["events"]) for _, body in before)

    def carrying(self, event: str) -> int:
        """How many pushes held an event."""
        return sum(any(one.get("event_id") == event for one in json.loads(body)["events"]) for _, body in self.pushes)


@dataclass
class World:
    """A homeserver, who speaks and who watches, and where homes are made. `models` answers at once."""

    folder: Path
    synapse: Synapse
    ways: list[tuple[Registration, int, Tap]]
    models: FakeOpenAI
    speaker: Person
    watcher: Person
    names: "itertools.count[int]" = field(default_factory=itertools.count)

    def home(self, ems: Mapping[str, Sequence[str]]) -> Home:
        """A home with these ems, each listening in its basins, that asks our models."""
        basins = sorted({basin for listened in ems.values() for basin in listened} | {"yappings"})
        vendor = {"base_url": self.models.url, "provides": ["stub"], "concurrency": AT_ONCE}
        config = {
            "basins": dict.fromkeys(basins, BUDGET),
            "models": {"default": "stub", "vendors": {"bench": vendor}},
            "limits": {"model_calls": AT_ONCE},
            "matrix": {"messages_per_minute": 10_000},
        }
        settings = {em: f"basins: [{', '.join(listened)}]\n" for em, listened in ems.items()}
        return make_home(self.folder / f"home{next(self.names)}", settings, config)

    def by_appservice(self, home: Home) -> Tap:
        """Log a home in as an appservice."""
        registration, port, tap = self.ways.pop()
        login = Login(self.synapse.url, self.speaker.id, registration, Listening("127.0.0.1", port))
        write_login(home.keys, login)
        return tap

    async def by_account(self, home: Home) -> None:
        """Log a home in as an ordinary user."""
        name = f"node{next(self.names)}"
        await self.synapse.register(name, "secret")
        session = await log_in(self.synapse.url, name, "secret")
        write_login(home.keys, Login(self.synapse.url, self.speaker.id, account=session))


@asynccontextmanager
async def world(ways: int, *, tapped: bool = False) -> AsyncGenerator[World]:
    """A new world in which so many nodes can be appservices, for the block."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        made = [_way(number, tapped=tapped) for number in range(ways)]
        for _, _, tap in made:
            await stack.enter_async_context(tap.running())
        (folder / "synapse").mkdir()
        synapse = Synapse(folder / "synapse", [registration.text() for registration, _, _ in made])
        await stack.enter_async_context(synapse)
        models = await stack.enter_async_context(FakeOpenAI())
        models.play(*[Answer(("Indeed.",))] * READY)
        speaker, watcher = [await stack.enter_async_context(person(synapse, name)) for name in ("speaker", "watcher")]
        group = await stack.enter_async_context(asyncio.TaskGroup())
        task = group.create_task(watcher.watch())
        yield World(folder, synapse, made, models, speaker, watcher)
        task.cancel()


@asynccontextmanager
async def person(synapse: Synapse, name: str) -> AsyncGenerator[Person]:
    """Somebody new, for the block."""
    one = Person(synapse.url, await synapse.register(name, "secret"))
    try:
        yield one
    finally:
        await one.close()


def _way(number: int, *, tapped: bool) -> tuple[Registration, int, Tap]:
    """An appservice, where its node listens, and the tap that the homeserver pushes to, if it is to."""
    port = free_port()
    tap = Tap(f"http://127.0.0.1:{port}")
    name = f"_bench{number}_"
    url = f"http://127.0.0.1:{tap.port if tapped else port}"
    return replace(new_registration(url, SERVER_NAME, name), id=name), port, tap


@asynccontextmanager
async def running(home: Home, rooms: Mapping[str, str]) -> AsyncGenerator[tuple[int, Client]]:
    """A node whose ems sit in these rooms (basin → room): its process id, and a client of it."""
    async with up(home) as node, client(home) as mesh:
        for basin, room in rooms.items():
            joined = await mesh.request("matrix_join", {"room": room, "basin": basin})
            assert all(problem.startswith("no em listens") for problem in joined["problems"]), joined
        yield node.process.pid, mesh


async def quiet(mesh: Client, *, bridged: bool = False) -> None:
    """Wait until a node has nothing to do."""
    calm = 0
    async with asyncio.timeout(PATIENCE_S):
        while calm < CALM:
            status = await mesh.status()
            matrix = await mesh.request("matrix_status", {}) if bridged else {}
            busy = status["speaking"] or status["waiting"] or matrix.get("waiting_in") or matrix.get("waiting_out")
            calm = 0 if busy else calm + 1
            await asyncio.sleep(LOOK_S)


async def settled(mesh: Client) -> None:
    """Wait until a node has nothing to do, for Matrix either."""
    await quiet(mesh, bridged=True)


def rss(pid: int) -> float:
    """VmRSS in MB (10^6 bytes)."""
    status = Path(f"/proc/{pid}/status").read_text("ascii")
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024 / 1e6


def cpu(pid: int) -> float:
    """CPU seconds of a process so far."""
    after_name = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(") ")[2].split()
    return (int(after_name[11]) + int(after_name[12])) / os.sysconf("SC_CLK_TCK")
