"""A person in an ordinary web client, and two ems in the room: both sides see what the other meant.

The client is Hydrogen in a headless Chromium, against a real Synapse. Nothing leaves this machine.
"""

import asyncio
import shutil
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import aiohttp
import pytest
from aiohttp import web
from homeserver import INSTALLED, Synapse, free_port

from mesh.bridges.matrix.appservice import AppService
from mesh.bridges.matrix.content import Relation, message
from mesh.bridges.matrix.port import MEMBER, MESSAGE, REACTION, Speaker
from mesh.bridges.matrix.registration import Registration, new_registration
from mesh.bridges.matrix.schema import MATRIX_SCHEMA
from mesh.clock import now_ms
from mesh.store import Store

if TYPE_CHECKING:
    from playwright.async_api import Locator, Page

HERE = Path(__file__).parent
MODULES = HERE / "node_modules"
SITE = {
    "/": HERE / "index.html",
    "/cjs.js": HERE / "cjs.js",
    "/sw.js": MODULES / "hydrogen-view-sdk/lib-build/sw.js",  # a service worker rules only what is below its address
}
PICTURE = HERE.parent.parent / "docs" / "matrix-room.png"
MAX_PICTURE = 200_000  # bytes: the repository keeps it
CHROMIUM = shutil.which("chromium-headless-shell") or shutil.which("chromium")
TOOLS = {
    "chromium": CHROMIUM,
    "playwright (PyPI)": find_spec("playwright"),
    "hydrogen-view-sdk (npm)": MODULES.exists(),
    "matrix-synapse (PyPI)": INSTALLED,
}
MISSING = ", ".join(name for name, there in TOOLS.items() if not there)
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"NOBODY LOOKS AT A ROOM IN A BROWSER; not installed: {MISSING}")

FLAGS = [
    "--no-sandbox",  # of no use to root, which containers are run by
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
]
PERSON, NAME, PASSWORD = "mara", "Mara", "open sesame"
QUESTION = "aporia, teapot: what is a mesh, in one breath?"
SLIP = "the spare key is under the third flowerpot"
ANSWERS = {
    Speaker("aporia", "Aporia"): "Many doors and *no doorman*. Task one: leave yours ajar.",
    Speaker("teapot", "Teapot"): "It is the tide, friend: every shore keeps its own sand, and the water **goes between**.",
}


@asynccontextmanager
async def two_ems(synapse: Synapse, registration: Registration, port: int, folder: Path) -> AsyncGenerator[list[str]]:
    """Two ems who join where they are invited and answer who names them; yields their user ids."""
    store = Store(folder / "node.db", {"matrix": MATRIX_SCHEMA})
    node = AppService(synapse.url, registration, ("127.0.0.1", port), store, now_ms)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(node.run())
        await node.ready.wait()
        users = [await node.ensure(speaker) for speaker in ANSWERS]
        answering = group.create_task(answer(node))
        yield users
        answering.cancel()
        running.cancel()
    store.close()


async def answer(node: AppService) -> None:
    async for event in node.inbox:
        for speaker, words in ANSWERS.items():
            if event.kind == MEMBER and event.state_key == node.user_id(speaker.key):
                await node.join(speaker.key, event.room)
            elif event.kind == MESSAGE and speaker.key in event.content["body"]:
                said = message(words, relation=Relation(event.event_id))
                await node.send(speaker, event.room, MESSAGE, said, event.event_id)
        node.inbox.handled(event)


class Person:
    """The person's account as the homeserver has it, to prepare the room and to look at what really happened."""

    def __init__(self, session: aiohttp.ClientSession, login: dict[str, Any]) -> None:
        self.id: str = login["user_id"]
        self._session, self._headers = session, {"Authorization": f"Bearer {login['access_token']}"}

    async def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        url = f"/_matrix/client/v3/{path}"
        async with self._session.request(method, url, json=body, headers=self._headers) as reply:
            return dict(await reply.json())

    async def room(self, name: str, invited: list[str]) -> str:
        """A room where all who were invited are."""
        await self.call("PUT", f"profile/{quote(self.id)}/displayname", {"displayname": NAME})
        room = str((await self.call("POST", "createRoom", {"name": name, "invite": invited}))["room_id"])
        while len((await self.call("GET", f"rooms/{quote(room)}/joined_members"))["joined"]) <= len(invited):
            await asyncio.sleep(0.05)
        return room

    async def event(self, room: str, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The one event of a room that is wanted, once it is there."""
        while True:
            page = await self.call("GET", f"rooms/{quote(room)}/messages?dir=b&limit=100")
            found = [event for event in page["chunk"] if wanted(event)]
            if found:
                (one,) = found
                return one
            await asyncio.sleep(0.05)


@asynccontextmanager
async def client_site() -> AsyncGenerator[str]:
    """The web client, served; yields its address."""

    async def root(request: web.Request) -> web.FileResponse:
        return web.FileResponse(SITE[request.path])

    app = web.Application()
    app.router.add_routes([web.get(path, root) for path in SITE])
    app.router.add_static("/npm", MODULES)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0)
    await runner.setup()
    try:
        port = free_port()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        yield f"http://127.0.0.1:{port}/"
    finally:
        await runner.cleanup()


@pytest.fixture
async def page() -> AsyncIterator["Page"]:
    """A browser's window. Every request that it makes must be to this machine, and no script may fail."""
    from playwright.async_api import async_playwright

    hosts, failures = set[str | None](), list[str]()
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        context = await browser.new_context(viewport={"width": 1000, "height": 640})
        page = await context.new_page()
        page.on("pageerror", lambda error: failures.append(str(error)))
        context.on("request", lambda request: hosts.add(urlsplit(request.url).hostname))
        yield page
        await browser.close()
    assert hosts == {"127.0.0.1"}
    assert failures == []


async def log_in(page: "Page", site: str, homeserver: str) -> None:
    await page.goto(f"{site}?homeserver={quote(homeserver)}")
    await page.get_by_label("Username").fill(PERSON)
    await page.get_by_label("Password").fill(PASSWORD)
    await page.get_by_role("button", name="Log In").click()


async def say(page: "Page", words: str) -> None:
    await page.get_by_placeholder("Send a message").press_sequentially(words)
    await page.keyboard.press("Enter")


def line(page: "Page", event_id: str) -> "Locator":
    return page.locator(f'li[data-event-id="{event_id}"]')


async def choose(page: "Page", event_id: str, option: str) -> None:
    """From the menu of a message."""
    await line(page, event_id).hover()
    await line(page, event_id).get_by_role("button", name="⋯").click()
    await page.locator(".menu").get_by_role("button", name=option).click()


async def test_a_person_talks_with_two_ems_in_a_web_client(page: "Page", tmp_path: Path) -> None:
    """Types a line, sees each em answer under its own name, reacts to one answer, takes a line of their own back."""
    from playwright.async_api import expect

    listen = free_port()
    registration = new_registration(f"http://127.0.0.1:{listen}", "localhost")
    async with (
        Synapse(tmp_path, [registration.text()]) as synapse,
        two_ems(synapse, registration, listen, tmp_path) as ems,
        aiohttp.ClientSession(synapse.url, raise_for_status=True) as session,
        client_site() as site,
    ):
        person = Person(session, await synapse.register(PERSON, PASSWORD))
        room = await person.room("yappings", ems)
        await log_in(page, site, synapse.url)
        await page.get_by_role("link", name="yappings").click()

        await say(page, QUESTION)
        asked = await person.event(room, lambda event: event["content"].get("body") == QUESTION)
        assert asked["sender"] == person.id
        answers = [
            await person.event(room, lambda event, em=em: event["type"] == MESSAGE and event["sender"] == em) for em in ems
        ]
        for said, speaker in zip(answers, ANSWERS, strict=True):
            assert said["content"]["m.relates_to"]["m.in_reply_to"]["event_id"] == asked["event_id"]
            shown = line(page, said["event_id"])
            await expect(shown.locator(".Timeline_messageSender")).to_have_text(speaker.name)
            await expect(shown).to_contain_text(ANSWERS[speaker].replace("*", ""))

        liked = answers[1]["event_id"]
        await choose(page, liked, "👍")
        reaction = await person.event(room, lambda event: event["type"] == REACTION)
        assert reaction["content"]["m.relates_to"] == {"rel_type": "m.annotation", "event_id": liked, "key": "👍"}
        await expect(line(page, liked).locator(".Timeline_messageReactions")).to_have_text("👍 1")

        await say(page, SLIP)
        slip = await person.event(room, lambda event: event["content"].get("body") == SLIP)
        await expect(line(page, slip["event_id"])).to_contain_text(SLIP)
        await choose(page, slip["event_id"], "Delete")
        gone = await person.event(room, lambda event: "redacted_because" in event["unsigned"])
        assert (gone["event_id"], gone["content"]) == (slip["event_id"], {})
        await expect(page.get_by_text(SLIP)).to_have_count(0)
        await expect(line(page, slip["event_id"])).to_contain_text("deleted")

        await page.mouse.move(0, 0)  # no menu in the picture
        await page.screenshot(path=PICTURE)
        assert PICTURE.stat().st_size < MAX_PICTURE
