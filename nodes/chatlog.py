"""Chat logs: what an em is made of.

One message a line, `<name> text`. A line without a tag continues the message above it. A line that is exactly `---`
ends a scene. A continuation line that would look like a tag or like `---` carries one more space in front, as in
format=flowed (RFC 3676, "space-stuffing"): `render` puts it there, `parse` takes it away.
"""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nodes.errors import ConfigError
from nodes.picture import Picture
from nodes.textfile import not_text, read_bytes

MAX_FILE_BYTES: Final = 64 << 20  # a very long life of talk; more is a mistake or an attack
MAX_NAME_CHARS: Final = 255  # between < and >; a Matrix user id has at most 255 bytes
LONG_LINE_CHARS: Final = 65_536  # a longer line is hardly something said; it is kept whole, and reported
MAX_MESSAGES: Final = 2_000_000  # of a file; each needs some 190 bytes beside its text
MAX_PROBLEMS: Final = 100  # told one by one for a file; a log in quite another format has one in every line

BREAK: Final = "---"
_FRONT: Final = "%%%"
_NEARLY: Final = "< \t-"  # how a line begins that may be nearly a tag or a break

# In place of a name: links, HTML tags, and Discord's mentions, emoji and times.
_NOT_A_NAME: Final = re.compile(r"/.*|.*/|.*://.*|.*[<\x00-\x1f\x7f].*|[@#][!&]?\d+|a?:\w+:\d+|t:-?\d+.*", re.DOTALL)
_FRONT_END: Final = re.compile(rf"^{_FRONT}[ \t]*$", re.MULTILINE)
_LEADING_BLANK: Final = re.compile(r"[\s\ufeff]*\n")


@dataclass(frozen=True, slots=True)
class Line:
    """One message of a log. `author` is None for text without a tag. `source` says where it stands: `chat.txt:12`.

    `pictures` are those shown with it, which `text` does not name; files hold none.
    """

    author: str | None
    text: str
    source: str
    pictures: tuple[Picture, ...] = ()


@dataclass(frozen=True, slots=True)
class Scene:
    """Messages between two `---` lines: the unit of retrieval and training."""

    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True)
class Voice:
    """All text of an em: its log and its memory files, parsed.

    `names` are the em's own names, lower case (name and nicknames): lines by these authors, and untagged lines of
    scenes that hold no tag at all, are the em's own. `digest` changes whenever the text does (`b2:` + hex).
    """

    name: str
    names: frozenset[str]
    chat: tuple[Scene, ...]
    memory: tuple[Scene, ...]
    digest: str

    def is_own(self, line: Line) -> bool:
        """Whether the em said this line."""
        return line.author is None or line.author.lower() in self.names


def parse(text: str, source: str, problems: list[str] | None = None) -> tuple[Scene, ...]:
    """Read a log; every text is one. Scenes without a message are left out.

    `source` is the file's name, for `Line.source`. What is ambiguous, as `SOURCE:LINE: sentence`, is added to
    `problems` where given; nothing is left out but empty messages and those beyond MAX_MESSAGES. Untagged text that
    opens a scene is one message with no author, however many lines it has. Messages have no blank lines at their
    ends and no space after them.
    """
    reader = _Reader(_unix(text.lstrip("\ufeff")), source)
    scenes = reader.scenes()
    if problems is not None:
        problems.extend(reader.problems)
        if reader.untold:
            problems.append(f"{source}:1: has {reader.untold:,} more lines of these kinds; is it a chat log?")
        if reader.unread:
            problems.append(f"{source}:1: has more than {MAX_MESSAGES:,} messages; {reader.unread:,} are not read")
        if not scenes:
            problems.append(f"{source}:1: holds no messages; write lines such as `<name> hello`")
    return scenes


def render(lines: Iterable[Line]) -> str:
    """Write the messages of one scene so that `parse` gives them back, each in the form that `normal` gives.

    Only the first may have no author: a later one would continue the message above it. Characters that no tag can
    hold are written as `_`; empty messages are left out.
    """
    written: list[str] = []
    for line in lines:
        head, *rest = normal(line.text).split("\n")
        if head:
            written.append(_stuffed(head) if line.author is None else f"<{tag_name(line.author)}> {head}")
            written.extend(map(_stuffed, rest))
    return "".join(f"{line}\n" for line in written)


def normal(text: str) -> str:
    """A message's text as a log can hold it: LF line ends, no blank line or byte-order mark first, no space last."""
    text = _unix(text).rstrip()
    if blank := _LEADING_BLANK.match(text):
        text = text[blank.end() :]
    return text.lstrip("\ufeff")


def tag_name(author: str) -> str:
    """An author as a tag can hold it: unchanged if it is a name, else with `_` in place of what cannot stand there."""
    if is_name(author):
        return author
    kept = "".join("_" if char in "<>/:" or not char.isprintable() else char for char in author)
    kept = kept.strip()[: MAX_NAME_CHARS - 1].strip()
    return kept if is_name(kept) else f"_{kept}"


def is_name(text: str) -> bool:
    """Whether this may stand between < and > as somebody's name."""
    return (
        0 < len(text) <= MAX_NAME_CHARS and text == text.strip() and ">" not in text and not _NOT_A_NAME.fullmatch(text)
    )


def read(path: Path, within: Path | None = None, max_bytes: int = MAX_FILE_BYTES) -> tuple[str, list[str]]:
    """Give a file's text and what is wrong with it; a file that cannot be read or is not text gives no text.

    Bytes that are not UTF-8 become U+FFFD. Links that lead outside the folder `within` are refused.
    """
    try:
        data = read_bytes(path, max_bytes, within)
    except ConfigError as error:
        return "", error.problems
    if (reason := not_text(data)) is not None:
        return "", [f"{path}:1: {reason}"]
    try:
        return data.decode("utf-8-sig"), []
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        problem = f"{path}:{line}: is not UTF-8 from here on; what cannot be read is replaced. Save the file as UTF-8"
        return data.decode("utf-8-sig", "replace"), [problem]


def digest(texts: Iterable[str]) -> str:
    """The digest of texts in their order: `b2:` and 64 hex digits of BLAKE2b-256. Each counts with its length."""
    state = hashlib.blake2b(digest_size=32)
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        state.update(len(data).to_bytes(8, "big"))
        state.update(data)
    return f"b2:{state.hexdigest()}"


def blank_front(text: str, source: str, problems: list[str]) -> str:
    """Blank out Chapter II's front matter, which stands between two `%%%` lines; line numbers stay true.

    All it ever said of use was `chunking: false`, and scenes are always whole here.
    """
    text = _unix(text.lstrip("\ufeff"))
    if text.partition("\n")[0].rstrip() != _FRONT:
        return text
    end = _FRONT_END.search(text, len(_FRONT))
    if end is None:
        problems.append(f"{source}:1: opens with {_FRONT} and never closes it; the whole file is read as text")
        return text
    return "\n" * text.count("\n", 0, end.end()) + text[end.end() :]


def _unix(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def _special(line: str) -> bool:
    """Whether a line is a tag or a break, and not text."""
    if line == BREAK:
        return True
    end = line.find(">", 1, MAX_NAME_CHARS + 3) if line.startswith("<") else -1
    return end > 0 and is_name(line[1:end].strip())


def _stuffed(line: str) -> str:
    return f" {line}" if line.startswith((" ", "<", "-")) and _special(line.lstrip(" ")) else line


class _Reader:
    """The state of `parse`: the message that is being read, and the scenes that are done.

    A message is a piece of the text, cut once it is whole: millions of short lines would cost far more than they hold.
    """

    def __init__(self, text: str, source: str) -> None:
        self.problems: list[str] = []
        self.untold = 0
        self.unread = 0
        self._whole = text
        self._source = source
        self._left = MAX_MESSAGES
        self._scenes: list[Scene] = []
        self._scene: list[Line] = []
        self._opened = 1  # the line where the scene's first message begins
        self._author: str | None = None
        self._begun = -1  # the place in the text from which the message is still uncut; -1 when there is none
        self._pieces: list[str] = []
        self._number = 1  # the line where the message begins
        self._names: dict[str, str | None] = {}  # what stood between < and >, to the name, shared by all its lines

    def scenes(self) -> tuple[Scene, ...]:
        """Read everything."""
        text, start, number = self._whole, 0, 1
        while start <= len(text):
            end = text.find("\n", start)
            end = len(text) if end < 0 else end
            self._take(number, start, end)
            start, number = end + 1, number + 1
        self._end_scene(len(text))
        return tuple(self._scenes)

    def _take(self, number: int, start: int, end: int) -> None:
        if end - start > LONG_LINE_CHARS:
            self._tell(number, f"is a line of {end - start:,} characters; it is kept as one message")
        first = self._whole[start : start + 1]
        if first == "<" and self._tag(number, start, end):
            return
        if end - start == len(BREAK) and self._whole.startswith(BREAK, start):
            self._end_scene(start)
            return
        stuffed = first in _NEARLY and start < end and self._ambiguous(number, self._whole[start:end])
        if self._begun < 0 and self._whole[start:end].strip():
            self._begun, self._number = start, number
        if stuffed:
            self._pieces.append(self._whole[self._begun : start])
            self._begun = start + 1

    def _tag(self, number: int, start: int, end: int) -> bool:
        close = self._whole.find(">", start + 1, min(end, start + MAX_NAME_CHARS + 3))
        if close < 0:
            return False
        raw = self._whole[start + 1 : close]
        if raw not in self._names:
            name = raw.strip()
            self._names[raw] = name if is_name(name) else None
        author = self._names[raw]
        if author is None:
            return False
        self._end_message(start)
        self._author = author
        self._number = number
        self._begun = close + 2 if self._whole.startswith(" ", close + 1) else close + 1
        return True

    def _ambiguous(self, number: int, line: str) -> bool:
        """Report a line that is nearly a tag or a break. Whether it has a space in front that `render` put there."""
        bare = line.strip()
        if line.startswith("<"):
            self._tell(number, "begins with < but with no name in <>; it is read as text")
        elif bare == BREAK or (bare.startswith("<") and _special(bare)):
            what = "a scene break with spaces around it" if bare == BREAK else "an indented tag"
            self._tell(number, f"is {what}; it is read as text of the message above")
            return line.startswith(" ") and _special(line.lstrip(" "))
        return False

    def _end_message(self, end: int) -> None:
        if self._begun < 0:
            return
        self._pieces.append(self._whole[self._begun : end])
        text = normal("".join(self._pieces))
        if not text and self._author is not None:
            self._tell(self._number, "is a tag with no text; it is left out")
        elif text and self._left == 0:
            self.unread += 1
        elif text:
            self._opened = self._opened if self._scene else self._number
            self._scene.append(Line(self._author, text, f"{self._source}:{self._number}"))
            self._left -= 1
        self._author, self._begun = None, -1
        self._pieces.clear()

    def _end_scene(self, end: int) -> None:
        self._end_message(end)
        if len(self._scene) > 1 and self._scene[0].author is None:
            self._tell(self._opened, "is text before the first <name> of its scene; it is read as the em's own")
        if self._scene:
            self._scenes.append(Scene(tuple(self._scene)))
            self._scene = []

    def _tell(self, number: int, what: str) -> None:
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(f"{self._source}:{number}: {what}")
        else:
            self.untold += 1
