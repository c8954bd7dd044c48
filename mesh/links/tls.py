"""TLS for nodes and hubs that have a name: a certificate and its key in PEM files, taken up anew when they change."""

import asyncio
import ssl
import stat
import sys
from pathlib import Path
from typing import Final, NoReturn

import structlog

from mesh.errors import MeshError

LOOK_S: Final = 60.0  # between two looks whether the files have changed: renewals come weeks before the end
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO

log = structlog.get_logger(__name__)


class Tls:
    """What a listener shows. Raises MeshError when the files cannot be used; a later change that cannot is left."""

    def __init__(self, certificate: Path, key: Path) -> None:
        self._certificate, self._key = certificate, key
        self._seen, self._current = self._load()
        self.context = self._current
        self.context.sni_callback = self._newest  # asked at every handshake, with a name or without

    def _newest(self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        """Show whoever comes the newest certificate."""
        connection.context = self._current

    def look(self) -> bool:
        """Take up the files if they have changed; returns whether they have. Those who come now are shown the new ones.

        Raises MeshError.
        """
        if self._stamps() == self._seen:
            return False
        self._seen, self._current = self._load()
        return True

    async def watch(self) -> NoReturn:
        """Look again and again."""
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                if await asyncio.to_thread(self.look):
                    log.info("links show a new certificate")
            except MeshError as error:
                log.warning("a new certificate cannot be used; the one before it still is", reason=str(error))

    def _stamps(self) -> tuple[float, float]:
        try:
            key = self._key.stat()
            if sys.platform != "win32" and key.st_mode & _OTHERS:
                raise MeshError(f"links: others can read {self._key}; say: chmod 600 {self._key}")
            return self._certificate.stat().st_mtime, key.st_mtime
        except OSError as error:
            raise MeshError(f"links: {error.filename} cannot be read: {error.strerror}") from None

    def _load(self) -> tuple[tuple[float, float], ssl.SSLContext]:
        """When the files were written, and what they hold; anew, since a half that does not fit spoils the old."""
        stamps, context = self._stamps(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_cert_chain(self._certificate, self._key)
        except (ssl.SSLError, ValueError):
            raise MeshError(
                f"links: {self._certificate} and {self._key} are not a certificate and its key in PEM"
            ) from None
        except OSError as error:
            raise MeshError(f"links: {self._certificate} or its key cannot be read: {error.strerror}") from None
        return stamps, context
