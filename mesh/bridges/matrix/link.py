"""A room as a link: nodes whose homeservers federate exchange signed frames in a room, and need no open port.

A frame travels as bytes, since homeservers may write JSON anew; its type is one that clients do not show. What is too
long for an event lies with the homeserver as a file, and the event says where and which. Matrix keeps neither order
between homeservers nor secrets: what a frame is worth stands in its signature and its sequence number.
"""

import base64
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

from mesh.bridges.matrix.errors import BadContent
from mesh.bridges.matrix.inbox import Inbound
from mesh.bridges.matrix.port import MatrixPort, Speaker
from mesh.bridges.matrix.reading import MXC
from protocol.frame import MAX_FRAME

FRAME: Final = "org.ampmesh.frame"
MAX_INSIDE: Final = 47_000  # bytes: 62,667 in base64, which leaves 2.8 KiB of an event for its ids and signatures
MAX_SEALED: Final = 33_700  # the same where the room is encrypted, which makes a third more of it once more
BYTES: Final = "bytes"
FILE: Final = "file"
MIME: Final = "application/octet-stream"
DIGEST_BYTES: Final = 32
BASE64URL: Final = re.compile(rf"[A-Za-z0-9_-]{{2,{-(-MAX_INSIDE * 4 // 3)}}}")
DIGEST: Final = re.compile(rf"b2:[0-9a-f]{{{2 * DIGEST_BYTES}}}")


@dataclass(frozen=True, slots=True)
class Stored:
    """A frame that lies in a file: its `mxc://` address, its length in bytes, its BLAKE2b-256."""

    url: str
    size: int
    digest: str


class RoomLink:
    """Frames through one room. `speaker` must have joined it."""

    def __init__(self, port: MatrixPort, speaker: Speaker, room: str) -> None:
        self._port, self._speaker, self.room = port, speaker, room

    def put(self, data: bytes, key: str) -> bool:
        """Keep a frame for sending, within the caller's transaction; call `port.outbox.wake()` after the commit.

        `key` is the frame's own, such as its id: the same again is the same event, and False is returned.
        Raises BadContent when it is empty or longer than an event of the room holds (`send` takes longer ones where
        the room is not encrypted), MatrixFull.
        """
        if len(data) > self._most:
            raise BadContent(f"a frame of {len(data)} bytes does not fit an event of the room: it holds {self._most}")
        return self._port.put(self._speaker, self.room, FRAME, frame_content(data), key)

    @property
    def _most(self) -> int:
        """Bytes that an event of the room holds."""
        return MAX_SEALED if self._port.inbox.is_encrypted(self.room) else MAX_INSIDE

    async def send(self, data: bytes, key: str) -> str:
        """Keep a frame of at most MAX_FRAME bytes, and wait until our homeserver has it; returns the event's id.

        Once kept it outlives this process, and cancelling stops the waiting, not the sending. Raises what `put` does,
        also for a long frame in an encrypted room, MatrixRefused when it was given up, and for a long frame
        MatrixUnavailable: then it is not kept.
        """
        content = frame_content(data) if len(data) <= self._most else await self._store(data)
        return await self._port.send(self._speaker, self.room, FRAME, content, key)

    async def _store(self, data: bytes) -> dict[str, Any]:
        if len(data) > MAX_FRAME:
            raise BadContent(f"a frame of {len(data)} bytes is too long; a room carries at most {MAX_FRAME}")
        if self._most < MAX_INSIDE:
            raise BadContent(
                f"a frame of {len(data)} bytes is too long for an encrypted room, which holds {MAX_SEALED}: a file"
                " beside it would lie there in clear"
            )
        url = await self._port.upload(self._speaker.key, data, MIME, "frame")
        return stored_content(Stored(url, len(data), digest(data)))

    async def read(self, event: Inbound) -> bytes | None:
        """The frame in an event that was heard, when it is one of this room; a long one is fetched.

        None when it is no frame, or not the one that was announced. Raises MatrixUnavailable (try again) and
        MatrixRefused (it is gone) for long ones.
        """
        if event.room != self.room:
            return None
        stored = read_stored(event.kind, event.content)
        if stored is None:
            return read_frame(event.kind, event.content)
        data, _ = await self._port.download(stored.url, stored.size)
        return data if len(data) == stored.size and digest(data) == stored.digest else None


def frame_content(data: bytes) -> dict[str, Any]:
    """The content of an event that holds a frame. Raises BadContent when it is empty or longer than MAX_INSIDE."""
    if not 0 < len(data) <= MAX_INSIDE:
        raise BadContent(f"a frame of {len(data)} bytes does not fit an event, which holds 1 to {MAX_INSIDE}")
    return {BYTES: base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")}


def read_frame(kind: str, content: Mapping[str, Any]) -> bytes | None:
    """The bytes of a frame, exactly as they were sent; None for other kinds and for what is no base64. Total."""
    text = content.get(BYTES)
    if kind != FRAME or not isinstance(text, str) or not BASE64URL.fullmatch(text) or len(text) % 4 == 1:
        return None
    data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    return data if frame_content(data)[BYTES] == text else None  # bits that say nothing are zero: one form a frame


def stored_content(stored: Stored) -> dict[str, Any]:
    """The content of an event that says where a long frame lies."""
    return {FILE: {"url": stored.url, "size": stored.size, "digest": stored.digest}}


def read_stored(kind: str, content: Mapping[str, Any]) -> Stored | None:
    """Where a long frame lies; None for other kinds and for what says nothing of the sort. Total."""
    value = content.get(FILE)
    if kind != FRAME or not isinstance(value, dict):
        return None
    file = cast("dict[str, Any]", value)
    url, size, told = file.get("url"), file.get("size"), file.get("digest")
    if not (isinstance(url, str) and MXC.fullmatch(url) and isinstance(told, str) and DIGEST.fullmatch(told)):
        return None
    return Stored(url, size, told) if type(size) is int and MAX_INSIDE < size <= MAX_FRAME else None


def digest(data: bytes) -> str:
    """BLAKE2b-256, with the name of its algorithm."""
    return "b2:" + hashlib.blake2b(data, digest_size=DIGEST_BYTES).hexdigest()
