"""The registration file of the appservice, which the homeserver's operator puts beside its configuration."""

import json
import re
import secrets
from dataclasses import dataclass, field
from typing import Any, Final

PREFIX: Final = "_mesh_"  # of the local parts of ems' users
TOKEN_BYTES: Final = 32
SERVER_NAME: Final = re.compile(r"[A-Za-z0-9.\-\[\]:]{1,230}")


@dataclass(frozen=True, slots=True)
class Registration:
    """An appservice as the homeserver knows it. `url` is where the homeserver reaches us; the tokens are never shown.

    `as_token` lets us in at the homeserver, `hs_token` the homeserver at us.
    """

    url: str
    server_name: str
    as_token: str = field(repr=False)
    hs_token: str = field(repr=False)
    prefix: str = PREFIX
    id: str = "ampmesh"

    def document(self) -> dict[str, Any]:
        """The registration as Synapse reads it."""
        server = re.escape(self.server_name)
        return {
            "id": self.id,
            "url": self.url,
            "as_token": self.as_token,
            "hs_token": self.hs_token,
            "sender_localpart": self.sender,
            "rate_limited": False,
            "receive_ephemeral": False,
            "namespaces": {
                "users": [{"exclusive": True, "regex": f"@{re.escape(self.prefix)}.*:{server}"}],
                "aliases": [{"exclusive": True, "regex": f"#{re.escape(self.prefix)}.*:{server}"}],
                "rooms": [],
            },
        }

    def text(self) -> str:
        """The file: JSON, which every YAML reader takes."""
        return json.dumps(self.document(), indent=2) + "\n"

    @property
    def bot(self) -> str:
        """The local part of the node's own user, as the speaker `_bot` has it: an em may well be called `bot`."""
        return f"{self.prefix}_bot"

    @property
    def sender(self) -> str:
        """The local part of the user that the token alone stands for. It does nothing: Synapse gives it no keys.

        Its `/sync` is an error (seen in Synapse 1.163), so it could not read encrypted rooms, nor be read there.
        """
        return f"{self.prefix}_appservice"

    def owns(self, user_id: str) -> bool:
        """Whether a user is one of ours."""
        return user_id.startswith(f"@{self.prefix}") and user_id.endswith(f":{self.server_name}")


def new_registration(url: str, server_name: str, prefix: str = PREFIX) -> Registration:
    """A registration with new random tokens. Raises ValueError when the server's name is none."""
    if not SERVER_NAME.fullmatch(server_name):
        raise ValueError(f"{server_name!r} is not the name of a homeserver, like example.org")
    return Registration(url, server_name, secrets.token_hex(TOKEN_BYTES), secrets.token_hex(TOKEN_BYTES), prefix)
