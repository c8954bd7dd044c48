"""docs/federation.md, whose commands run here as two persons would type them, each beside a node of their own."""

import asyncio
import re
from contextlib import AsyncExitStack
from pathlib import Path

from pages import told, typed
from process import client, make_home, mesh, up

from nodes.client import Client
from nodes.home import Home


async def heard(home: Home, basin: str, text: str) -> None:
    async with client(home) as one:
        async with asyncio.timeout(30):
            while text not in [entry["text"] for entry in await one.history(basin)]:
                await asyncio.sleep(0.02)


class Page:
    """Two homes, and what their persons have typed so far."""

    def __init__(self, path: Path, stack: AsyncExitStack) -> None:
        ems = {"aporia": "reply_on_name: true\n"}
        self.you = make_home(path / "you", ems, {"links": {"listen": "127.0.0.1:0"}})
        self.they = make_home(path / "they", {"ruri": "reply_on_name: true\n"}, {"name": "home", "human": "bo"})
        self.stack, self.theirs = stack, AsyncExitStack()
        self.known: dict[str, str] = {}  # what a command printed and another is given: CODE, DISPUTE
        self.seen: list[str] = []

    async def start(self) -> None:
        await self.stack.enter_async_context(up(self.you))
        self.stack.push_async_callback(self.theirs.aclose)
        await self.theirs.enter_async_context(up(self.they))

    async def type(self, who: str, words: list[str]) -> None:
        """Type a line of the page, as its comment says, and look at what comes of it."""
        home = self.you if who.startswith("you") else self.they
        written = [self.known.get(word, word) for word in words]
        if who.endswith("off"):
            await self.theirs.aclose()
        if words[:2] == ["peer", "accept"]:
            declined = await asyncio.to_thread(mesh, *written, "--home", home.path)
            assert "a person decides this" in declined.stderr
            written.append("--yes")
        said = await self.when_heard(home, written)
        if who.endswith("off"):
            await self.theirs.enter_async_context(up(self.they))
        self.seen.append(" ".join(words[:2]) if words[0] != "say" else "say")
        await self.look(words, said)

    async def when_heard(self, home: Home, words: list[str]) -> str:
        """What a command prints; it may be about something that the other node has said a moment ago."""
        async with asyncio.timeout(30):
            while True:
                ended = await asyncio.to_thread(mesh, *words, "--home", home.path)
                if ended.returncode == 0:
                    return ended.stdout
                assert words[0] in {"vocab", "dispute"}, (words, ended.stdout, ended.stderr)

    async def look(self, words: list[str], said: str) -> None:
        match words[:3]:
            case ["peer", "invite", *_]:
                self.known["CODE"] = said.splitlines()[0]
                assert "mesh:" in said
            case ["peer", "list", *_]:
                assert re.search(r"amp +\w{4} +linked +guest +yes +yappings", said)
            case ["say", "yappings", "hello from over here"]:
                await heard(self.they, "yappings", words[2])
                await typed(self.they, "say", "yappings", "aporia, and from here")
                async with client(self.they) as one:
                    await until_answered(one)
            case ["say", *_]:
                await heard(self.they, words[1], words[2])
            case ["who", *_]:
                assert "aporia" in said
            case ["dispute", "raise", *_]:
                self.known["DISPUTE"] = (re.search(r"\b[a-z2-7]{8}\b", said) or [""])[0]
            case ["peer", "take", *_]:
                await typed(self.you, "say", "harbour", "a ship")
                await heard(self.they, "harbour", "a ship")
            case ["peer", "show", *_]:
                assert "state    linked; connected now" in said
                assert "chains a day, 100,000 tokens a day" in said
                assert re.search(r"today +\d+ acts, 1 chain, 1 reply, [\d,]+ tokens", said)
            case _:
                pass


async def test_the_page_as_two_persons_would_type_it(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        page = Page(tmp_path, stack)
        await page.start()
        for who, words in told("federation.md"):
            await page.type(who, words)
        ended = ""
        async with asyncio.timeout(30):
            while not re.search(r"amp +\w{4} +left", ended):
                ended = await typed(page.they, "peer", "list")
        assert await state_of(page.you) == "left"
        assert "settled" in await typed(page.they, "dispute", "show", page.known["DISPUTE"])
        assert "the tide going out" in await typed(page.they, "vocab", "show", "ebb")
    changes = {f"peer {verb}" for verb in ("share", "take", "unshare", "pause", "resume", "trust", "quota", "leave")}
    assert changes | {"peer invite", "peer accept", "vocab adopt", "dispute settle", "who"} <= {
        " ".join(one.split()[:2]) for one in page.seen
    }


async def until_answered(one: Client) -> None:
    """Wait until aporia, who sits on the other node, has answered."""
    async with asyncio.timeout(60):
        while True:
            history = await one.history("yappings")
            if any(entry["author"] == "aporia" for entry in history):
                return
            await asyncio.sleep(0.05)


async def state_of(home: Home) -> str:
    async with client(home) as one:
        return (await one.request("peer_show", {"peer": "home"}))["state"]
