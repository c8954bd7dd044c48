"""Files in encrypted rooms: sealed before they are stored, with the key in the event."""

import binascii

from mesh.bridges.matrix.errors import BadContent
from mesh.bridges.matrix.reading import Seal


def unseal(data: bytes, seal: Seal) -> bytes:
    """The file that was sealed. Raises BadContent when it is not the one that the event names, or the key is none."""
    from nio.crypto.attachments import decrypt_attachment
    from nio.exceptions import EncryptionError

    try:
        return decrypt_attachment(data, seal.key, seal.sha256, seal.iv)
    except (EncryptionError, binascii.Error, ValueError) as error:
        raise BadContent(
            "a file in an encrypted room is not the one that its message names, or its key is none"
        ) from error
