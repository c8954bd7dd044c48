"""How the node logs in to Matrix: keys/matrix.json, 0600, written by `mesh matrix register` and `mesh matrix login`."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import msgspec

from mesh.bridges.matrix.account import Session
from mesh.bridges.matrix.registration import Registration
from nodes.disk import told, write_private
from nodes.errors import NodeError

FILE: Final = "matrix.json"  # in keys/
REGISTRATION_FILE: Final = "matrix-registration.yaml"  # in the home; the homeserver reads a copy of it


@dataclass(frozen=True, slots=True)
class Listening:
    """Where the homeserver's pushes arrive."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Login:
    """The primary way is the appservice if there is a registration, else the account.

    `owner` is the Matrix user of the node's person; `own` holds accounts of single ems.
    """

    homeserver: str
    owner: str | None = None
    registration: Registration | None = None
    listening: Listening | None = None
    account: Session | None = None
    own: dict[str, Session] = field(default_factory=dict[str, Session])

    def with_own(self, em: str, session: Session | None) -> "Login":
        """The same with another account of an em; None: with none."""
        rest = {name: held for name, held in self.own.items() if name != em}
        return replace(self, own=rest if session is None else rest | {em: session})


def read_login(keys: Path) -> Login | None:
    """The login of a home, None when it has none. Raises NodeError when the file cannot be used."""
    path = keys / FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=Login)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise NodeError(told(f"{path} cannot be read", error, "check its owner and permissions")) from None
    except msgspec.MsgspecError:
        raise NodeError(
            f"{path} is damaged; move it away, then make it anew with: mesh matrix register, or: mesh matrix login"
        ) from None


def write_login(keys: Path, login: Login) -> None:
    """Keep a login. Raises OSError."""
    write_private(keys / FILE, msgspec.json.encode(login))


def remove_login(keys: Path) -> bool:
    """Forget the login; returns whether there was one."""
    try:
        (keys / FILE).unlink()
    except FileNotFoundError:
        return False
    return True
