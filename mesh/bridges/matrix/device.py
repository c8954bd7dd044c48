"""One device in Matrix: its keys at the homeserver, signed, and what it exchanges with other devices.

The engine computes, the API carries. The homeserver is asked who has which devices before anything is sealed, whenever
it said that a list changed; a room's key is renewed when its people or their devices change, so that whoever left reads
nothing more, and whoever came reads everything from then on.
"""

import asyncio
import json
import uuid
from collections.abc import Iterable, Mapping
from typing import Any, Final

import structlog

from mesh.bridges.matrix import verification
from mesh.bridges.matrix.api import TIMEOUT_S, Api, As
from mesh.bridges.matrix.crosssigning import SIGNING, SigningKeys
from mesh.bridges.matrix.engine import MEGOLM, ONE_TIME, REFUSALS, Engine, Key, Wanted
from mesh.bridges.matrix.errors import MatrixError, MatrixRefused, MatrixUnavailable
from mesh.bridges.matrix.inbox import SEALED, Inbound
from mesh.bridges.matrix.shape import as_dict, as_list
from mesh.bridges.matrix.vault import Vault

KEYS: Final = ("client", "v3", "keys")
MAX_LEFT: Final = 1_000  # one-time keys that a homeserver is believed to have left
OTHERS_MS: Final = 10_000  # how long the homeserver may ask other homeservers
DECLINED: Final = 10  # requests for verification that are answered at a time; the others have no answer
CLAIMED: Final = 100  # devices with which sessions are begun at a time
CLAIM_S: Final = 60.0  # for all of them; each request waits OTHERS_MS for servers that do not answer
MAX_REACHED: Final = 20_000  # devices of a room: to seal for more takes minutes, and nobody talks in such a room
QUERIED: Final = 250  # users a query; thousands at once would be one very long answer
FILTER: Final = json.dumps(
    {"presence": {"types": []}, "account_data": {"types": []}, "room": {"rooms": []}}, separators=(",", ":")
)  # nothing but messages between devices and what changed about them

log = structlog.get_logger(__name__)


class KeysLost(MatrixError):
    """The homeserver has other keys for this device: ours were lost, and people's messages go to the old ones."""


class Device:
    """A user's device. `start` it before anything else, and close it."""

    def __init__(  # noqa: PLR0913 - a device has these parts
        self, api: Api, user: str, device_id: str, *, acting: As | None, vault: Vault, wanted: Wanted
    ) -> None:
        self.user, self.device_id = user, device_id
        self._api, self._acting, self._vault = api, acting, vault
        self._engine = Engine(user, device_id, vault.room_for(device_id), wanted)
        self._lock = asyncio.Lock()  # one at a time speaks to other devices: else two would begin the same session
        self._fresh = set[str]()  # users whose devices are known as the homeserver has them
        self._reached = dict[str, tuple[frozenset[str], frozenset[Any]]]()  # by room: who and what has its key
        self._declined = list[tuple[str, str, dict[str, Any]]]()  # answers to requests for verification, not sent yet
        self._left, self._fallback = 0, False  # one-time keys at the homeserver, and whether one for bad times is

    def close(self) -> None:
        """Close the keys' file."""
        self._engine.close()

    async def start(self, *, replace: bool) -> None:
        """Have the keys published and signed. `replace`: other signing keys of the user are replaced.

        Raises KeysLost, MatrixUnavailable, MatrixRefused.
        """
        answer = await self._query([self.user])
        published = as_dict(as_dict(as_dict(answer.get("device_keys")).get(self.user)).get(self.device_id))
        if published and not self._engine.is_mine(published):
            raise KeysLost(f"the keys of {self.user}'s device {self.device_id} are lost")
        self._engine.published = self._fallback = bool(published)
        counts = await self._call("POST", (*KEYS, "upload"), {})
        self._count(counts.get("one_time_key_counts"))
        await self._upload()
        await self._sign(published, answer, replace=replace)

    async def _call(self, method: str, path: tuple[str, ...], body: Mapping[str, Any]) -> dict[str, Any]:
        return await self._api.call(method, path, body, acting=self._acting)

    async def _query(self, users: Iterable[str]) -> dict[str, Any]:
        body = {"device_keys": {user: list[str]() for user in users}, "timeout": OTHERS_MS}
        return await self._call("POST", (*KEYS, "query"), body)

    def _count(self, counts: object) -> None:
        left = as_dict(counts).get(ONE_TIME, 0)
        self._left = min(max(left, 0), MAX_LEFT) if type(left) is int else 0

    async def _upload(self) -> None:
        """Bring what the homeserver lacks of our keys."""
        body = self._engine.upload(self._left, fallback=self._fallback)
        if body:
            answer = await self._call("POST", (*KEYS, "upload"), body)
            self._count(answer.get("one_time_key_counts"))
            self._fallback = True
            self._engine.uploaded(self._left)

    async def _sign(self, published: Mapping[str, Any], answer: Mapping[str, Any], *, replace: bool) -> None:
        """Sign the device with the user's signing keys, which are made if there are none."""
        kept = self._vault.get(SIGNING)
        keys = SigningKeys.load(kept) if kept else None
        masters = as_dict(as_dict(answer.get("master_keys")).get(self.user))
        master = next(iter(as_dict(masters.get("keys")).values()), None)
        if master and (keys is None or keys.public != master) and not replace:
            log.warning("this user has signing keys that are not ours; strict clients share no keys", user=self.user)
            return
        if keys is None:
            keys = SigningKeys.new()
            self._vault.set(**{SIGNING: keys.dump()})  # before they are known, since others then depend on them
        try:
            if keys.public != master:
                await self._call("POST", (*KEYS, "device_signing", "upload"), keys.upload(self.user))
            if not keys.has_signed(self.user, published):
                body = keys.sign_device(self.user, self._engine.device_keys())
                failed = (await self._call("POST", (*KEYS, "signatures", "upload"), body)).get("failures")
                if failed:
                    log.warning("the homeserver did not take a device's signature", user=self.user)
        except MatrixRefused as error:
            log.warning("a device cannot be signed; strict clients share no keys", user=self.user, code=error.code)

    async def poll(self, timeout_ms: int) -> list[Key] | None:
        """Ask for messages to this device; returns whose keys came, None when another poll was faster.

        Raises MatrixUnavailable, MatrixRefused.
        """
        since = self._vault.get("since")
        query = {"filter": FILTER, "timeout": str(timeout_ms), "set_presence": "offline"}
        query |= {"since": since} if since else {}
        path, limit = ("client", "v3", "sync"), TIMEOUT_S + timeout_ms / 1000
        answer = await self._api.call("GET", path, query=query, acting=self._acting, timeout_s=limit)
        place = answer.get("next_batch")
        if not isinstance(place, str):
            raise MatrixUnavailable("the homeserver's answer to a sync has no next_batch")
        if self._vault.get("since") != since:
            return None
        keys = self.take(answer)
        self._vault.set(since=place)
        return keys

    def take(self, answer: Mapping[str, Any]) -> list[Key]:
        """Take what a sync says to this device; returns the sessions whose keys came. Call `mend` when it is kept."""
        lists = as_dict(answer.get("device_lists"))
        for users in (lists.get("changed"), lists.get("left")):
            self._fresh.difference_update(user for user in as_list(users) if isinstance(user, str))
        if "device_one_time_keys_count" in answer:
            self._count(answer["device_one_time_keys_count"])
        if "device_unused_fallback_key_types" in answer:
            self._fallback = ONE_TIME in as_list(answer["device_unused_fallback_key_types"])
        events = as_list(as_dict(answer.get("to_device")).get("events"))
        declined = [one for raw in events if (one := verification.declined_device(raw))]
        self._declined = [*self._declined, *declined][:DECLINED]
        return self._engine.receive(events)

    async def mend(self) -> None:
        """Make up for used keys and broken sessions. Raises MatrixUnavailable, MatrixRefused; it can wait."""
        async with self._lock:
            await self._upload()
            if wedged := self._engine.wedged():
                await self._claim(wedged)
            for one in self._engine.waiting():
                await self._tell(one.type, {one.recipient: {one.recipient_device: one.content}})
            while self._declined:
                user, device, content = self._declined.pop(0)
                await self._tell(verification.CANCEL, {user: {device: content}})

    async def _claim(self, wanted: dict[str, dict[str, str]]) -> None:
        """Begin sessions with devices. Those of servers that do not answer in time have to do without."""
        lacking = sorted((user.partition(":")[2], user, device) for user in wanted for device in wanted[user])
        begun = asyncio.get_running_loop().time()
        for start in range(0, len(lacking), CLAIMED):
            if asyncio.get_running_loop().time() - begun > CLAIM_S:
                log.warning("too many servers do not answer for their devices; some get no key", devices=len(lacking))
                return
            some: dict[str, dict[str, str]] = {}
            for _, user, device in lacking[start : start + CLAIMED]:
                some.setdefault(user, {})[device] = ONE_TIME
            answer = await self._call("POST", (*KEYS, "claim"), {"one_time_keys": some, "timeout": OTHERS_MS})
            self._engine.claimed(answer)
            await asyncio.sleep(0)  # others have their turn: each session takes a millisecond to make

    async def _tell(self, kind: str, messages: Mapping[str, Any]) -> None:
        await self._call("PUT", ("client", "v3", "sendToDevice", kind, uuid.uuid4().hex), {"messages": messages})

    async def seal(self, room: str, people: frozenset[str], kind: str, content: Mapping[str, Any]) -> dict[str, Any]:
        """An event's content for an encrypted room, whose people have the key when this returns.

        Raises MatrixUnavailable, MatrixRefused.
        """
        try:
            return await self._seal(room, people, kind, content)
        except (
            ValueError,
            *REFUSALS,
        ) as error:  # of the engine: the key is begun anew, and the next attempt is another
            self._engine.renew(room)
            raise MatrixUnavailable(f"a message could not be sealed: {type(error).__name__}") from error

    async def _seal(self, room: str, people: frozenset[str], kind: str, content: Mapping[str, Any]) -> dict[str, Any]:
        async with self._lock:
            await self._meet(room, people)
            reached = (people, self._engine.devices(people))
            if len(reached[1]) > MAX_REACHED:
                told = f"{len(reached[1])} devices are in the room, and at most {MAX_REACHED} are given its key"
                raise MatrixRefused(told, "TOO_MANY_DEVICES", 0)
            if self._reached.get(room, reached) != reached:
                self._engine.renew(room)
            self._reached[room] = reached  # before anybody has the key: who has it and leaves is then missed
            if self._engine.must_share(room):
                if lacking := self._engine.missing(people):
                    await self._claim(lacking)
                for part in self._engine.share(room, people):
                    await self._tell(SEALED, part["messages"])
            return self._engine.seal(room, kind, content)

    async def _meet(self, room: str, people: frozenset[str]) -> None:
        """Learn the devices of people: of those who came, since nobody told us of their changes, and of the changed."""
        known, _ = self._reached.get(room, (frozenset[str](), None))
        self._fresh -= people - known if known else frozenset()
        unknown = sorted(people - self._fresh)
        for start in range(0, len(unknown), QUERIED):
            some = unknown[start : start + QUERIED]
            self._fresh.update(some)  # before asking: what changes from now on is told
            try:
                await self._learn(await self._query(some), some)
            except MatrixError:
                self._fresh.difference_update(some)
                raise

    async def _learn(self, answer: Mapping[str, Any], asked: Iterable[str]) -> None:
        """Take what the homeserver says of the users that it was asked about, with a pause after each."""
        told = as_dict(answer.get("device_keys"))
        for user in asked:
            if user in told:
                self._engine.learn({"device_keys": {user: told[user]}})
                await asyncio.sleep(0)

    def open(self, event: Inbound) -> tuple[str, dict[str, Any], int] | None:
        """What is in an encrypted event: kind, content, number in its session. None when it cannot be opened (yet)."""
        return self._engine.open(event.room, event.sender, event.content)

    async def ask(self, event: Inbound) -> None:
        """Ask the devices of an event's sender, and our user's own, for its key."""
        body = {
            "algorithm": MEGOLM,
            "room_id": event.room,
            "session_id": event.content["session_id"],
            "sender_key": event.content.get("sender_key", ""),
        }
        request = {
            "action": "request",
            "body": body,
            "request_id": uuid.uuid4().hex,
            "requesting_device_id": self.device_id,
        }
        users = {event.sender, self.user}
        await self._tell("m.room_key_request", {user: {"*": request} for user in users})
