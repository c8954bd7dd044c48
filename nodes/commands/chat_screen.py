"""The terminal of `mesh chat`: a line to type in, above it replies as they are written, above that what was said."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from prompt_toolkit import PromptSession
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition
from prompt_toolkit.formatted_text import ANSI
from prompt_toolkit.history import FileHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

from mesh.errors import MeshError
from nodes.client import Client
from nodes.commands.chat_talk import QUIT, Talk, note
from nodes.commands.follow import Follower, Record
from nodes.errors import NodeError
from nodes.explain import HANG
from nodes.home import Home
from nodes.terminal import INDENT, Said, Screen
from protocol.errors import ProtocolError

LAST: Final = 20  # acts that are shown on entry
REDRAW_S: Final = 0.1  # between two showings of words that are being written: faster than reading
STALE_S: Final = 10.0  # words of which no more came for so long are no longer shown
WRITERS: Final = 3  # replies that are shown while they are written; of more, the names are shown
MAX_HISTORY: Final = 256 * 1024  # bytes of typed lines that are kept; half of them when it is more
COMMANDS: Final = ("/help", QUIT, "/stop", "/who", "/why")
ECHO: Final = (
    "These ems speak with echo, a model made of their own text: it stays in character and cannot follow instructions. "
    "Other models: the section models of mesh.yaml."
)


async def converse(home: Home, basin: str) -> None:
    """Talk until the person leaves. Raises NotRunning when there is no node."""
    first = not (home.data / "chat_history").exists()
    chat = Chat(home, basin, Screen(sys.stdout), history_file(home))
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(Follower(home, basin, chat).run(LAST), name="follow"),
            group.create_task(chat.say(), name="say"),
        ]
        await chat.prompt(first=first)
        for task in tasks:
            task.cancel()


def history_file(home: Home) -> Path:
    """The file of typed lines: for its owner alone, and of a bounded size."""
    path = home.data / "chat_history"
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b") as file:
        path.chmod(0o600)
        if file.seek(0, os.SEEK_END) > MAX_HISTORY:
            file.seek(-MAX_HISTORY // 2, os.SEEK_END)
            _, _, kept = file.read().partition(b"\n\n")  # entries are divided by empty lines
            file.seek(0)
            file.truncate()
            file.write(b"\n" + kept)
    return path


@dataclass(slots=True)
class Draft:
    """A reply that is being written."""

    author: str
    text: str
    at_s: float


class Chat:
    """What is on the screen, and the audience that keeps it so."""

    def __init__(self, home: Home, basin: str, screen: Screen, history: Path) -> None:
        self._basin, self._mesh, self._screen = basin, home.mesh_id(), screen
        self._talk = Talk(home, basin)
        self._names = Names()
        self._status: Record = {}
        self._drafts: dict[str, Draft] = {}
        self._there = asyncio.Event()
        self._typed: asyncio.Queue[str] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._out = ""
        self._redraw: asyncio.TimerHandle | None = None
        self._session: PromptSession[str] = PromptSession(
            self._message,
            history=FileHistory(history),
            completer=self._names,
            complete_while_typing=Condition(self._expects_names),
            key_bindings=_keys(),
            erase_when_done=True,
            reserve_space_for_menu=6,
            prompt_continuation=" " * INDENT,
        )

    # What the follower tells.

    def joined(self, client: Client) -> None:
        """The node is there."""
        if self._there.is_set():
            self._note("the node is back")
        self._talk.client = client
        self._there.set()

    def away(self) -> None:
        """The node went away."""
        self._talk.client = None
        self._drafts.clear()
        self._status["speaking"] = []
        self._note("the node is away; waiting for it (Ctrl-D leaves)")

    def hear(self, record: Record) -> None:
        """Print an act above the line; it takes the place of its draft."""
        self._drafts.pop(record["id"], None)
        if record["kind"] == "cancel" and record["id"] == record["root"]:
            self._drafts.clear()
        self._talk.hear(record)
        self._print(self._screen.act(Said.of(record, self._mesh)))

    def writing(self, record: Record) -> None:
        """Show the words so far."""
        said = Said.of(record, self._mesh)
        self._drafts[record["id"]] = Draft(said.author, said.text, self._loop.time())
        self._refresh()

    def beat(self, status: Record, missed: int, refused: int) -> None:
        """Keep in mind how the node is; drop drafts that nobody writes any more."""
        del missed, refused
        before = self._writers()
        self._status, self._names.ems = status, status["ems"]
        old = self._loop.time() - STALE_S
        self._drafts = {
            key: draft for key, draft in self._drafts.items() if draft.author in status["speaking"] or draft.at_s > old
        }
        if self._writers() != before or self._drafts:
            self._refresh()
        self._tell(self._talk.failures())

    # What the person does.

    async def prompt(self, *, first: bool) -> None:
        """Take lines until the person leaves."""
        await self._there.wait()
        if first and self._status["default_model"] == "echo":
            self._note(ECHO)
        ems = ", ".join(self._status["ems"]) or "none yet"
        self._note(f"{self._basin} · ems: {ems} · /help")
        with contextlib.suppress(NotImplementedError, ValueError):  # Windows
            self._loop.add_signal_handler(signal.SIGTERM, self._leave)
        # One prompt for the whole talk: between two of them the terminal would print what is typed ahead.
        self._session.default_buffer.accept_handler = self._accept
        with contextlib.suppress(EOFError):
            await self._session.prompt_async(set_exception_handler=False)

    async def say(self) -> None:
        """Do what the typed lines say, in their order."""
        while True:
            line = await self._typed.get()
            try:
                self._tell(await self._talk.line(line))
            except (NodeError, MeshError, ProtocolError) as error:
                self._note(f"not done: {error}")
                self._give_back(line)

    def _give_back(self, line: str) -> None:
        """Put a line that came to nothing where it was typed, unless another is being typed there."""
        buffer = self._session.default_buffer
        if not buffer.text:
            buffer.document = Document(line)

    def _accept(self, buffer: Buffer) -> bool:
        """Take a line; returns whether it stays where it was typed."""
        if buffer.text.strip() == QUIT:
            self._leave()
        elif buffer.text.strip():
            self._typed.put_nowait(buffer.text)
        return False

    def _leave(self) -> None:
        if self._session.app.is_running:
            self._session.app.exit(exception=EOFError)

    # The screen.

    def _message(self) -> ANSI:
        """The drafts, who else is writing, and before the line the person's own name."""
        drafts = list(self._drafts.values())[:WRITERS]
        lines = [self._screen.writing(draft.author, draft.text) for draft in drafts]
        others = sorted(self._writers() - {draft.author for draft in drafts})
        if others:
            lines.append(self._screen.note(f"{', '.join(others)} {'is' if len(others) == 1 else 'are'} writing …"))
        own = self._screen.act(Said(str(self._status["human"]), "")).rstrip("\n")
        return ANSI("".join(lines) + own)

    def _writers(self) -> set[str]:
        """Who is writing here. The node tells only who writes anywhere: with one basin that is the same."""
        writers = {draft.author for draft in self._drafts.values()}
        return writers.union(self._status["speaking"]) if self._status.get("basins") == [self._basin] else writers

    def _expects_names(self) -> bool:
        """Whether to offer completions unasked."""
        return word_before(self._session.default_buffer.document)[:1] in ("@", "/")

    def _print(self, text: str) -> None:
        """Put lines above the prompt, all that come in one turn of the loop at once."""
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out += text

    def _flush(self) -> None:
        """Write what waits. prompt_toolkit's own way to do this lets the terminal print keys meanwhile."""
        text, self._out = self._out, ""
        app = self._session.app
        if not app.is_running:
            self._screen.write(text)
            return
        app.renderer.erase()
        app.output.write_raw(text.replace("\n", "\r\n"))
        app.output.flush()
        app.renderer.request_absolute_cursor_position()
        app.invalidate()

    def _note(self, text: str) -> None:
        self._tell([note(text)])

    def _tell(self, lines: Sequence[str]) -> None:
        for line in lines:
            self._print(self._screen.note(line, hang=HANG))

    def _refresh(self) -> None:
        """Draw anew soon, and not too often."""
        if self._redraw is None:
            self._redraw = self._loop.call_later(REDRAW_S, self._draw)

    def _draw(self) -> None:
        self._redraw = None
        self._session.app.invalidate()


class Names(Completer):
    """Completes what a person types: names of ems, with @ or without, and commands at the beginning of a line."""

    def __init__(self) -> None:
        self.ems: Sequence[str] = ()

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterator[Completion]:
        """What the word before the cursor may become; unasked, not what no word may become."""
        word = word_before(document)
        if not word and not complete_event.completion_requested:
            return
        if word.startswith("/") and document.text_before_cursor == word:
            found = COMMANDS
        else:
            at = "@" if word.startswith("@") else ""
            found = [at + name for name in self.ems]
        for one in found:
            if one.startswith(word):
                yield Completion(one, -len(word))


def word_before(document: Document) -> str:
    """The word that ends at the cursor."""
    return document.get_word_before_cursor(WORD=True)


def _keys() -> KeyBindings:
    """Ctrl-C clears the line; Alt-Enter begins another within the message."""
    keys = KeyBindings()

    @keys.add("c-c")
    @keys.add("<sigint>")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.reset()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return keys
