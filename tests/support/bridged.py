"""A node whose bridge sits on a real Synapse: memory bus and scripted model, real rooms."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
from harness import World, write_em
from homeserver import Synapse
from matrix_rig import Human
from nio import RoomPreset

from mesh.bridges.matrix.account import Account, Session
from mesh.bridges.matrix.appservice import AppService
from mesh.bridges.matrix.common import Own
from mesh.bridges.matrix.port import MESSAGE, MatrixPort
from mesh.bridges.matrix.registration import Registration
from mesh.bridges.matrix.several import Several
from mesh.bus.memory import MemoryBroker
from mesh.clock import now_ms
from mesh.entries import recent
from nodes.config import Budget, MeshConfig
from nodes.matrix.bridge import Bridge
from nodes.matrix.settings import Matrix
from nodes.media import Media
from nodes.models.base import Model, Request, Usage, estimate
from nodes.node import Node
from protocol.acts import Act

Way = tuple[Registration, int] | Session


class Bridged(World):
    """A world with a way into Matrix; `bridge` and `node` are those that run."""

    bridge: Bridge
    here: Node

    def __init__(self, path: Path, broker: MemoryBroker, synapse: Synapse, way: Way, owner: str, **matrix: Any) -> None:
        basins = {"yappings": {"budget": {"hops": 1, "acts": 8}}, "tea": {"budget": {"hops": 1, "acts": 8}}}
        config = MeshConfig.model_validate(
            {"name": "amp", "human": "mara", "basins": basins, "matrix": Matrix(**matrix).model_dump()}
        )
        super().__init__(path, broker, config)
        self.clock = now_ms
        self.synapse, self.way, self.owner = synapse, way, owner
        self.own: dict[str, Session] = {}  # accounts of ems

    def em(self, name: str, config: str = "reply_on_floor: false\nbasins: [tea]\n") -> None:
        write_em(self.ems, name, config)

    def budget(self, basin: str, **more: Any) -> None:
        """Change what a basin's chains begin with."""
        held = self.config.basins[basin]
        changed = held.model_copy(update={"budget": Budget(**{**held.budget.model_dump(), **more})})
        self.config = self.config.model_copy(update={"basins": {**self.config.basins, basin: changed}})

    def port(self, bridge: Bridge, node: Node) -> MatrixPort:
        store = node.ground.store
        primary: AppService | Account
        if isinstance(self.way, Session):
            primary = Account(self.way, store, now_ms, bridge.done)
        else:
            registration, listen = self.way
            pages = bridge.pages.page if bridge.pages else None
            where = ("127.0.0.1", listen)
            primary = AppService(self.synapse.url, registration, where, store, now_ms, on_done=bridge.done, pages=pages)
        own = {em: Account(one, store, now_ms, own=Own(em, primary)) for em, one in self.own.items()}
        return Several(primary, own, bridge.lost) if own else primary

    @asynccontextmanager
    async def up(self, model: Model) -> AsyncIterator[Bridge]:
        """A node with its bridge, cut off at the end of the block."""

        def prepare(node: Node) -> None:
            self.here = node
            self.bridge = Bridge(
                node, lambda one: self.port(one, node), self.config.matrix, self.owner, Media(self.path / "media")
            )
            node.companion = self.bridge

        async with self.node(model, prepare=prepare):
            await self.bridge.port.ready.wait()
            yield self.bridge


PATIENCE_S = 40  # of a wait: in vain beyond it, and the test then says where


async def until(condition: Callable[[], Any]) -> None:
    """Wait for something that another process brings about; the test's own timeout ends a wait in vain."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.01)


async def said(human: Human, room: str, *texts: str) -> list[dict[str, Any]]:
    """Wait until all of these were said in a room, in any order; gives all messages, edits applied."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            shown = await messages(human, room)
            if set(texts) <= {one["content"]["body"] for one in shown}:
                return shown
            await asyncio.sleep(0.02)


async def messages(human: Human, room: str) -> list[dict[str, Any]]:
    """What a client shows: messages with their last edit, without what was redacted."""
    shown = dict[str, dict[str, Any]]()
    for event in await human.events(room, MESSAGE):
        content = event["content"]
        related = content.get("m.relates_to", {})
        if related.get("rel_type") == "m.replace" and related["event_id"] in shown:
            shown[related["event_id"]]["content"] |= content["m.new_content"]
        elif "body" in content:
            shown[event["event_id"]] = event | {"content": dict(content)}
    return list(shown.values())


class Pause(float):
    """Seconds between two pieces of text."""


class Slow:
    """A model that writes slowly: texts, pauses, and events to wait for."""

    def __init__(self, script: Iterable[str | Pause | asyncio.Event]) -> None:
        self._script = script

    async def stream(self, request: Request) -> AsyncGenerator[str | Usage, None]:
        chars = 0
        for step in self._script:
            if isinstance(step, str):
                chars += len(step)
                yield step
            elif isinstance(step, asyncio.Event):
                await step.wait()
            else:
                await asyncio.sleep(step)
        yield estimate(request, chars)

    async def close(self) -> None:
        """Nothing to close."""


async def begun(human: Human, room: str, text: str) -> dict[str, Any]:
    """Wait for a message that begins so; gives it."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            for one in await messages(human, room):
                if one["content"]["body"].startswith(text):
                    return one
            await asyncio.sleep(0.02)


async def noticed(human: Human, room: str, number: int) -> list[dict[str, Any]]:
    """Wait until there are so many notices in a room, and give them."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            notices = [one for one in await messages(human, room) if one["content"]["msgtype"] == "m.notice"]
            if len(notices) >= number:
                return notices
            await asyncio.sleep(0.02)


async def state(human: Human, room: str) -> list[dict[str, Any]]:
    """All state of a room."""
    return list((await human.client.room_get_state(room)).events)


async def membership(human: Human, room: str, user: str) -> str:
    """Whether a user is in a room, in the homeserver's words."""
    found = [one for one in await state(human, room) if one["type"] == "m.room.member" and one["state_key"] == user]
    return str(found[0]["content"]["membership"]) if found else ""


async def ephemeral(
    human: Human, room: str, holds: Callable[[list[str], dict[str, Any]], bool]
) -> tuple[list[str], dict[str, Any]]:
    """Sync until what a client shows of typing and receipts is so; gives both."""
    typing, receipts = list[str](), dict[str, Any]()
    client = human.client
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {client.access_token}"}) as session:
        since = ""
        while not holds(typing, receipts):
            query = {"timeout": "1000", **({"since": since} if since else {})}
            async with session.get(f"{client.homeserver}/_matrix/client/v3/sync", params=query) as answer:
                told = await answer.json()
            since = told["next_batch"]
            for event in told.get("rooms", {}).get("join", {}).get(room, {}).get("ephemeral", {}).get("events", []):
                if event["type"] == "m.typing":
                    typing = event["content"]["user_ids"]
                elif event["type"] == "m.receipt":
                    receipts |= event["content"]
    return typing, receipts


async def upgrade(human: Human, room: str) -> str:
    """Upgrade a room as clients do; gives the new one."""
    url = f"{human.client.homeserver}/_matrix/client/v3/rooms/{quote(room)}/upgrade"
    headers = {"Authorization": f"Bearer {human.client.access_token}"}
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.post(url, json={"new_version": "11"}) as answer,
    ):
        return str((await answer.json())["replacement_room"])


@asynccontextmanager
async def world_on(path: Path, synapse: Synapse, way: Way, owner: str) -> AsyncGenerator[Bridged]:
    """A node, not up yet, with two ems that listen in `tea`."""
    async with MemoryBroker() as broker:
        one = Bridged(path, broker, synapse, way, owner, messages_per_minute=1_000)
        one.em("ada")
        one.em("bob")
        yield one


def acts(world: Bridged, basin: str = "tea") -> list[Act]:
    return [entry.act for entry in recent(world.here.ground.store, basin, 500)]


def body(world: Bridged, em: str, text: str) -> str:
    """What people read when an em says something."""
    return f"{em}: {text}" if isinstance(world.way, Session) else text


async def tea(world: Bridged, human: Human) -> str:
    room = await human.room(preset=RoomPreset.public_chat)
    await world.bridge.lobby.join(room, "tea", None)
    return room


async def idle(world: Bridged) -> None:
    """Until all that came is handled, answered and sent."""
    node, port = world.here, world.bridge.port
    await until(
        lambda: (
            not (port.inbox.waiting() or node.outbox.waiting() or node.runtime.turns.open() or port.outbox.waiting())
        )
    )
