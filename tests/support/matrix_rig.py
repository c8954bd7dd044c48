"""What live tests of Matrix share: a person with an ordinary client, ways in, ports that run for a block."""

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Protocol

import pytest
from homeserver import INSTALLED, SERVER_NAME, Synapse, free_port
from nio import AsyncClient, AsyncClientConfig, MessageDirection

from mesh.bridges.matrix.account import Session, log_in
from mesh.bridges.matrix.inbox import Inbound, Inbox
from mesh.bridges.matrix.port import MESSAGE
from mesh.bridges.matrix.registration import Registration, new_registration

LIVE = [  # marks of tests that need a homeserver
    pytest.mark.skipif(not INSTALLED, reason="matrix-synapse is not installed: NOTHING OF MATRIX IS TESTED LIVE"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:nio"),  # of nio's own making
]
Shared = tuple[Synapse, list[tuple[Registration, int]]]  # a homeserver, and appservices that nobody used yet


class Runs(Protocol):
    """A port, as far as running and hearing go."""

    ready: asyncio.Event

    @property
    def inbox(self) -> Inbox: ...

    async def run(self) -> None: ...


class Human:
    """A person with an ordinary client."""

    def __init__(self, synapse: Synapse, login: dict[str, Any]) -> None:
        self.client = AsyncClient(synapse.url, login["user_id"], config=AsyncClientConfig(encryption_enabled=False))
        self.client.restore_login(login["user_id"], login["device_id"], login["access_token"])
        self.id: str = login["user_id"]

    async def room(self, *invited: str, **options: Any) -> str:
        return str((await self.client.room_create(invite=list(invited), **options)).room_id)

    async def say(self, room: str, text: str, **more: Any) -> str:
        content = {"msgtype": "m.text", "body": text} | more
        return str((await self.client.room_send(room, MESSAGE, content)).event_id)

    async def events(self, room: str, kind: str = MESSAGE) -> list[dict[str, Any]]:
        """All events of a kind in a room, oldest first."""
        found, start = list[dict[str, Any]](), ""
        while True:
            page = await self.client.room_messages(room, start, direction=MessageDirection.front, limit=500)
            found += [event.source for event in page.chunk if event.source["type"] == kind]
            if not page.end or not page.chunk:
                return found
            start = page.end

    async def bodies(self, room: str) -> list[str]:
        """What was said in a room by others, without names in front."""
        said = [event["content"]["body"] for event in await self.events(room) if event["sender"] != self.id]
        return [body.split(": ", 1)[-1] for body in said]


@asynccontextmanager
async def person(synapse: Synapse) -> AsyncGenerator[Human]:
    """Somebody new, for the block."""
    one = Human(synapse, await synapse.register(f"human{os.urandom(4).hex()}", "secret"))
    try:
        yield one
    finally:
        await one.client.close()


def new_way(server_name: str = SERVER_NAME) -> tuple[Registration, int]:
    """An appservice, and the port where it listens."""
    listen = free_port()
    name = f"_m{os.urandom(3).hex()}_"
    return replace(new_registration(f"http://127.0.0.1:{listen}", server_name, name), id=name), listen


async def new_session(synapse: Synapse) -> Session:
    """An account of its own."""
    user = f"node{os.urandom(4).hex()}"
    await synapse.register(user, "secret")
    return await log_in(synapse.url, user, "secret")


@asynccontextmanager
async def running(port: Runs) -> AsyncGenerator[None]:
    """Let a port run for the block, and cut it off at its end, as a crash would."""
    async with asyncio.TaskGroup() as group:
        task = group.create_task(port.run())
        try:
            await port.ready.wait()
            yield
        finally:
            task.cancel()


async def take(inbox: Inbox) -> Inbound:
    """The next event, handled."""
    event = await anext(inbox)
    inbox.handled(event)
    return event


async def take_until(inbox: Inbox, body: str) -> list[Inbound]:
    """Messages up to one that says `body`."""
    found = list[Inbound]()
    while not found or found[-1].content.get("body") != body:
        event = await take(inbox)
        if event.kind == MESSAGE:
            found.append(event)
    return found
