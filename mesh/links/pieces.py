"""Messages in pieces, for carriers that take only short ones: each piece begins with whether more of it follow."""

from collections.abc import Iterator
from typing import Final

from mesh.links.wire import MAX_SEALED, WireBroken

_LAST: Final = b"\0"
_MORE: Final = b"\1"


def cut(data: bytes, size: int) -> Iterator[bytes]:
    """The pieces of a message, of at most `size` bytes each; at least one."""
    step = size - 1
    end = max(len(data) - step, 0)
    place = 0
    while place < end:
        yield _MORE + data[place : place + step]
        place += step
    yield _LAST + data[place:]


class Joining:
    """Puts pieces together that come in order."""

    def __init__(self) -> None:
        self._held: list[bytes] = []
        self._size = 0

    def add(self, piece: bytes) -> bytes | None:
        """Take the next piece; returns the message that it ends, or None. Raises WireBroken for what is no piece."""
        if piece[:1] not in (_LAST, _MORE) or piece == _MORE:  # an empty one would make the others any number
            raise WireBroken("the other end sends no pieces of messages")
        self._held.append(piece[1:])
        self._size += len(piece)
        if self._size > MAX_SEALED + len(self._held):
            raise WireBroken("the other end sends a message that is too long")
        if piece[:1] == _MORE:
            return None
        whole = b"".join(self._held)
        self._held, self._size = [], 0
        return whole
