"""What the lines that a person types in `mesh chat` do, on a terminal and through pipes."""

import asyncio
from collections.abc import Sequence
from typing import Any, Final

from nodes.client import Client
from nodes.commands.follow import Record
from nodes.errors import NotRunning
from nodes.explain import as_text, why
from nodes.home import Home, at_home
from nodes.records import failed, records

LOOKS: Final = 10  # for failures, about a second apart, while nobody is still to answer
SILENCE_S: Final = 2.0  # after a person's words; then those who were to answer may have failed
QUIT: Final = "/quit"
HELP: Final = (
    "/stop  ends all chains of replies here, and what is being written",
    "/who   tells who is here and who is writing",
    "/why   tells why the last reply was given and what it was made from, or why there was none",
    "/quit  leaves, as Ctrl-D does; Ctrl-C clears the line, Tab completes names",
    "A message that begins with / is written with //.",
)


class Talk:
    """What a line that a person types does: most are said, some are commands."""

    def __init__(self, home: Home, basin: str) -> None:
        self._home, self._basin = home, basin
        self._own = self._reply = ""  # ids: what the person said last, and what was answered to anything since
        self._quiet_s = 0.0  # since when nothing was said; on the loop's clock
        self._looks = 0  # into the records that are left, for what the person said last
        self._told: set[bytes] = set()
        self.client: Client | None = None  # None while the node is away

    def hear(self, record: Record) -> None:
        """Remember the last reply."""
        self._quiet_s = asyncio.get_running_loop().time()
        if record["id"] != record["root"]:
            self._reply = record["id"]

    async def line(self, text: str) -> Sequence[str]:
        """Do what a line says, QUIT excepted; returns lines for the person. Raises NodeError, MeshError."""
        text = text.strip()
        if text == "/help":
            return [note(line) for line in HELP]
        if text == "/why":
            return self._why()
        if self.client is None:
            raise NotRunning("the node is away; wait until it is back")
        if text == "/stop":
            self._looks = 0  # who is stopped has not failed
            await self.client.stop(self._basin)
        elif text == "/who":
            return [note(_who(await self.client.status()))]
        elif text.startswith("/") and not text.startswith("//"):
            return [note(f"there is no {text.split()[0]}; /help tells what there is")]
        elif text:
            await self._say(self.client, text[1:] if text.startswith("//") else text)
        return []

    async def _say(self, client: Client, text: str) -> None:
        self._reply = ""
        said = await client.say(self._basin, text)
        self._own, self._looks = said["id"], LOOKS
        self._quiet_s = asyncio.get_running_loop().time()

    def failures(self, *, at_once: bool = False) -> list[str]:
        """A line for each em that was to answer the person's last words and could not, once.

        Looks into the node's records when nothing was said for SILENCE_S; to be called about every second.
        """
        quiet = asyncio.get_running_loop().time() - self._quiet_s >= SILENCE_S
        if not self._own or not self._looks or not (quiet or at_once):
            return []
        ended, still = failed(self._home, bytes.fromhex(self._own))
        self._looks = LOOKS if still else self._looks - 1
        new = [(turn, em, reason) for turn, em, reason in ended if turn not in self._told]
        self._told.update(turn for turn, _, _ in new)
        return [note(f"{em} cannot answer: {reason}") for _, em, reason in new]

    def _why(self) -> list[str]:
        """Why the last reply was given, or why none was."""
        act = self._reply or self._own
        if not act:
            return [note("nothing was said here since you came")]
        with records(self._home) as store:
            known = None if store is None else why(store, bytes.fromhex(act))
        if known is None or (known.said is None and known.made is None):
            return [note("nothing is recorded about it yet")]
        return list(as_text(known, self._home.mesh_id(), there=at_home(self._home.path)))


def note(text: str) -> str:
    """How the command's own words are told from everybody else's."""
    return f"— {text} —"


def _who(status: dict[str, Any]) -> str:
    ems = ", ".join(f"{name} ({model})" for name, model in sorted(status["models"].items()))
    writing = ", ".join(status["speaking"])
    return f"you are {status['human']}; ems of this node: {ems or 'none'}; writing now: {writing or 'nobody'}"
