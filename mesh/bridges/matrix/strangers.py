"""How much a device keeps of what others send it: anybody, in any room or none, can begin sessions and give it keys.

nio keeps for good whatever comes, in memory and in its file, and works through it while everything else waits. So what
it is given is few: a user's first devices, so many devices that are in no room of ours, so many sessions with each.
"""

import re
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping
from typing import Any, Final

import structlog

from mesh.bridges.matrix.shape import as_dict

MAX_DEVICES: Final = 200  # of a user: the most faithful have some dozens; beyond it they get no keys
MAX_DELETED: Final = 1_000  # of a user that are remembered, so that none comes back with another key
MAX_NAME: Final = 255  # characters of a device's id
MAX_PEERS: Final = 5_000  # devices that write to us; once there are so many, only those of our rooms are listened to
MAX_SESSIONS: Final = 20  # with one device; a new one takes the place of the one that was used longest ago
MAX_KEYS: Final = 2_000  # of rooms, from one device; a new one takes the oldest one's place: clients take one for a
# hundred messages, and what the oldest opens was said long ago
STRANGE_KEYS: Final = 20_000  # from all devices together that are in no room where we have spoken
CURVE: Final = re.compile(r"[A-Za-z0-9+/]{43}=?")

log = structlog.get_logger(__name__)


class Strangers:
    """What one device has of others. `olm` is its machine, whose stores are looked after."""

    def __init__(self, olm: Any) -> None:  # noqa: ANN401 - nio has no types
        self._olm = olm
        self._known = {one.curve25519 for one in olm.device_store}
        self._keys = defaultdict[str, deque[tuple[str, str]]](deque)  # rooms and sessions by devices, the oldest first
        for one in olm.inbound_group_store:
            self._keys[one.sender_key].append((one.room_id, one.id))

    def lets_in(self, raw: Mapping[str, Any]) -> bool:
        """Whether a message to our device is looked at: from a device, and not from one too many. Total."""
        key, held = as_dict(raw.get("content")).get("sender_key"), self._sessions
        if not isinstance(key, str) or not CURVE.fullmatch(key):
            return False
        return key in held or key in self._known or len(held) < MAX_PEERS

    def tidy(self, raw: Mapping[str, Any]) -> None:
        """Keep no more of a device, whose message was let in, than is needed. Raises PeeweeException."""
        key = as_dict(raw.get("content"))["sender_key"]
        sessions = self._sessions.get(key)
        if sessions == []:
            del self._sessions[key]
        while sessions and len(sessions) > MAX_SESSIONS:
            old = sessions.pop()  # they are in order, the last used first
            self._write("DELETE FROM olmsessions WHERE session_id = ?", old.id)

    @property
    def _sessions(self) -> dict[str, list[Any]]:
        return self._olm.session_store._entries  # noqa: SLF001 - nio forgets nothing by itself

    def takes_key(self, maker: str) -> bool:
        """Whether a device may give us one more key of a room."""
        if maker in self._known:
            return True
        return sum(len(keys) for other, keys in self._keys.items() if other not in self._known) < STRANGE_KEYS

    def took_key(self, maker: str, room: str, session: str) -> None:
        """Know a key that was taken; the oldest of its device goes, if it is one too many. Raises PeeweeException."""
        keys = self._keys[maker]
        if (room, session) not in keys:
            keys.append((room, session))
        if len(keys) > MAX_KEYS:
            room, session = keys.popleft()
            self._olm.inbound_group_store[room][maker].pop(session, None)
            self._write("DELETE FROM megolminboundsessions WHERE session_id = ?", session)

    def few(self, user: str, devices: object) -> object:
        """A user's devices as `keys/query` answered them: without what is for people, and no more than MAX_DEVICES.

        Those that are known come first, so that nobody else's additions push them out. Total.
        """
        if not isinstance(devices, dict):
            return devices
        found = {name: as_dict(one) for name, one in as_dict(devices).items() if len(name) <= MAX_NAME}  # pyright: ignore[reportUnknownArgumentType] - any JSON
        if len(found) > MAX_DEVICES:
            log.warning("a user has too many devices; the others get no keys", user=user, devices=len(found))
            held = {one.id for one in self._olm.device_store.active_user_devices(user)}
            first = sorted(found, key=lambda name: (name not in held, name))[:MAX_DEVICES]
            found = {name: found[name] for name in first}
        return {name: {part: one[part] for part in one if part != "unsigned"} for name, one in found.items()}

    def learned(self, user: str) -> None:
        """A user's devices were taken: know them, and forget those that are gone, when they are many."""
        held: dict[str, Any] = self._olm.device_store[user]
        self._known.update(one.curve25519 for one in held.values())
        gone = [name for name, one in held.items() if one.deleted]
        if len(gone) > MAX_DELETED:
            self._forget(user, gone)

    def _forget(self, user: str, gone: Iterable[str]) -> None:
        held = self._olm.device_store[user]
        for name in gone:
            self._known.discard(held.pop(name).curve25519)
        deleted = "SELECT id FROM devicekeys WHERE user_id = ? AND deleted"
        for table, column in (("keys", "device_id"), ("devicetruststate", "device_id"), ("devicekeys", "id")):
            self._write(f"DELETE FROM {table} WHERE {column} IN ({deleted})", user)  # noqa: S608 - our words

    def _write(self, sql: str, value: str) -> None:
        """Change nio's file, which has no words for forgetting. Raises PeeweeException."""
        self._olm.store.database.execute_sql(sql, (value,))
