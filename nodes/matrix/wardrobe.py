"""What people see of a speaker: its name and its picture."""

import hashlib
from collections.abc import Iterable

import structlog

from mesh.bridges.matrix.errors import MatrixError
from mesh.bridges.matrix.port import MatrixPort, Speaker
from mesh.words import plain
from nodes.em import MAX_AVATAR_BYTES, Em
from nodes.errors import ConfigError
from nodes.matrix.tables import Tables
from nodes.node import Node
from nodes.textfile import read_bytes

log = structlog.get_logger(__name__)


class Wardrobe:
    """Knows how speakers look, and has their Matrix users look so."""

    def __init__(self, node: Node, port: MatrixPort, tables: Tables) -> None:
        self._node, self._port, self._tables = node, port, tables
        self._pictures: dict[str, str] = {}

    def hosted(self) -> None:
        """Other ems are here: know the pictures that their users have already."""
        held = {em: self._tables.avatar(self._port.user_id(em)) for em in self._node.runtime.ems}
        self._pictures |= {em: picture[1] for em, picture in held.items() if picture}

    def who(self, key: str) -> Speaker:
        """A speaker as the port takes it."""
        em = self._node.runtime.ems.get(key)
        name = self._node.config.name if em is None else em.settings.name or em.name
        return Speaker(key, name, self._pictures.get(key))

    async def dress(self, ems: Iterable[str]) -> None:
        """Give users their names and pictures. What fails now is done at the next joining."""
        for key in ems:
            em = self._node.runtime.ems.get(key)
            try:
                if em is not None and em.avatar is not None:
                    await self._picture(em)
                await self._port.ensure(self.who(key))
            except MatrixError as error:
                log.warning("an em's name or picture could not be set", em=key, reason=plain(str(error)))

    async def _picture(self, em: Em) -> None:
        """Upload a picture that is not there yet."""
        if em.avatar is None:
            return
        try:
            data = read_bytes(em.avatar, MAX_AVATAR_BYTES, em.avatar.parent)
        except ConfigError as error:
            log.warning("a picture cannot be read", em=em.name, reason=plain(str(error)))
            return
        digest, user = hashlib.blake2b(data, digest_size=16).hexdigest(), self._port.user_id(em.name)
        held = self._tables.avatar(user)
        if held is None or held[0] != digest:
            mxc = await self._port.upload(em.name, data, "image/png", "avatar.png")
            with self._node.ground.store.transaction():
                self._tables.set_avatar(user, digest, mxc)
            held = (digest, mxc)
        self._pictures[em.name] = held[1]
