"""Whether people's clients can trust our users' devices: each signed by the user's own keys (cross-signing).

Clients that share no keys with unsigned devices (MSC4153) keep an em with such a device from reading what they say.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from mesh.bridges.matrix.api import Access, Api
from mesh.bridges.matrix.errors import MatrixError
from mesh.bridges.matrix.shape import as_dict
from mesh.words import plain
from nodes.doctor import Check
from nodes.matrix.homeserver import ASK_S


def users_with_keys(rooms: Iterable[Mapping[str, Any]]) -> list[str]:
    """The users of ours that sit in encrypted rooms, out of the node's answer to `matrix_rooms`."""
    return sorted(
        {one["user"] for room in rooms if room["encrypted"] for one in room["members"] if one["state"] == "joined"}
    )


async def check_devices(access: Access, users: Iterable[str]) -> list[Check]:
    """One check for each user. Takes whatever the homeserver answers."""
    wanted = list(users)
    if not wanted:
        return []
    api = Api(access)
    try:
        body = {"device_keys": {user: list[str]() for user in wanted}}
        answer = await api.call("POST", ("client", "v3", "keys", "query"), body, timeout_s=2 * ASK_S)
    except MatrixError as error:
        return [Check("devices", "warn", f"the homeserver does not tell our users' keys: {error}")]
    finally:
        await api.close()
    return [check_user(user, answer) for user in wanted]


def check_user(user: str, answer: Mapping[str, Any]) -> Check:
    """Whether a user's devices are signed, by an answer to `keys/query`. Total: takes any JSON object."""
    from mesh.bridges.matrix.crosssigning import is_signed

    name = plain(user, 100)
    devices = {key: as_dict(one) for key, one in as_dict(as_dict(answer.get("device_keys")).get(user)).items()}
    if not devices:
        told = f"{name} has no keys at the homeserver, so it reads nothing that is encrypted; restart the node"
        return Check("devices", "fail", told)
    master = as_dict(as_dict(answer.get("master_keys")).get(user))
    own = as_dict(as_dict(answer.get("self_signing_keys")).get(user))
    top, public = _key(master), _key(own)
    if top is None or public is None or not is_signed(own, user, top):
        told = f"{name} has no keys that sign its devices, so strict clients share no keys; restart the node"
        return Check("devices", "warn", told)
    strange = sorted(plain(key, 40) for key, one in devices.items() if not is_signed(one, user, public))
    if strange:
        told = (
            f"{name} has not signed {', '.join(strange)}, so strict clients share no keys; a device that is not the"
            " node's: log it out; the node's, with an account: mesh matrix login … --new-keys"
        )
        return Check("devices", "warn", told)
    return Check("devices", "ok", f"{name}: {', '.join(sorted(plain(key, 40) for key in devices))}, signed")


def _key(value: Mapping[str, Any]) -> str | None:
    """The one public key that a signing key's object names."""
    found = next(iter(as_dict(value.get("keys")).values()), None)
    return found if isinstance(found, str) else None
