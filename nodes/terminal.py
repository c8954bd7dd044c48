"""What people see in a terminal: acts as coloured lines. Every word in an act is somebody else's and may be hostile."""

import hashlib
import re
import shlex
import shutil
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TextIO

from nodes.wrapping import MIN_ROOM, broken, wrap
from protocol.keys import fingerprint

if TYPE_CHECKING:  # rich takes 30 ms to import, and help does without it
    from rich.console import Console
    from rich.text import Text

INDENT: Final = 10  # columns for a name, and as many for a basin's; further lines begin with blanks instead
MAX_AUTHOR: Final = 40  # columns of a name; an address from elsewhere may have 255
MAX_LINES: Final = 100  # lines of one act that are shown: a page or two, not a flood
MAX_MARKS: Final = 4  # combining marks on one letter; more of them climb over the lines above
LIVE_LINES: Final = 3  # lines of a reply that is still being written
TAB: Final = "    "
GONE: Final = "\ufffd"

# Colours of the 256-colour table with a contrast of at least 3.4 on black and on white: hues once around the circle.
PALETTE: Final = (160, 166, 130, 100, 28, 30, 32, 62, 99, 134, 163, 161)

# A terminal's own sequences as a whole: CSI, then OSC and its like where they are ended, then two-character escapes.
_SEQUENCES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x00-\x1f\x7f-\x9f]*(?:\x07|\x1b\\|\x9c)"
    r"|\x1b[!-/]*[0-~]"
)
# Letters and marks by the book that show nothing: what a word looks like should be what it is.
_BLANK: Final = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u2800\u3164\uffa0")
_HIDDEN: Final = range(0xE0100, 0xE01F0)  # variation selectors that no font uses: words can be hidden in them


@dataclass(frozen=True, slots=True)
class Said:
    """One act as a person should see it. `left`: what its chain may still spend, (hops, acts); None: not shown."""

    author: str
    text: str
    kind: str = "say"
    left: tuple[int, int] | None = None
    basin: str | None = None

    @classmethod
    def of(cls, record: Mapping[str, Any], mesh: str, *, basin: bool = False, left: bool = True) -> "Said":
        """Take it from a record of nodes.control. An author of another mesh than `mesh` is shown with its key."""
        author, budget = record["author"], record["budget"]
        return cls(
            author if record["mesh"] == mesh else f"{author}~{fingerprint(record['mesh'])}",
            record["text"],
            record["kind"],
            (budget["hops"], budget["acts"]) if left else None,
            record["basin"] if basin else None,
        )


def clean(text: str) -> list[str]:
    """The lines of a text, of printable characters only: nothing that moves, hides, reorders or colours words."""
    lines = (_printable(line) for line in _SEQUENCES.sub("", text).splitlines())
    return list(lines) or [""]


def colour_of(author: str) -> int:
    """The author's own colour, the same everywhere and always: an index of the 256-colour table.

    The person string is one under which the starter ems differ well.
    """
    digest = hashlib.blake2b(author.encode("utf-8", "replace"), digest_size=4, person=b"ampmesh-hue/61").digest()
    return PALETTE[int.from_bytes(digest, "big") % len(PALETTE)]


def lay_out(said: Said, width: int | None) -> "Text":
    """An act as styled lines without a newline at the end. `width` in columns; None: lines are as long as they are."""
    from rich.text import Text

    head, indent = _head(said)
    room = None if width is None else max(width - 1 - indent, MIN_ROOM)
    lines = list(_wrapped(clean(said.text.rstrip()), None if room is None else room + indent - head.cell_len, room))
    if len(lines) > MAX_LINES:
        lines = [*lines[:MAX_LINES], f"… and {len(lines) - MAX_LINES} more lines"]
    blanks = "\n" + " " * indent
    shown = Text.assemble(head, Text(blanks.join(lines)))
    if said.left is not None:
        left = _left(*said.left)
        used = (0 if len(lines) > 1 else head.cell_len - indent) + Text(lines[-1]).cell_len
        fits = room is None or used + len(left) + 2 <= room
        shown.append("  " if fits else blanks)
        shown.append(left, "dim")
    return shown


class Screen:
    """Where lines go: with colours on a terminal that has them, plain on anything else and with NO_COLOR."""

    def __init__(self, file: TextIO) -> None:
        from rich.console import Console

        if reconfigure := getattr(file, "reconfigure", None):
            reconfigure(errors="replace")  # no name or word may end the command because the terminal cannot write it
        self._file = file
        self._console = Console(file=file)
        self._wide = self._console.is_terminal
        plain = not self._wide or self._console.no_color or self._console.legacy_windows
        self._colours = None if plain else self._console.color_system

    @property
    def width(self) -> int | None:
        """Columns, as they are now; None where no terminal shows them."""
        return self._console.width if self._wide else None

    def act(self, said: Said) -> str:
        """An act, to be written as it is; ends with a newline."""
        return styled(lay_out(said, self.width), self._colours) + "\n"

    def writing(self, author: str, text: str) -> str:
        """The newest words of an act that is not finished: about LIVE_LINES lines; ends with a newline."""
        room = max((self.width or 80) - 1 - INDENT, MIN_ROOM)
        shown = " ".join(clean(text[-LIVE_LINES * room :]))
        lines = wrap(f"{shown} …", room, room)
        cut = len(text) > LIVE_LINES * room or len(lines) > LIVE_LINES
        return self.act(Said(author, ("… " if cut else "") + "\n".join(lines[-LIVE_LINES + cut :])))

    def note(self, text: str, hang: int = 0) -> str:
        """Something of the command's own, dim, so that nobody takes it for somebody's words; ends with a newline.

        On a terminal it is broken between words; its further lines begin after `hang` columns.
        """
        from rich.text import Text

        line = " ".join(clean(text))
        lines = [line] if self.width is None else broken(line, self.width, hang)
        return "".join(styled(Text(one, "dim"), self._colours) + "\n" for one in lines)

    def write(self, line: str) -> None:
        """Write a line at once."""
        self._file.write(line)
        self._file.flush()


def styled(text: "Text", colours: str | None) -> str:
    """A text with its styles as SGR codes for a terminal with these `colours` (rich's names), or plain for None."""
    if colours is None:
        return text.plain
    console = _console(colours)
    with console.capture() as capture:
        console.print(text, soft_wrap=True, markup=False, highlight=False, emoji=False, end="")
    return capture.get()


def program(given: str) -> str:
    """How a person starts this program again, from `sys.argv[0]`: `mesh` where the path leads to it."""
    path = Path(given)
    if path.stem not in ("mesh", "ampmesh"):
        return "mesh"
    found = shutil.which(path.name)
    if found is not None and Path(found).absolute() == path.absolute():
        return path.name
    return shlex.quote(given)


@cache
def _console(colours: str) -> "Console":
    from rich.console import Console

    return Console(color_system=colours, force_terminal=True, no_color=False, legacy_windows=False, _environ={})  # pyright: ignore[reportArgumentType] - one of rich's names, from rich itself


def _printable(line: str) -> str:
    """One line without what a terminal would obey or hide."""
    if line.isascii() and line.isprintable():
        return line
    kept: list[str] = []
    marks = 0
    for c in line:
        kind = unicodedata.category(c)
        marks = marks + 1 if kind in ("Mn", "Me") else 0
        if c in _BLANK or ord(c) in _HIDDEN or marks > MAX_MARKS:
            continue
        if c.isprintable():
            kept.append(c)
        elif c == "\t":
            kept.append(TAB)
        elif kind == "Zs":
            kept.append(" ")
        elif kind in ("Cs", "Co", "Cn"):
            kept.append(GONE)
    return "".join(kept)


def _head(said: Said) -> "tuple[Text, int]":
    """What stands before the words: basin, author, kind; and the column where further lines begin."""
    from rich.text import Text

    author = Text("".join(clean(said.author)) or "?", f"bold color({colour_of(said.author)})")
    author.truncate(MAX_AUTHOR, overflow="ellipsis")
    head, indent = Text(), INDENT
    if said.basin is not None:
        head.append(f"{''.join(clean(said.basin)):{INDENT - 1}} ", "dim")
        indent += INDENT
    head.append_text(author)
    if said.kind != "say":
        head.append(f" ({''.join(clean(said.kind))})", "dim")
    head.append(" " * max(indent - head.cell_len, 1))
    return head, indent


def _wrapped(lines: Iterable[str], first: int | None, rest: int | None) -> Iterable[str]:
    """Wrap lines; the very first has only `first` columns, and stays empty when that is next to nothing."""
    for number, line in enumerate(lines):
        if first is None or rest is None:
            yield line
        elif number == 0 and first < MIN_ROOM:
            yield ""
            yield from wrap(line, rest, rest)
        else:
            yield from wrap(line, rest if number else first, rest)


def _left(hops: int, acts: int) -> str:
    """What a chain may still spend."""
    return f"{hops} hop{'' if hops == 1 else 's'} · {acts} act{'' if acts == 1 else 's'}"
