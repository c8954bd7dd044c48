"""Encrypted events whose key comes late: they come opened then, unless somebody took them back before."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from mesh.bridges.matrix.account import Account, Session
from mesh.bridges.matrix.appservice import AppService
from mesh.bridges.matrix.errors import MatrixUnavailable
from mesh.bridges.matrix.inbox import SEALED, Inbound, Inbox, parse_event
from mesh.bridges.matrix.registration import new_registration
from mesh.bridges.matrix.schema import MATRIX_SCHEMA
from mesh.store import Store

ME, ROOM, KEY = "@us:x", "!r:x", "session"


class Keys:
    """Stands for a device, which opens everything once the key has come."""

    user = ME

    def __init__(self) -> None:
        self.has_key = False

    def take(self, answer: Mapping[str, Any]) -> list[tuple[str, str]]:
        if "key" not in answer:
            return []
        self.has_key = True
        return [(ROOM, KEY)]

    def open(self, event: Inbound) -> tuple[str, dict[str, Any], int] | None:
        words = {"msgtype": "m.text", "body": f"inside {event.event_id}"}
        return ("m.room.message", words, int(event.event_id[1:])) if self.has_key else None

    async def poll(self, _timeout_ms: int) -> list[tuple[str, str]]:
        return []

    async def mend(self) -> None:
        """Nothing to mend."""

    async def ask(self, _event: Inbound) -> None:
        """Nobody to ask."""

    def close(self) -> None:
        """Nothing to close."""


class Homeserver:
    """Answers syncs from a list; everything else is unknown to it."""

    def __init__(self) -> None:
        self.syncs = list[dict[str, Any] | Exception]()

    async def call(self, _method: str, path: Any, *_: Any, **__: Any) -> dict[str, Any]:
        if "sync" not in path:
            return {}
        answer = self.syncs.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    one = Store(tmp_path / "node.db", {"matrix": MATRIX_SCHEMA})
    yield one
    one.close()


def sealed(number: int) -> dict[str, Any]:
    return event(number, SEALED, {"session_id": KEY, "ciphertext": "…"})


def event(number: int, kind: str, content: dict[str, Any]) -> dict[str, Any]:
    return {"event_id": f"${number}", "room_id": ROOM, "sender": "@mara:x", "type": kind, "content": content}


def redaction(number: int, what: int, room: str = ROOM) -> dict[str, Any]:
    return event(number, "m.room.redaction", {"redacts": f"${what}"}) | {"room_id": room}


def sync(place: str, *events: dict[str, Any], **more: Any) -> dict[str, Any]:
    rooms = dict[str, Any]()
    for one in events:
        rooms.setdefault(one["room_id"], {"timeline": {"events": []}})["timeline"]["events"].append(one)
    return {"next_batch": place, "rooms": {"join": rooms}} | more


async def read(inbox: Inbox) -> list[tuple[str, str, bool]]:
    """All that waits: id, what it is, and whether it was late."""
    found = list[tuple[str, str, bool]]()
    while inbox.waiting():
        one = await anext(inbox)
        inbox.handled(one)
        found.append((one.event_id, one.kind, one.late))
    return found


@pytest.fixture
def account(store: Store) -> Account:
    one = Account(Session("http://127.0.0.1:1", ME, "D", "t"), store, lambda: 0)
    one._api = one.crypto._api = Homeserver()  # type: ignore[assignment]
    one.crypto.fleet._devices[ME] = Keys()  # type: ignore[assignment]
    one.ready.set()
    return one


async def hear(account: Account, *answers: dict[str, Any] | Exception) -> list[tuple[str, str, bool]]:
    account._api.syncs.extend(answers)  # type: ignore[attr-defined]
    for answer in answers:
        if isinstance(answer, Exception):
            with pytest.raises(type(answer)):
                await account._sync()
        else:
            await account._sync()
    return await read(account.inbox)


async def test_a_key_opens_what_waited_for_it_before_what_is_new(account: Account) -> None:
    await hear(account, sync("s1"))
    assert await hear(account, sync("s2", sealed(1))) == [("$1", SEALED, False)]
    found = await hear(account, sync("s3", sealed(2), key=True))
    assert found == [("$1", "m.room.message", True), ("$2", "m.room.message", False)]
    assert await hear(account, sync("s4", sealed(1), sealed(2))) == []


async def test_a_key_that_comes_while_another_is_asked_for_opens_what_came_with_it(account: Account) -> None:
    """Two events of one sync have no key yet; while the one's is asked for, a poll brings the other's."""
    crypto = account.crypto

    class Asking(Keys):
        def open(self, event: Inbound) -> tuple[str, dict[str, Any], int] | None:
            return super().open(event) if event.content["session_id"] == KEY else None

        async def ask(self, event: Inbound) -> None:
            if event.event_id != "$1":
                return
            self.has_key = True
            crypto.fleet._tidings.came(self, [(ROOM, KEY)])  # type: ignore[arg-type]

    crypto.fleet._devices[ME] = Asking()  # type: ignore[assignment]
    crypto._seats[ROOM] = [ME]
    other = event(1, SEALED, {"session_id": "other", "ciphertext": "…"})
    found = await hear(account, sync("s1"), sync("s2", other, sealed(2)))
    assert ("$2", "m.room.message", True) in found
    assert ("$1", SEALED, False) in found


@pytest.mark.parametrize("is_read", [True, False])
async def test_what_is_taken_back_with_the_key_in_the_same_sync_stays_closed(account: Account, is_read: bool) -> None:
    """The key is on the wire before the redaction; the words never come all the same, nor when served again."""
    account._api.syncs.extend([sync("s1"), sync("s2", sealed(1), sealed(2))])  # type: ignore[attr-defined]
    await account._sync()
    await account._sync()
    if is_read:
        await read(account.inbox)
    found = await hear(account, sync("s3", redaction(3, 1), redaction(4, 2, "!other:x"), key=True))
    opened = [one for one in found if one[1] == "m.room.message"]
    assert opened == [("$2", "m.room.message", True)]
    assert ("$3", "m.room.redaction", False) in found
    assert await hear(account, sync("s4", sealed(1)), sync("s5", sealed(2))) == []


async def test_what_came_together_with_its_redaction_stays_closed(account: Account) -> None:
    await hear(account, sync("s1"))
    assert len(await hear(account, sync("s2", sealed(1), redaction(2, 1)))) == 2
    assert await hear(account, sync("s3", sealed(1), key=True)) == []


async def test_a_key_in_a_sync_that_failed_later_is_not_forgotten(account: Account) -> None:
    """Devices take a key once: what it opens comes with the next sync that is kept."""
    await hear(account, sync("s1"), sync("s2", sealed(1)))
    assert account.crypto.fleet.get(ME)
    await account.crypto.hear(ME, {"key": True})
    assert await hear(account, MatrixUnavailable("away")) == []
    assert await hear(account, sync("s3")) == [("$1", "m.room.message", True)]


@pytest.mark.parametrize("by", ["@mara:x", "@_mesh_ada:x"])
async def test_what_is_taken_back_before_a_devices_key_comes_stays_closed(store: Store, by: str) -> None:
    """Events are pushed, keys come to each device; whoever takes it back, a moderator of ours as well."""
    port = AppService("http://127.0.0.1:1", new_registration("http://x", "x"), ("127.0.0.1", 0), store, lambda: 0)
    port._api = port.crypto._api = Homeserver()  # type: ignore[assignment]
    keys = Keys()
    port.crypto.fleet._devices["@_mesh_ada:x"] = keys  # type: ignore[assignment]
    for raw in (sealed(1), sealed(2), redaction(3, 1) | {"sender": by}):
        found = parse_event(raw, "appservice")
        assert found
        await port._take([found])
    await read(port.inbox)
    port.crypto._open_late(keys, keys.take({"key": True}))  # type: ignore[arg-type]
    assert await read(port.inbox) == [("$2", "m.room.message", True)]


async def test_so_it_is_when_the_inbox_has_forgotten_their_ids(account: Account, store: Store) -> None:
    """What waits for its key is late whenever that comes; what was taken back before or at once stays closed."""
    await hear(account, sync("s1"), sync("s2", sealed(1), sealed(2), sealed(3), redaction(4, 3)))
    store.execute("DELETE FROM matrix_inbox")
    account.inbox.rewind()
    found = await hear(account, sync("s3", redaction(5, 1), key=True))
    assert [one for one in found if one[0] in {"$1", "$2", "$3"}] == [("$2", "m.room.message", True)]
