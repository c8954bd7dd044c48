"""docs/disputes.md, whose first commands run here as two persons would type them, each beside a node of their own."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from pages import told
from process import client, make_home, up

from nodes.cli import main
from nodes.home import Home

Type = Callable[..., Awaitable[tuple[int, str]]]


@pytest.fixture
def typed(capsys: pytest.CaptureFixture[str]) -> Type:
    """Run a command beside a running node; gives its exit code and what it wrote."""

    async def run(home: Home, *words: str) -> tuple[int, str]:
        code = await asyncio.to_thread(main, [*words, "--home", str(home.path)])
        written = capsys.readouterr()
        return code, written.out + written.err

    return run


async def shown(home: Home, name: str, words: int) -> dict[str, Any]:
    """Wait until so much was said in a dispute, and give it."""
    async with asyncio.timeout(30), client(home) as one:
        while True:
            known = (await one.request("dispute_list", {}))["disputes"]
            if name in [dispute["id"] for dispute in known]:
                told = await one.request("dispute_show", {"dispute": name})
                if len(told["words"]) >= words:
                    return told
            await asyncio.sleep(0.02)


async def linked(you: Home, they: Home) -> None:
    asked = {"gives": {}, "takes": {}, "expires_s": 600, "trust": "guest", "name": "home"}
    async with asyncio.timeout(30), client(you) as one, client(they) as other:
        code = (await one.request("peer_invite", asked))["code"]
        offer = (await other.request("peer_look", {"code": code}))["offer"]
        await other.request("peer_accept", {"code": code, "offer": offer, "trust": "guest", "name": None})
        while (await one.request("peer_list", {}))["peers"][0]["state"] != "linked":
            await asyncio.sleep(0.02)


async def test_the_page_as_two_persons_would_type_it(tmp_path: Path, typed: Type) -> None:
    links = {"links": {"listen": "127.0.0.1:0"}}
    you, they = (
        make_home(tmp_path / "you", {}, links),
        make_home(tmp_path / "they", {}, {"name": "home", "human": "bo"}),
    )
    homes, name, made, said = {"you": you, "they": they}, "", "", 0
    async with up(you), up(they):
        await linked(you, they)
        for who, words in told("disputes.md", blocks=1):
            home = homes[re.split("[,:]", who)[0]]
            if name:
                await shown(home, name, said)
            written = [{"ID": name, "COMMITMENT": made}.get(word, word) for word in words]
            code, out = await typed(home, *written)
            assert code == 0, (written, out)
            said += words[1] not in {"list", "show"}
            match words[1]:
                case "raise":
                    name = re.search(r"Raised with home: ([a-z2-7]{8})\n", out)[1]  # type: ignore[index]
                case "list":
                    assert re.search(rf"{name} +open +amp with you +- +you passed on what", out)
                case "show":
                    assert "wish     ask me first" in out
                    assert "amp raised it: you passed on what was private" in out
                case "remedy":
                    made = out.split()[0]
                    assert "1 open" in out
                case "report":
                    assert "1 kept" in out
        ended = await shown(you, name, said)
        assert (ended["state"], ended["commitments"][0]["standing"]) == ("settled", "kept")
        _, out = await typed(you, "dispute", "show", name[:4])
        assert f"{made}  kept, by " in out
        assert "settled  by you" in out
        code, out = await typed(they, "dispute", "withdraw", name)
        assert (code, out) == (1, "mesh: only who raised a dispute withdraws it; you may settle it\n")
