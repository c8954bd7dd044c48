"""Pages whose commands are typed by two persons, each beside a node of their own."""

import asyncio
import re
from pathlib import Path

from process import mesh

from nodes.home import Home

DOCS = Path(__file__).parent.parent.parent / "docs"
WORDS = re.compile(r'"[^"]*"|[^\s"]+')


def told(page: str, blocks: int | None = None) -> list[tuple[str, list[str]]]:
    """Who types what: every line of the page's shell blocks, or the first few, and what its comment says of it.

    The comment begins with `you` or `they`; what follows a colon is for the reader alone.
    """
    found = re.findall(r"^```sh\n(.*?)^```", (DOCS / page).read_text("utf-8"), re.DOTALL | re.MULTILINE)
    lines = [line.partition("#") for block in found[:blocks] for line in block.splitlines()]
    return [
        (who.strip().partition(":")[0], [word.strip('"') for word in WORDS.findall(line)[1:]]) for line, _, who in lines
    ]


async def typed(home: Home, *words: str) -> str:
    """What a command prints; it must go well."""
    ended = await asyncio.to_thread(mesh, *words, "--home", home.path)
    assert ended.returncode == 0, (words, ended.stdout, ended.stderr)
    return ended.stdout
