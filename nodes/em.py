"""An em, from its folder: settings, text and picture.

    ems/aporia/
      config.yaml          settings; every key optional
      chat.txt             the em's own log
      aporia.chr/*.txt     more text, as memory; or one file aporia.chr
      avatar.png           optional

A folder may come from anybody: links out of it, pipes and devices are refused, and sizes are bounded.
"""

import os
import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from nodes.chatlog import MAX_FILE_BYTES, Scene, Voice, blank_front, digest, parse, read
from nodes.complaints import plain_key, sentence
from nodes.em_settings import MAX_WINDOW, EmSettings
from nodes.errors import ConfigError
from nodes.models import names as models
from nodes.pattern import Pattern, compile_pattern
from nodes.settings import load
from nodes.textfile import read_bytes

EM_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")  # also a Matrix user's and a file's name: kept short
MAX_TEXT_BYTES: Final = MAX_FILE_BYTES  # of all files of an em together
MAX_MEMORY_FILES: Final = 4_096  # in NAME.chr/
MAX_AVATAR_BYTES: Final = 8 << 20  # homeservers refuse larger pictures sooner than this
MAX_TOLD_AUTHORS: Final = 5  # in the note on a log that is nobody's


@dataclass(frozen=True, slots=True)
class Em:
    """An em as its folder says it.

    `name` is the folder's name and the em's part of its address; `settings.name` is what people see, and never empty.
    `pattern` is `reply_on_regex`, ready to use. `avatar` is an existing PNG's path. `notes` are the things a person may
    want to know, as `FILE:LINE: sentence`: ambiguous text, ignored keys, files that could not be read.
    """

    name: str
    folder: Path
    settings: EmSettings
    voice: Voice
    pattern: Pattern | None
    avatar: Path | None
    notes: tuple[str, ...]

    def listens(self, basin: str, allowed: Collection[str] | None) -> bool:
        """Whether it listens in a basin where those `allowed` may (None: everybody)."""
        return basin in self.settings.basins and (allowed is None or self.name in allowed)


def load_em(folder: Path) -> Em:
    """Read an em's folder. Text that cannot be read is left out with a note.

    Raises ConfigError with all problems when the folder is none, or its name or settings are wrong.
    """
    folder = Path(os.path.abspath(folder))  # noqa: PTH100 - resolve() would put a link's target name in place of ours
    if not EM_NAME.fullmatch(folder.name):
        raise ConfigError([sentence(folder, 1, "is no name for an em; use 1 to 32 of a-z, 0-9, _ and -")])
    files = _listing(folder)
    notes: list[str] = []
    config = folder / "config.yaml"
    settings = load(config, EmSettings, within=folder, notes=notes) if config.name in files else EmSettings()
    settings = _possible(settings, config, notes)
    reader = _TextReader(folder, notes)
    settings = settings if settings.name else settings.model_copy(update={"name": folder.name})
    chat = reader.scenes("chat.txt") if "chat.txt" in files else ()
    memory: list[Scene] = []
    for name in files:
        if name in {f"{folder.name}.chr", f"{settings.name}.chr"}:
            memory.extend(reader.memory(name))
    names = frozenset(known.lower() for known in (folder.name, settings.name, *settings.nicknames))
    voice = Voice(settings.name, names, chat, tuple(memory), digest([settings.name, *sorted(names), "", *reader.texts]))
    notes.extend(_oddities(folder, files, voice))
    pattern = None if settings.reply_on_regex is None else compile_pattern(settings.reply_on_regex)
    return Em(folder.name, folder, settings, voice, pattern, _avatar(folder, files, notes), tuple(notes))


def load_ems(root: Path, unchanged: Mapping[str, Em] = MappingProxyType({})) -> tuple[list[Em], list[str]]:
    """Read all ems of a folder, by name, and the problems of those that could not be; hidden folders are passed over.

    One broken em never stops the others. A link to a folder elsewhere is refused: it may have come in an archive.
    `unchanged` are ems by folder name that need not be read again.
    """
    ems: list[Em] = []
    try:
        names = _listing(root)
    except ConfigError as error:
        return [], error.problems
    problems: list[str] = []
    for name in names:
        folder = root / name
        try:
            if folder.is_symlink() and not folder.resolve().is_relative_to(root.resolve()):
                problems.append(sentence(folder, 1, "is a link that leads elsewhere; put a copy in its place"))
            elif folder.is_symlink() and not folder.exists():
                problems.append(sentence(folder, 1, "is a link that leads nowhere; remove it"))
            elif folder.is_dir():
                ems.append(unchanged.get(name) or load_em(folder))
        except ConfigError as error:
            problems.extend(error.problems)
        except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
            problems.append(sentence(folder, 1, f"cannot be read: {error}"))
    return ems, problems


class _TextReader:
    """Reads the text files of one em, `MAX_TEXT_BYTES` in all."""

    def __init__(self, folder: Path, notes: list[str]) -> None:
        self.texts: list[str] = []
        self._folder = folder
        self._notes = notes
        self._left = MAX_TEXT_BYTES

    def scenes(self, name: str, *, front: bool = False) -> tuple[Scene, ...]:
        """The scenes of one file, whose name within the folder they carry as their source."""
        text, problems = read(self._folder / name, self._folder, self._left)
        self._notes.extend(problems)
        self._left -= len(text.encode("utf-8", "surrogatepass"))
        self.texts.append(text)
        told: list[str] = []
        source = plain_key(name)
        scenes = parse(blank_front(text, source, told) if front else text, source, told) if text or not problems else ()
        self._notes.extend(f"{self._folder}/{problem}" for problem in told)
        return scenes

    def memory(self, name: str) -> list[Scene]:
        """The scenes of NAME.chr, a folder of text files or one file."""
        folder = self._folder / name
        if not folder.is_dir():
            return list(self.scenes(name, front=True))
        if not folder.resolve().is_relative_to(self._folder.resolve()):
            self._notes.append(sentence(folder, 1, "is a link that leads outside its folder; put a copy in its place"))
            return []
        names = [file for file in _listing(folder) if file.endswith(".txt")]
        if len(names) > MAX_MEMORY_FILES:
            left = len(names) - MAX_MEMORY_FILES
            self._notes.append(sentence(folder, 1, f"has too many files; the last {left:,} are not read. Join some"))
        return [scene for file in names[:MAX_MEMORY_FILES] for scene in self.scenes(f"{name}/{file}", front=True)]


def _possible(settings: EmSettings, config: Path, notes: list[str]) -> EmSettings:
    """The settings, with what is asked for and cannot be had brought down to what can; each is told."""
    name = None if settings.model is None else models.ModelName.parse(settings.model)
    if name is not None and name.tokenizer is not None:
        notes.append(sentence(config, 1, "model: the tokenizer behind ^ is not used; a token counts as 4 characters"))
    _, reply = settings.shares(None if name is None else name.context)
    if reply < settings.max_tokens:
        reason = f"max_tokens: {settings.max_tokens:,} leave no room for a prompt; replies have {reply:,} at most"
        notes.append(sentence(config, 1, reason))
    if settings.recency_window <= MAX_WINDOW:
        return settings
    reason = f"recency_window: {settings.recency_window:,} messages are more than a node keeps; it sees {MAX_WINDOW}"
    notes.append(sentence(config, 1, reason))
    return settings.model_copy(update={"recency_window": MAX_WINDOW})


def _listing(folder: Path) -> list[str]:
    """The names in a folder, sorted; hidden ones are left out."""
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith("."))  # noqa: PTH208 - names, not paths
    except OSError as error:
        raise ConfigError([sentence(folder, 1, f"cannot be read as a folder: {error.strerror}")]) from error


def _avatar(folder: Path, files: list[str], notes: list[str]) -> Path | None:
    if "avatar.png" not in files:
        return None
    path = folder / "avatar.png"
    try:
        is_png = read_bytes(path, MAX_AVATAR_BYTES, folder).startswith(b"\x89PNG\r\n\x1a\n")
    except ConfigError as error:
        notes.extend(error.problems)
        return None
    if not is_png:
        notes.append(sentence(path, 1, "is not a PNG picture; it is not used"))
    return path if is_png else None


def _oddities(folder: Path, files: list[str], voice: Voice) -> list[str]:
    """What was probably meant otherwise."""
    found: list[str] = []
    for name in files:
        if name.endswith(".chr") and name not in {f"{folder.name}.chr", f"{voice.name}.chr"}:
            found.append(sentence(folder / name, 1, f"is not read; rename it to {folder.name}.chr"))
        elif name in {"config.yml", "chat.log"}:
            right = "config.yaml" if name == "config.yml" else "chat.txt"
            found.append(sentence(folder / name, 1, f"is not read; rename it to {right}"))
        elif name.removesuffix(".yaml") in {*EmSettings.model_fields, *EmSettings.tolerated}:
            found.append(sentence(folder / name, 1, "is a setting in a file of its own; put it into config.yaml"))
    if not voice.chat and not voice.memory:
        found.append(sentence(folder, 1, "has no text; write chat.txt, with lines such as `<name> hello`"))
    authors = Counter(line.author for scene in voice.chat for line in scene.lines)
    if authors and not any(voice.is_own(line) for scene in voice.chat for line in scene.lines):
        told = ", ".join(f"{author} ({count})" for author, count in authors.most_common(MAX_TOLD_AUTHORS))
        reason = f"has no line by {voice.name}, only by {told}; set name or nicknames in config.yaml"
        found.append(sentence(folder / "chat.txt", 1, reason))
    return found
