"""A person in an ordinary web client, and two ems in the room: both sides see what the other meant.

The client is Hydrogen in a headless Chromium, against a real Synapse. Nothing leaves this machine.
"""

import asyncio
import io
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import aiohttp
import pytest
from browser import HERE, MISSING, MODULES, browsing, served
from homeserver import Synapse, free_port
from process import client, make_home, mesh, up

from mesh.bridges.matrix.port import MESSAGE, REACTION
from nodes.home import Home
from nodes.matrix.login import REGISTRATION_FILE

if TYPE_CHECKING:
    from playwright.async_api import Locator, Page

SITE = {
    "/": HERE / "index.html",
    "/cjs.js": HERE / "cjs.js",
    "/sw.js": MODULES / "hydrogen-view-sdk/lib-build/sw.js",  # a service worker rules only what is below its address
}
PICTURE = HERE.parent.parent / "docs" / "matrix-room.png"
MAX_PICTURE = 200_000  # bytes: the repository keeps it
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"NOBODY LOOKS AT A ROOM IN A BROWSER; not installed: {MISSING}")

PERSON, NAME, PASSWORD, ROOM = "mara", "Mara", "open sesame", "lounge"
QUESTION = "aporia, teapot: what is a mesh, in one breath?"
SLIP = "the spare key is under the third flowerpot"
EMS = {"aporia": "name: Aporia\nreply_on_name: true\n", "teapot": "name: Teapot\nreply_on_name: true\n"}
PORTRAIT = 96  # pixels
COLOURS = {"aporia": "slateblue", "teapot": "coral"}


@asynccontextmanager
async def two_ems(synapse: Synapse, home: Home) -> AsyncGenerator[None]:
    """A node whose ems are users of the homeserver, as a person sets it up."""
    listen = f"127.0.0.1:{free_port()}"
    await told("matrix", "register", synapse.url, "--server-name", "localhost", "--listen", listen, "--home", home.path)
    await synapse.restart(app_service_config_files=[str(home.path / REGISTRATION_FILE)])
    for em, colour in COLOURS.items():
        (home.ems / em / "avatar.png").write_bytes(portrait(em[0].upper(), colour))
    async with up(home):
        yield


def portrait(letter: str, colour: str) -> bytes:
    from PIL import Image, ImageDraw, ImageFont

    picture, file = Image.new("RGB", (PORTRAIT, PORTRAIT), colour), io.BytesIO()
    ImageDraw.Draw(picture).text((PORTRAIT / 2, PORTRAIT / 2), letter, "white", ImageFont.load_default(64), anchor="mm")
    picture.save(file, "png")
    return file.getvalue()


async def told(*words: str | Path) -> None:
    """Run a command that must do."""
    ended = await asyncio.to_thread(mesh, *words)
    assert ended.returncode == 0, ended.stderr


class Person:
    """The person's account as the homeserver has it, to prepare the room and to look at what really happened."""

    def __init__(self, session: aiohttp.ClientSession, login: dict[str, Any]) -> None:
        self.id: str = login["user_id"]
        self._session, self._headers = session, {"Authorization": f"Bearer {login['access_token']}"}

    async def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        url = f"/_matrix/client/v3/{path}"
        async with self._session.request(method, url, json=body, headers=self._headers) as reply:
            return dict(await reply.json())

    async def room(self) -> str:
        """A room that anybody may join."""
        await self.call("PUT", f"profile/{quote(self.id)}/displayname", {"displayname": NAME})
        made = {"name": ROOM, "room_alias_name": ROOM, "preset": "public_chat"}
        return str((await self.call("POST", "createRoom", made))["room_id"])

    async def event(self, room: str, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The one event of a room that is wanted, once it is there."""
        while True:
            page = await self.call("GET", f"rooms/{quote(room)}/messages?dir=b&limit=100")
            found = [event for event in page["chunk"] if wanted(event)]
            if found:
                (one,) = found
                return one
            await asyncio.sleep(0.05)


@pytest.fixture
async def page() -> AsyncIterator["Page"]:
    async with browsing() as browser:
        one = await browser.new_page()
        await one.set_viewport_size({"width": 1000, "height": 690})  # all of the talk, for the picture
        yield one


async def log_in(page: "Page", site: str, homeserver: str) -> None:
    await page.goto(f"{site}?homeserver={quote(homeserver)}")
    await page.get_by_label("Username").fill(PERSON)
    await page.get_by_label("Password").fill(PASSWORD)
    await page.get_by_role("button", name="Log In").click()


async def say(page: "Page", words: str) -> None:
    await page.get_by_placeholder("Send a message").press_sequentially(words)
    await page.keyboard.press("Enter")


def line(page: "Page", event: dict[str, Any]) -> "Locator":
    return page.locator(f'li[data-event-id="{event["event_id"]}"]')


async def choose(page: "Page", event: dict[str, Any], option: str) -> None:
    """From the menu of a message."""
    await line(page, event).hover()
    await line(page, event).get_by_role("button", name="⋯").click()
    await page.locator(".menu").get_by_role("button", name=option).click()


async def heard(home: Home, text: str, *, still: bool) -> None:
    """Wait until a node's record of the room has a text, or has it no more."""
    async with client(home) as node:
        while still != any(text in json.dumps(act) for act in await node.history("yappings", 100)):
            await asyncio.sleep(0.05)


async def test_a_person_talks_with_two_ems_in_a_web_client(page: "Page", tmp_path: Path) -> None:
    """Types a line, sees each em answer under its own name, reacts to one answer, takes a line of their own back."""
    from playwright.async_api import expect

    home = make_home(tmp_path / "home", EMS, {"matrix": {"stream": False}})  # this client shows edits as new messages
    (tmp_path / "synapse").mkdir()
    async with (
        Synapse(tmp_path / "synapse") as synapse,
        two_ems(synapse, home),
        aiohttp.ClientSession(synapse.url, raise_for_status=True) as session,
        served(SITE) as site,
    ):
        person = Person(session, await synapse.register(PERSON, PASSWORD))
        room = await person.room()
        await told("matrix", "join", f"{ROOM}:localhost", "--basin", "yappings", "--home", home.path)
        await log_in(page, site, synapse.url)
        await page.get_by_role("link", name=ROOM).click()

        await say(page, QUESTION)
        asked = await person.event(room, lambda event: event["content"].get("body") == QUESTION)
        assert asked["sender"] == person.id
        for em in EMS:
            answer = await person.event(room, lambda event, em=em: said_by(em, event))
            assert answer["content"]["m.relates_to"]["m.in_reply_to"]["event_id"] == asked["event_id"]
            shown = line(page, answer)
            await expect(shown.locator(".Timeline_messageSender")).to_have_text(em.capitalize())
            await expect(shown).to_contain_text(plain_part(answer))
            await expect(shown.locator(".Timeline_messageAvatar img")).not_to_have_js_property("naturalWidth", 0)

        await choose(page, answer, "👍")
        reaction = (await person.event(room, lambda event: event["type"] == REACTION))["content"]["m.relates_to"]
        assert reaction == {"rel_type": "m.annotation", "event_id": answer["event_id"], "key": "👍"}
        await expect(line(page, answer).locator(".Timeline_messageReactions")).to_have_text("👍 1")

        await say(page, SLIP)
        slip = await person.event(room, lambda event: event["content"].get("body") == SLIP)
        await expect(line(page, slip)).to_contain_text(SLIP)
        await heard(home, SLIP, still=True)
        await choose(page, slip, "Delete")
        gone = await person.event(room, lambda event: "redacted_because" in event["unsigned"])
        assert (gone["event_id"], gone["content"]) == (slip["event_id"], {})
        await expect(page.get_by_text(SLIP)).to_have_count(0)
        await expect(line(page, slip)).to_contain_text("deleted")
        await heard(home, SLIP, still=False)
        await page.mouse.move(0, 0)  # no menu in the picture
        await keep_picture(page)
        await page.close()  # before the homeserver goes, which a client would call an error


def said_by(em: str, event: dict[str, Any]) -> bool:
    return event["type"] == MESSAGE and event["sender"] == f"@_mesh_{em}:localhost"


def plain_part(event: dict[str, Any]) -> str:
    """The longest part of a message that looks the same with and without Markdown."""
    return max(re.split(r"[^\w ,']+", event["content"]["body"]), key=len).strip()


async def keep_picture(page: "Page") -> None:
    """Take one; the documentation gets it when its own was removed."""
    taken = await page.screenshot()
    assert len(taken) < MAX_PICTURE
    if not PICTURE.exists():
        PICTURE.write_bytes(taken)
