"""docs/federation.md, whose commands run here as two persons would type them, each beside a node of their own."""

import asyncio
import re
from pathlib import Path

from process import client, make_home, mesh, up

from nodes.client import Client
from nodes.home import Home

PAGE = Path(__file__).parent.parent.parent / "docs" / "federation.md"
WORDS = re.compile(r'"[^"]*"|[^\s"]+')


def told() -> list[tuple[str, list[str]]]:
    """Who types what: every line of the page's shell blocks, without its comment, which says whose it is."""
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    lines = [line.partition("#") for block in blocks for line in block.splitlines()]
    return [
        (who.strip().partition(":")[0], [word.strip('"') for word in WORDS.findall(line)[1:]]) for line, _, who in lines
    ]


async def typed(home: Home, *words: str) -> str:
    """What a command prints; it must go well."""
    ended = await asyncio.to_thread(mesh, *words, "--home", home.path)
    assert ended.returncode == 0, (words, ended.stdout, ended.stderr)
    return ended.stdout


async def heard(home: Home, basin: str, text: str) -> None:
    async with client(home) as one:
        async with asyncio.timeout(30):
            while text not in [entry["text"] for entry in await one.history(basin)]:
                await asyncio.sleep(0.02)


async def test_the_page_as_two_persons_would_type_it(tmp_path: Path) -> None:
    ems = {"aporia": "reply_on_name: true\n"}
    links = {"listen": "127.0.0.1:0"}
    you = make_home(tmp_path / "you", ems, {"links": links})
    they = make_home(tmp_path / "they", {"ruri": "reply_on_name: true\n"}, {"name": "home", "human": "bo"})
    homes, code, seen = {"you": you, "they": they}, "", list[str]()
    async with up(you), up(they):
        for who, words in told():
            home = homes[who]
            written = [code if word == "CODE" else word for word in words]
            if words[1] == "accept":
                declined = await asyncio.to_thread(mesh, *written, "--home", home.path)
                assert "a person decides this" in declined.stderr
                written.append("--yes")
            said = await typed(home, *written)
            if words[1] == "invite":
                code = said.splitlines()[0]
                assert "mesh:" in said
            if words[:2] == ["peer", "list"]:
                assert re.search(r"amp +\w{4} +linked +guest +yes +yappings", said)
            if words[0] == "say":
                await heard(they, "yappings", "hello from over here")
                await typed(they, "say", "yappings", "aporia, and from here")
                async with client(they) as one:
                    await until_answered(one)
            if words[1] == "take":
                await typed(you, "say", "harbour", "a ship")
                await heard(they, "harbour", "a ship")
            if words[1] == "show":
                assert "state    linked; connected now" in said
                assert "chains a day, 100,000 tokens a day" in said
                assert re.search(r"today +\d acts, 1 chains, 1 replies, [\d,]+ tokens", said)
            seen.append(words[1])
        listed = (await typed(they, "peer", "list")).splitlines()
        async with asyncio.timeout(30):
            while not re.search(r"amp +\w{4} +left", "\n".join(listed)):
                listed = (await typed(they, "peer", "list")).splitlines()
        assert await state_of(you) == "left"
    assert {"invite", "accept", "share", "take", "unshare", "pause", "resume", "trust", "quota", "leave"} <= set(seen)


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
