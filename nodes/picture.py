"""Pictures as acts name them, and what the first bytes of a file say about it. Pure.

The body of an act that shows pictures holds `media`, a list of `{"sha256": hex, "mime": text, "bytes": n, "name":
text}`. The bytes themselves are in the home's media folder (nodes.media); whoever lacks them sees the name.
"""

import re
from collections.abc import Callable, Iterator
from typing import Annotated, Final, Literal, NamedTuple, cast

import msgspec

from mesh.words import plain
from protocol.acts import Act

Mime = Literal["image/png", "image/jpeg", "image/gif", "image/webp"]

MAX_BYTES: Final = 8 << 20  # of a picture: a large photo of a phone; few vendors take more
MAX_SIDE: Final = 16_384  # pixels; no camera makes more, and all four formats can claim far more
MAX_PIXELS: Final = 64_000_000  # 256 MB once unpacked, which a model's server has to bear
MAX_LISTED: Final = 8  # pictures of one act that are looked at
MAX_GIVEN_NAME: Final = 4_096  # characters of a name as it comes; file systems and clients give less
MAX_NAME: Final = 64  # characters of a name as it is shown
MAX_SEGMENTS: Final = 1_000  # of a JPEG before its size, with padding; profiles of colour take a few dozen

_HASH: Final = re.compile(r"[0-9a-f]{64}")
_NOT_IN_NAMES: Final = str.maketrans("[]<>", "()()")  # they would end the label, or look like somebody's tag
_SAME: Final = {"image/jpg": "image/jpeg", "image/pjpeg": "image/jpeg", "image/x-png": "image/png"}


class Picture(msgspec.Struct, frozen=True):
    """A picture by the hash of its bytes; in JSON and MessagePack `size` is called `bytes`.

    Mime and size are what somebody claims, unless `Media.put` made it; `name` is clean only after `named`.
    """

    sha256: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
    mime: Mime
    size: Annotated[int, msgspec.Meta(ge=1, le=MAX_BYTES)] = msgspec.field(name="bytes")
    name: Annotated[str, msgspec.Meta(max_length=MAX_GIVEN_NAME)] = ""

    @property
    def label(self) -> str:
        """What stands in a text for the picture."""
        return f"[image: {named(self.name)}]"


class Look(NamedTuple):
    """What a picture is by its own bytes: its type, and its width and height in pixels."""

    mime: Mime
    width: int
    height: int


def is_hash(text: str) -> bool:
    """Whether this is a SHA-256 in hex, and so may be the name of a file."""
    return _HASH.fullmatch(text) is not None


def named(name: str) -> str:
    """A file's name as it may stand in a prompt: one printable line without folders; `picture` for none."""
    last = re.split(r"[/\\]", name)[-1]
    return plain(last.translate(_NOT_IN_NAMES), MAX_NAME) or "picture"


def same_type(claimed: str, mime: Mime) -> bool:
    """Whether a type as somebody wrote it is this one; parameters and letter case do not count."""
    bare = claimed.partition(";")[0].strip().lower()
    return _SAME.get(bare, bare) == mime


def pictures(act: Act) -> tuple[Picture, ...]:
    """The pictures that an act shows, each once. Total: whatever is no picture is passed over."""
    listed: object = act.body.get("media")
    found: dict[str, Picture] = {}
    for item in cast("list[object]", listed)[:MAX_LISTED] if isinstance(listed, list) else ():
        try:
            picture = msgspec.convert(item, Picture)
        except msgspec.ValidationError:
            continue
        found.setdefault(picture.sha256, msgspec.structs.replace(picture, name=named(picture.name)))
    return tuple(found.values())


def with_labels(text: str, shown: tuple[Picture, ...]) -> str:
    """A message's text with its pictures named in it; a text that is only a picture's name gives way to the label."""
    if not shown:
        return text
    labels = " ".join(picture.label for picture in shown)
    names = [picture.name for picture in shown]
    nothing_more = text.strip() in {"", *names, " ".join(names)}
    return labels if nothing_more else f"{text.rstrip()} {labels}"


def look(data: bytes) -> Look | None:
    """What these bytes are, by their own beginning; None when they are no PNG, JPEG, GIF or WebP. Total."""
    readers: tuple[tuple[Mime, Callable[[bytes], tuple[int, int] | None]], ...] = (
        ("image/png", _png),
        ("image/jpeg", _jpeg),
        ("image/gif", _gif),
        ("image/webp", _webp),
    )
    for mime, read in readers:
        sides = read(data)
        if sides is not None and min(sides) > 0:
            return Look(mime, *sides)
    return None


def _png(data: bytes) -> tuple[int, int] | None:
    """The size is in the first chunk (PNG, W3C Recommendation, 11.2.1)."""
    if len(data) < 24 or not data.startswith(b"\x89PNG\r\n\x1a\n") or data[12:16] != b"IHDR":  # noqa: PLR2004 - where the size ends
        return None
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


def _gif(data: bytes) -> tuple[int, int] | None:
    """The logical screen's size (GIF89a, 18)."""
    if len(data) < 10 or not data.startswith((b"GIF87a", b"GIF89a")):  # noqa: PLR2004 - where the size ends
        return None
    return int.from_bytes(data[6:8], "little"), int.from_bytes(data[8:10], "little")


def _webp(data: bytes) -> tuple[int, int] | None:
    """The size in the first chunk, which has three kinds (RFC 9649, 2.5 to 2.7)."""
    if len(data) < 30 or not data.startswith(b"RIFF") or data[8:12] != b"WEBP":  # noqa: PLR2004 - where the size ends
        return None
    match data[12:16]:
        case b"VP8X":
            return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
        case b"VP8L" if data[20] == 0x2F:  # noqa: PLR2004 - its signature
            bits = int.from_bytes(data[21:25], "little")
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        case b"VP8 " if data[23:26] == b"\x9d\x01\x2a":
            return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF
        case _:
            return None


def _jpeg(data: bytes) -> tuple[int, int] | None:
    """The size in the frame header, behind any number of other segments (ITU-T T.81, B.2.2)."""
    for kind, at in _segments(data):
        if 0xC0 <= kind <= 0xCF and kind not in {0xC4, 0xC8, 0xCC}:  # noqa: PLR2004 - SOF0 to SOF15
            height, width = data[at + 3 : at + 5], data[at + 5 : at + 7]
            return (int.from_bytes(width, "big"), int.from_bytes(height, "big")) if len(width) == 2 else None  # noqa: PLR2004 - bytes
    return None


def _segments(data: bytes) -> Iterator[tuple[int, int]]:
    """A JPEG's segments before the picture itself: the marker, and where the segment's length stands."""
    if not data.startswith(b"\xff\xd8\xff"):
        return
    at = 2
    for _ in range(MAX_SEGMENTS):
        if data[at : at + 2] == b"\xff\xff":  # padding
            at += 1
            continue
        if data[at : at + 1] != b"\xff" or len(data) < at + 4:
            return
        yield data[at + 1], at + 2
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
