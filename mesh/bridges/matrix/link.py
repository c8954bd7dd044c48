"""A room as a link: nodes whose homeservers federate exchange frames in a room, and need no open port.

A frame travels as bytes, since homeservers may write JSON anew; its type is one that clients do not show. Matrix keeps
neither order between homeservers nor secrets: what a frame is worth, it says itself.
"""

import base64
import re
from collections.abc import Mapping
from typing import Any, Final

from mesh.bridges.matrix.errors import BadContent

FRAME: Final = "org.ampmesh.frame"
MAX_INSIDE: Final = 47_000  # bytes: 62,667 in base64, which leaves 2.8 KiB of an event for its ids and signatures
BYTES: Final = "bytes"
BASE64URL: Final = re.compile(rf"[A-Za-z0-9_-]{{2,{-(-MAX_INSIDE * 4 // 3)}}}")


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
