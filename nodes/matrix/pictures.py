"""Pictures that people send: fetched, looked at and kept, as far as a room and a server may have us do so."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
import structlog

from mesh.bridges.matrix.attachments import unseal
from mesh.bridges.matrix.errors import MatrixError
from mesh.bridges.matrix.port import MatrixPort
from mesh.bridges.matrix.reading import Heard
from mesh.clock import Clock
from mesh.store import Store
from mesh.words import plain
from nodes.errors import NodeError
from nodes.matrix.tables import Tables
from nodes.media import Media
from nodes.picture import MAX_BYTES

FETCH_S: Final = 10.0  # for a picture; its room waits so long
SLOW_S: Final = 600.0  # that a server is not asked for pictures after one took longer, nor any for that room
PICTURES: Final = 60  # of a room that are fetched in PICTURES_MS: 480 MB at worst
PICTURES_MS: Final = 600_000

log = structlog.get_logger(__name__)


class Pictures:
    """Fetches them."""

    def __init__(self, port: MatrixPort, media: Media, store: Store, tables: Tables, clock: Clock) -> None:
        self._port, self._media, self._store, self._tables, self._clock = port, media, store, tables, clock
        self._slow: dict[str, float] = {}  # servers whose files took too long, and rooms, and until when none is asked

    async def of(self, room: str, heard: Heard) -> Sequence[Mapping[str, Any]]:
        """The picture of a message, fetched and looked at; what is none, or cannot be had, is left out.

        A server that kept us waiting is not asked again for a while, nor is any for the same room, as names of servers
        cost nothing: pictures must not hold up a room.
        """
        media, now = heard.media, asyncio.get_running_loop().time()
        if media is None or not media.mime.startswith("image/"):
            return ()
        server = media.url.split("/")[2]
        if max(self._slow.get(server, now), self._slow.get(room, now)) > now or not self._may_show(room):
            return ()
        try:
            async with asyncio.timeout(FETCH_S):
                data, mime = await self._port.download(media.url, MAX_BYTES)
            if media.seal:
                data, mime = await asyncio.to_thread(unseal, data, media.seal), media.mime
            picture = await asyncio.to_thread(self._media.put, data, media.name, mime)
        except (MatrixError, NodeError, TimeoutError) as error:
            if isinstance(error, TimeoutError):
                still = {one: until for one, until in self._slow.items() if until > now}
                self._slow = still | dict.fromkeys((server, room), now + SLOW_S)
            log.info("a picture is left out", reason=plain(str(error)) or "it took too long")
            return ()
        return (msgspec.to_builtins(picture),)

    def _may_show(self, room: str) -> bool:
        """Whether one more picture of a room is fetched; counts it."""
        with self._store.transaction():
            return self._tables.heed(f"pictures {room}", self._clock(), PICTURES_MS, PICTURES)
