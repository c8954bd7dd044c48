"""The `matrix` section of mesh.yaml: how the node behaves in rooms. How it logs in is in keys/matrix.json."""

import re
from functools import lru_cache
from typing import Annotated, Final, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, StringConstraints

from nodes.settings import Settings

MAX_PATTERNS: Final = 256  # users or servers in one list
MAX_MINUTES: Final = 10_080.0  # a week; what is older is history
MAX_COUNT: Final = 10_000
MAX_PER_DAY: Final = 1_000_000
MAX_TOKENS: Final = 100_000_000
WINDOW_MINUTES: Final = 10  # in which a machine's messages are counted

_USERS: Final = re.compile(r"@[^\s:]{1,254}:[^\s]{1,230}|\*")


def _users(value: str) -> str:
    if not _USERS.fullmatch(value):
        raise ValueError("must be a user such as @mara:example.org, all of a server as @*:example.org, or *")
    return value


def _base(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment:
        raise ValueError("must be a URL that begins with https:// or http://")
    return value


Users = Annotated[str, StringConstraints(max_length=300), AfterValidator(_users)]
"""A Matrix user, with `*` for any characters in the name, or `*` alone for everybody."""

Key = Annotated[str, StringConstraints(max_length=60)]
Control = Literal["stop", "retry", "hide", "continue"]


class Controls(Settings):
    """Reactions that do something; with an empty text none does."""

    stop: Key = Field(default="🛑", description="Ends everything that is being written.")
    retry: Key = Field(default="🔁", description="Takes a reply back and has it written anew.")
    hide: Key = Field(default="🙈", description="Has the ems forget a message, until the reaction is taken back.")
    go_on: Key = Field(default="▶️", description="Has an em go on after its reply.")

    def meant(self, key: str) -> Control | None:
        """What a reaction asks for. Clients send emoji with and without a variation selector."""
        found: dict[str, Control] = {
            _bare(self.stop): "stop",
            _bare(self.retry): "retry",
            _bare(self.hide): "hide",
            _bare(self.go_on): "continue",
        }
        return found.get(_bare(key)) if _bare(key) else None


def _bare(key: str) -> str:
    return key.replace("\ufe0f", "").strip()


class Matrix(Settings):
    """How this node's ems behave in Matrix rooms."""

    inviters: tuple[Users, ...] = Field(
        default=(),
        max_length=MAX_PATTERNS,
        strict=False,
        description="Who may invite ems, beside you: ['@mara:example.org', '@*:example.org'].",
    )
    bots: tuple[Users, ...] = Field(
        default=(),
        max_length=MAX_PATTERNS,
        strict=False,
        description="Users known to be machines: answered only when they mention an em.",
    )
    controls: Controls = Field(default_factory=Controls, description="Reactions that do something.")
    pages: Annotated[str, AfterValidator(_base)] | None = Field(
        default=None,
        description="Where browsers reach the appservice's listener, such as https://mesh.example.org; then `!mesh why`"
        " links to the whole prompt, for everybody in the room to read. null shows the command instead.",
    )
    stream: bool = Field(default=True, description="Shows long replies while they are written, in at most 8 edits.")
    answer_within_minutes: float = Field(
        default=60.0, gt=0, le=MAX_MINUTES, description="Older messages are read and not answered."
    )
    messages_per_minute: int = Field(
        default=20, ge=1, le=MAX_COUNT, description="Of one person that are answered; the others are read."
    )
    messages_per_day: int = Field(
        default=500, ge=1, le=MAX_PER_DAY, description="The same for a whole day: a machine that hides is held by it."
    )
    bot_messages: int = Field(
        default=5, ge=0, le=MAX_COUNT, description=f"Of one machine that are answered in {WINDOW_MINUTES} minutes."
    )
    room_tokens: int = Field(
        default=200_000,
        ge=0,
        le=MAX_TOKENS,
        description="Model tokens that machines may cost a room until a person speaks again.",
    )


def fits(user: str, patterns: tuple[str, ...]) -> bool:
    """Whether a user is one of these. `*` stands for any characters of a name, never for a server's colon."""
    return any(pattern == "*" or _compiled(pattern).fullmatch(user) for pattern in patterns)


@lru_cache(maxsize=1024)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile("[^:]*".join(map(re.escape, pattern.split("*"))))
