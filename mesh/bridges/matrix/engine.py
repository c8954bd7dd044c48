"""One device's keys, with nio as the engine: what comes and goes is JSON, and nothing here speaks HTTP.

Loads nio and vodozemac, so it is imported when the first encrypted room is met. From nio come the Olm account and its
sessions, the store, and who has which devices; events are opened here, since nio would also interpret them.

What a homeserver passes on is hostile. nio and vodozemac refuse it with errors of many kinds, so whatever one piece of
it raises is that piece's own fault: it is dropped, and the rest goes on.
"""

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, cast

import structlog
from nio.crypto import InboundGroupSession, Olm
from nio.events import ForwardedRoomKeyEvent, OlmEvent, RoomKeyEvent
from nio.exceptions import EncryptionError, GroupEncryptionError, LocalProtocolError
from nio.responses import KeysClaimResponse, KeysQueryResponse, KeysUploadResponse
from nio.store import SqliteStore
from peewee import PeeweeException

from mesh.bridges.matrix.shape import as_dict
from mesh.bridges.matrix.strangers import Strangers
from mesh.bridges.matrix.vault import is_damage, set_aside
from mesh.errors import StoreFailed

MEGOLM: Final = "m.megolm.v1.aes-sha2"
ONE_TIME: Final = "signed_curve25519"
LOW: Final = 25  # one-time keys at the homeserver below which more are made, half of what it is given at once
REFUSALS: Final = (EncryptionError, GroupEncryptionError, LocalProtocolError)  # nio's own; vodozemac's are ValueErrors
MAX_CIPHER: Final = 128 * 1024  # characters of a ciphertext; an event has 64 KiB

Wanted = Callable[[str, str], bool]
Key = tuple[str, str]  # of a room: its id, and the session's

log = structlog.get_logger(__name__)
logging.getLogger("nio").addHandler(logging.NullHandler())
logging.getLogger("nio").propagate = False  # it would print names that strangers chose on the terminal


def _nio(value: object) -> Any:  # noqa: ANN401 - that is the point
    """What has no types that a checker could read."""
    return value


class _Olm(Olm):
    """nio's machine, which takes a forwarded key from the one who made it, if we asked for it."""

    def __init__(self, user: str, device: str, store: SqliteStore, wanted: Wanted) -> None:
        self.wanted = wanted
        super().__init__(user, device, store)
        self.strangers = Strangers(self)

    def create_group_session(
        self, sender_key: str, sender_fp_key: str, room_id: str, session_id: str, session_key: str
    ) -> None:
        """As nio's, for no more keys of others than are kept."""
        is_own = sender_key == self.account.identity_keys["curve25519"]
        if not (is_own or self.strangers.takes_key(sender_key)):
            return
        super().create_group_session(sender_key, sender_fp_key, room_id, session_id, session_key)
        if not is_own and self.inbound_group_store.get(room_id, sender_key, session_id):
            self.strangers.took_key(sender_key, room_id, session_id)

    def _handle_forwarded_room_key_event(self, sender: str, sender_key: str, payload: dict[Any, Any]) -> Any:  # noqa: ANN401 - nio's own
        """In place of nio's, which takes only what own verified devices send; nobody verifies ours.

        Whoever made a session may give its key away. Others could pass on a key of their own making.
        """
        content = payload["content"]
        room, session, maker = content["room_id"], content["session_id"], content["sender_key"]
        if maker != sender_key or content["algorithm"] != MEGOLM or not self.wanted(room, session):
            return None
        signing = payload["keys"]["ed25519"]
        found = InboundGroupSession.import_session(content["session_key"], signing, sender_key, room, [])
        if found.id != session:
            return None
        self.inbound_group_store.add(found)
        self.save_inbound_group_session(found)
        return _nio(ForwardedRoomKeyEvent).from_dict(payload, sender, sender_key)


class Engine:
    """The keys of one device, in a file of their own. Close it."""

    def __init__(self, user: str, device: str, path: Path, wanted: Wanted) -> None:
        """Open or make the keys; those that are damaged are made anew.

        `wanted(room, session)` tells whether a forwarded key was asked for. Raises StoreFailed.
        """
        self.user, self.device = user, device
        try:
            self._open(path, wanted)
        except PeeweeException as error:
            if not is_damage(error):
                raise StoreFailed(f"{path}: {error}") from error
            set_aside(path)
            self._open(path, wanted)

    def _open(self, path: Path, wanted: Wanted) -> None:
        self._store = SqliteStore(self.user, self.device, str(path.parent), database_name=path.name)
        self._olm: Any = _Olm(self.user, self.device, self._store, wanted)

    def close(self) -> None:
        """Close the file."""
        self._store.database.close()

    @property
    def published(self) -> bool:
        """Whether the homeserver had these keys when we asked last."""
        return bool(self._olm.account.shared)

    @published.setter
    def published(self, value: bool) -> None:
        self._olm.account.shared = value
        self._olm.save_account()

    def device_keys(self) -> dict[str, Any]:
        """The device's public keys, signed by itself."""
        identity = self._olm.account.identity_keys
        keys: dict[str, Any] = {
            "algorithms": ["m.olm.v1.curve25519-aes-sha2", MEGOLM],
            "device_id": self.device,
            "user_id": self.user,
            "keys": {
                f"curve25519:{self.device}": identity["curve25519"],
                f"ed25519:{self.device}": identity["ed25519"],
            },
        }
        return self._signed(keys)

    def _signed(self, value: dict[str, Any]) -> dict[str, Any]:
        return value | {"signatures": {self.user: {f"ed25519:{self.device}": self._olm.sign_json(value)}}}

    def is_mine(self, keys: Mapping[str, Any]) -> bool:
        """Whether these are this device's public keys."""
        return keys.get("keys") == self.device_keys()["keys"]

    def upload(self, count: int, *, fallback: bool) -> dict[str, Any] | None:
        """The body of `keys/upload`, None when nothing lacks; after its success you must call `uploaded`.

        `count` is how many one-time keys the homeserver has left, `fallback` whether it has an unused one for when
        there are none.
        """
        body: dict[str, Any] = {}
        if not self.published:
            body["device_keys"] = self.device_keys()
        if count < LOW:
            held = len(self._olm.account.one_time_keys["curve25519"])  # made before, and never arrived
            self._olm.account.generate_one_time_keys(max(0, self._olm.account.max_one_time_keys - count - held))
            made = self._olm.account.one_time_keys["curve25519"]
            body["one_time_keys"] = {f"{ONE_TIME}:{name}": self._signed({"key": key}) for name, key in made.items()}
        if not fallback:
            body["fallback_keys"] = self._fallback()
        self._olm.save_account()  # before they are known: a key that was published and forgotten opens nothing
        return body or None

    def _fallback(self) -> dict[str, Any]:
        account = self._olm.account._account  # noqa: SLF001 - nio has no fallback keys, vodozemac has
        account.generate_fallback_key()
        return {
            f"{ONE_TIME}:{name}": self._signed({"key": key.to_base64(), "fallback": True})
            for name, key in account.fallback_key.items()
        }

    def uploaded(self, count: int) -> None:
        """What `upload` gave is at the homeserver, which has so many one-time keys now."""
        self._olm.handle_response(KeysUploadResponse(0, count))

    def receive(self, events: Iterable[object]) -> list[Key]:
        """Take to-device events; returns the sessions whose keys came with them."""
        with _nio(self._store.database).atomic():  # one commit for all
            return [key for event in events if (key := self._receive(event))]

    def _receive(self, raw: object) -> Key | None:
        strangers: Strangers = self._olm.strangers
        if as_dict(raw).get("type") != "m.room.encrypted" or not strangers.lets_in(as_dict(raw)):
            return None
        try:
            event: object = _nio(OlmEvent).from_dict(raw)
            found: object = self._olm.decrypt_event(event) if isinstance(event, OlmEvent) else None
            strangers.tidy(as_dict(raw))
        except PeeweeException as error:
            raise StoreFailed(f"the keys of {self.user} cannot be written: {error}") from error
        except Exception as error:  # noqa: BLE001 - see the module
            log.info("a message between devices cannot be opened", error=type(error).__name__)
            return None
        return (found.room_id, found.session_id) if isinstance(found, RoomKeyEvent) else None

    def learn(self, answer: Mapping[str, Any]) -> None:
        """Take what `keys/query` answered about each user."""
        strangers: Strangers = self._olm.strangers
        users = as_dict(answer.get("device_keys"))
        self._each({user: strangers.few(user, users[user]) for user in users}, "device_keys", KeysQueryResponse)

    def claimed(self, answer: Mapping[str, Any]) -> None:
        """Take what `keys/claim` answered about each user."""
        self._each(answer.get("one_time_keys"), "one_time_keys", KeysClaimResponse)

    def _each(self, users: object, section: str, kind: Any) -> None:  # noqa: ANN401 - nio's classes
        """Handle an answer user by user, so that one user's nonsense is not another's loss."""
        for user, value in cast("dict[str, Any]", users).items() if isinstance(users, dict) else ():
            try:
                response: object = kind.from_dict({section: {user: value}, "failures": {}})
                if isinstance(response, kind):
                    with _nio(self._store.database).atomic():  # one commit a user
                        self._olm.handle_response(response)
                        self._olm.strangers.learned(user)
            except PeeweeException as error:
                raise StoreFailed(f"the keys of {self.user} cannot be written: {error}") from error
            except Exception as error:  # noqa: BLE001 - see the module
                log.info("a user's keys are not as they should be", error=type(error).__name__)

    def devices(self, users: Iterable[str]) -> frozenset[tuple[str, str, str]]:
        """All devices of users that get our keys, each with its user, id and key."""
        found = ((user, one) for user in users for one in self._olm.device_store.active_user_devices(user))
        return frozenset((user, one.id, one.curve25519) for user, one in found if one.id != self.device)

    def missing(self, users: Iterable[str]) -> dict[str, dict[str, str]]:
        """The body of `keys/claim` for the devices that we have no way to yet; empty when we have to all."""
        lacking = self._olm.get_missing_sessions(list(users))
        return {user: dict.fromkeys(ids, ONE_TIME) for user, ids in lacking.items() if ids}

    def wedged(self) -> dict[str, dict[str, str]]:
        """The same for devices whose messages do not open any more."""
        body: dict[str, dict[str, str]] = {}
        for device in self._olm.wedged_devices:
            body.setdefault(device.user_id, {})[device.id] = ONE_TIME
        return body

    def waiting(self) -> list[Any]:
        """Messages of nio's own to devices: `type`, `recipient`, `recipient_device`, `content`; given once."""
        messages, self._olm.outgoing_to_device_messages = self._olm.outgoing_to_device_messages, []
        return messages

    def must_share(self, room: str) -> bool:
        """Whether a room's key is new or worn out, so that all must get one before `seal`."""
        return bool(self._olm.should_share_group_session(room))

    def renew(self, room: str) -> None:
        """Begin a new key for a room, since who is there has changed."""
        self._olm.outbound_group_sessions.pop(room, None)

    def share(self, room: str, users: Iterable[str]) -> Iterator[dict[str, Any]]:
        """The bodies that bring a room's key to all devices of users, verified or not.

        Each must have been sent before the next is asked for; after the last one the key is in use.
        """
        parts = self._olm.share_group_session_parallel(room, list(users), ignore_unverified_devices=True)
        while True:
            with _nio(self._store.database).atomic():  # one commit a part, and not one a device
                reached, body = next(parts, (None, None))
            if body is None:
                break
            yield body
            self._olm.outbound_group_sessions[room].users_shared_with.update(reached)
        self._olm.outbound_group_sessions[room].mark_as_shared()

    def seal(self, room: str, kind: str, content: Mapping[str, Any]) -> dict[str, Any]:
        """An event's content as it goes into an encrypted room; its relation stays outside, as servers need it."""
        inside = {name: value for name, value in content.items() if name != "m.relates_to"}
        sealed = self._olm.group_encrypt(room, {"type": kind, "content": inside})
        outside = {"m.relates_to": content["m.relates_to"]} if "m.relates_to" in content else {}
        return sealed | outside

    def open(self, room: str, sender: str, content: Mapping[str, Any]) -> tuple[str, dict[str, Any], int] | None:
        """An encrypted event's kind, content, and number in its session; None when it cannot be opened (yet)."""
        session = self._session(room, sender, content)
        cipher = content.get("ciphertext")
        if session is None or not isinstance(cipher, str) or len(cipher) > MAX_CIPHER:
            return None
        try:
            text, number = session.decrypt(cipher)
            payload: object = json.loads(text)
        except (ValueError, RecursionError):
            return None
        return _opened(payload, room, content, number)

    def _session(self, room: str, sender: str, content: Mapping[str, Any]) -> InboundGroupSession | None:
        """The session of an event, from a device of its sender. Clients need not say any more which one that is.

        Everybody in a room has its keys, and could give them to us as their own: those are passed over.
        """
        wanted = content.get("session_id")
        if content.get("algorithm") != MEGOLM or not isinstance(wanted, str):
            return None
        by_maker: Mapping[str, Mapping[str, InboundGroupSession]] = self._olm.inbound_group_store[room]
        makers = [maker for maker, sessions in by_maker.items() if wanted in sessions]
        found = [by_maker[maker][wanted] for maker in makers if not self._is_anothers(sender, maker)]
        return min(found, key=lambda one: one.first_known_index, default=None)  # the one that opens the most

    def _is_anothers(self, sender: str, key: str) -> bool:
        """Whether a device's key is known as that of other users alone."""
        owners = {one.user_id for one in self._olm.device_store if one.curve25519 == key}
        return bool(owners) and sender not in owners


def _opened(
    payload: object, room: str, outside: Mapping[str, Any], number: int
) -> tuple[str, dict[str, Any], int] | None:
    """What was inside, if it may be: state and what changes rooms comes in clear or not at all."""
    if not isinstance(payload, dict):
        return None
    found = cast("dict[str, Any]", payload)
    kind, content = found.get("type"), found.get("content")
    if found.get("room_id") != room or not isinstance(kind, str) or not isinstance(content, dict):
        return None
    if kind.startswith("m.room.") and kind != "m.room.message":
        return None
    inside = cast("dict[str, Any]", content)
    if "m.relates_to" in outside:
        inside.setdefault("m.relates_to", outside["m.relates_to"])
    return kind, inside, number
