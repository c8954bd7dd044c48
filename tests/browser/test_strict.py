"""A person whose client shares nothing with devices that their users did not sign, and believes none of these.

The client is matrix-js-sdk with its crypto in Rust, in a headless Chromium, against a real Synapse and a real node. Of
two ems one comes by the appservice, the other with an account of its own.
"""

import asyncio
import os
import shutil
from collections.abc import AsyncGenerator, Collection, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from browser import HERE, MISSING, MODULES, browsing, served
from homeserver import SERVER_NAME, Synapse, free_port
from nio import MegolmEvent
from process import make_home, mesh, up
from sealing import Human

from mesh.bridges.matrix.account import log_in
from mesh.bridges.matrix.registration import new_registration
from nodes.home import Home
from nodes.matrix.login import Listening, Login, write_login

if TYPE_CHECKING:
    from playwright.async_api import BrowserContext, Page

pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=f"NO STRICT CLIENT TALKS WITH EMS; not installed: {MISSING}"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:nio"),  # of nio's own making
]

PASSWORD = "open sesame"
EMS = {"aporia": "reply_on_name: true\n", "ruri": "reply_on_name: true\n"}
APORIA, RURI = "@_mesh_aporia:localhost", "@ruri:localhost"
BOTH = {APORIA, RURI}
MODERN = {"experimental_features": {"msc3814_enabled": True}}  # dehydrated devices: they get keys while nobody is there
Said = dict[str, Any]


@dataclass(frozen=True)
class House:
    """A homeserver, and a home whose ems have users there; `secret` is a file with the password of all."""

    synapse: Synapse
    home: Home
    secret: Path

    async def begin(self) -> None:
        await self.synapse.start()
        await self.synapse.register("ruri", PASSWORD)
        await self.log_in_ruri()

    async def log_in_ruri(self, *more: str) -> None:
        """Give ruri a session of its own, as a person does."""
        words = ("matrix", "login", self.synapse.url, "ruri", "--em", "ruri", "--password-file", self.secret, *more)
        ended = await asyncio.to_thread(mesh, *words, "--home", self.home.path)
        assert ended.returncode == 0, ended.stderr

    async def somebody(self) -> dict[str, Any]:
        """The login of a new person."""
        return await self.synapse.register(f"human{os.urandom(4).hex()}", PASSWORD)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Generator[House]:
    folder = tmp_path_factory.mktemp("house")
    (folder / "synapse").mkdir()
    (folder / "password").write_text(PASSWORD, "utf-8")
    port = free_port()
    registration = new_registration(f"http://127.0.0.1:{port}", SERVER_NAME)
    home = make_home(folder / "home", EMS, {"matrix": {"stream": False, "inviters": ["*"]}})
    synapse = Synapse(folder / "synapse", [registration.text()], **MODERN)
    write_login(home.keys, Login(synapse.url, None, registration, Listening("127.0.0.1", port)))
    one = House(synapse, home, folder / "password")
    try:
        asyncio.run(one.begin())
        yield one
    finally:
        synapse.stop()


class Strict:
    """One device of a person, with a strict client."""

    def __init__(self, page: "Page") -> None:
        self._page = page

    async def call(self, name: str, *arguments: Any) -> Any:
        """One of the functions of strict.js."""
        return await self._page.evaluate(f"given => window.strict.{name}(...given)", arguments)

    async def room(self, *users: str) -> str:
        """A new encrypted room, once all are there."""
        room = str(await self.call("encryptedRoom", users))
        while not {*users} <= {*await self.call("joined", room)}:
            await asyncio.sleep(0.05)
        return room

    async def answers(self, room: str, asked: str, users: set[str]) -> list[Said]:
        """What was said in answer to something, once each of these users has answered."""
        while True:
            said = [one for one in await self.call("heard", room) if one["answers"] == asked]
            if {one["sender"] for one in said} == users:
                return said
            await asyncio.sleep(0.05)

    async def talk(self, room: str, *others: "Strict") -> None:
        """Ask both ems; this device and the others read every answer, and see no warning beside any."""
        asked = await self.call("say", room, "aporia, ruri: what do you see?")
        for device in (self, *others):
            for one in await device.answers(room, asked, BOTH):
                assert one["text"]
                assert (one["encrypted"], one["problem"], one["warning"]) == (True, None, ["NONE", ""])

    async def signed(self, old: Collection[str] = ()) -> list[str]:
        """The signed device of each em, once it is there and not an old one."""
        found = list[str]()
        while len(found) < len(BOTH) or {*found} & {*old}:
            found = [device for user in sorted(BOTH) for device in await self.call("signedDevices", user)]
        return found


class Clients:
    """Where strict clients are to be had."""

    def __init__(self, browser: "BrowserContext", site: str, synapse: Synapse) -> None:
        self._browser, self._site, self._synapse = browser, site, synapse

    async def new(self, login: dict[str, Any], recovery: str | None = None) -> tuple[Strict, str]:
        """A client that is logged in, and the recovery key of its account: without one the account is new."""
        page = await self._browser.new_page()
        await page.goto(self._site)
        await page.wait_for_function("window.strict")
        one = Strict(page)
        return one, await one.call("begin", self._synapse.url, login, recovery) or recovery


@pytest.fixture
async def clients(house: House, tmp_path: Path) -> AsyncGenerator[Clients]:
    """The strict client, bundled and served, and a browser for it."""
    bundle, separate = tmp_path / "strict.js", "--external:@matrix-org/matrix-sdk-crypto-wasm"  # it finds its own WASM
    program = [str(MODULES / ".bin" / "esbuild"), str(HERE / "strict.js"), f"--outfile={bundle}", separate]
    ended = await asyncio.create_subprocess_exec(*program, "--bundle", "--format=esm", "--log-level=error")
    assert await ended.wait() == 0
    async with served({"/": HERE / "strict.html", "/strict.js": bundle}) as site, browsing() as browser:
        yield Clients(browser, site, house.synapse)


async def test_a_strict_client_and_ems_read_one_another(house: House, clients: Clients, tmp_path: Path) -> None:
    """Before and after a restart of the node; whoever has an unsigned device is shut out at the same time."""
    mara, _ = await clients.new(await house.somebody())
    async with up(house.home) as node:
        room = await mara.room(*BOTH)
        await mara.talk(room)
        plain = Human(house.synapse, await house.somebody(), tmp_path / "plain")
        await plain.begin()
        await mara.call("invite", room, plain.id)
        await plain.client.join(room)
        said = await plain.say(room, "I am not signed")
        while not (heard := [one for one in await mara.call("heard", room) if one["id"] == said]):
            await asyncio.sleep(0.05)
        assert [one["problem"] for one in heard] == ["UNSIGNED_SENDER_DEVICE"]
        secret = await mara.call("say", room, "not for everybody")
        (shown,) = [one for one in await plain.events(room) if one.event_id == secret]
        assert isinstance(shown, MegolmEvent)  # that is nio's word for what it cannot open
        await plain.client.close()
        await node.stop()
    async with up(house.home):
        await mara.talk(room)


async def test_a_device_that_comes_later_is_heard_and_hears(house: House, clients: Clients) -> None:
    """A person's second strict client, signed with the recovery key, talks with the ems, and the first one follows."""
    login = await house.somebody()
    mara, recovery = await clients.new(login)
    async with up(house.home):
        room = await mara.room(*BOTH)
        await mara.talk(room)
        session = await log_in(house.synapse.url, login["user_id"], PASSWORD)
        later = {"user_id": session.user_id, "device_id": session.device_id, "access_token": session.token}
        phone, _ = await clients.new(later, recovery)
        await phone.talk(room, mara)
        await mara.talk(room, phone)


async def test_new_keys_in_place_of_lost_ones_are_accepted(house: House, clients: Clients) -> None:
    """As the documentation says: the appservice's em mends itself, the account is logged in with --new-keys."""
    mara, _ = await clients.new(await house.somebody())
    async with up(house.home) as node:
        room = await mara.room(*BOTH)
        await mara.talk(room)
        old = await mara.signed()
        await node.stop()
    shutil.rmtree(house.home.data / "matrix")
    await house.log_in_ruri("--new-keys")
    async with up(house.home):
        await mara.signed(old)
        await mara.talk(room)


async def test_comparing_emoji_is_declined_and_the_talk_goes_on(house: House, clients: Clients) -> None:
    """A person who presses "verify", for an em or for its device, need not wait; the em says nothing about it."""
    mara, _ = await clients.new(await house.somebody())
    async with up(house.home):
        for em in BOTH:
            room = await mara.room(em)
            assert await mara.call("verify", em, {"room": room}) == "m.unknown_method"
            (device,) = await mara.call("signedDevices", em)
            assert await mara.call("verify", em, {"device": device}) == "m.unknown_method"
            asked = await mara.call("say", room, "what do you see?")
            (answer,) = await mara.answers(room, asked, {em})
            said = [one for one in await mara.call("heard", room) if one["text"]]
            assert [(one["id"], one["warning"]) for one in said] == [(answer["id"], ["NONE", ""])]
