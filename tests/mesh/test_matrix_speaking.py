"""What is sent where: nothing in clear into encrypted rooms, replies to what is not sent yet, one account's trouble."""

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from mesh.bridges.matrix import several as several_module
from mesh.bridges.matrix.account import Account, Session
from mesh.bridges.matrix.common import Own
from mesh.bridges.matrix.content import Relation, later, message, redaction
from mesh.bridges.matrix.errors import MatrixError, MatrixLoggedOut, MatrixRefused, MatrixUnavailable
from mesh.bridges.matrix.port import ENCRYPTED, MESSAGE, REACTION, REDACTION, Speaker
from mesh.bridges.matrix.schema import MATRIX_SCHEMA
from mesh.bridges.matrix.several import Several
from mesh.errors import StoreFailed
from mesh.store import Store

ADA, ROOM = Speaker("ada", "Ada"), "!r:x"


class Homeserver:
    """Stands for the client to a homeserver; `refuses` are errors by a path's part."""

    def __init__(self) -> None:
        self.encrypted, self.sent = False, list[tuple[str, Any]]()
        self.refuses = dict[str, MatrixError]()

    async def call(self, method: str, path: Sequence[str], body: Any = None, **_: Any) -> dict[str, Any]:
        for part in path:
            if part in self.refuses:
                raise self.refuses[part]
        if method == "GET" and "m.room.encryption" in path:
            if self.encrypted:
                return {"algorithm": "m.megolm.v1.aes-sha2"}
            raise MatrixRefused("there is none", "M_NOT_FOUND", 404)
        self.sent.append((path[5] if "send" in path else REDACTION, body))
        return {"event_id": f"$ours{len(self.sent)}"}

    async def close(self) -> None:
        """Nothing to close."""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    one = Store(tmp_path / "node.db", {"matrix": MATRIX_SCHEMA})
    yield one
    one.close()


def new_account(store: Store, server: Homeserver, user: str = "@amp:x", own: Own | None = None) -> Account:
    async def seal(*_: Any) -> dict[str, Any]:
        return {"ciphertext": "…"}

    one = Account(Session("http://127.0.0.1:1", user, "D", "t"), store, lambda: 1_800_000_000_000, own=own)
    one._api = one.crypto._api = server  # type: ignore[assignment]
    one.crypto.seal = seal  # type: ignore[method-assign]
    return one


async def sent(port: Account | Several, *events: tuple[str, dict[str, Any]], start: int = 0) -> None:
    """Put all of these at once, with numbers as keys, and send them."""
    store = (port._primary if isinstance(port, Several) else port)._store
    keys = [str(start + number) for number in range(len(events))]
    with store.transaction():
        for key, (kind, content) in zip(keys, events, strict=True):
            port.put(ADA, ROOM, kind, content, key)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(port.outbox.run())
        for key in keys:
            await port.outbox.wait("ada", key)
        task.cancel()


async def test_a_room_may_become_encrypted_between_two_messages(store: Store) -> None:
    """Also when nobody has told us so yet, and once it was, for good."""
    server = Homeserver()
    port = new_account(store, server)
    for number, (encrypted, words) in enumerate(((False, "open"), (True, "secret"), (False, "secret too"))):
        server.encrypted = encrypted
        await sent(port, (MESSAGE, message(words)), start=number)
    assert [kind for kind, _ in server.sent] == [MESSAGE, ENCRYPTED, ENCRYPTED]
    assert "secret" not in str(server.sent)


@pytest.mark.parametrize("encrypted", [True, False])
async def test_the_reason_of_a_redaction_goes_in_clear_or_not_at_all(store: Store, encrypted: bool) -> None:
    server = Homeserver()
    server.encrypted = encrypted
    await sent(new_account(store, server), (REDACTION, redaction("$e", "it named mara's address")))
    assert server.sent == [(REDACTION, {} if encrypted else {"reason": "it named mara's address"})]


async def test_a_reply_to_what_waits_in_the_same_room_keeps_its_relation(store: Store) -> None:
    """Both are put before either is sent; a reply to what is refused is an ordinary message."""
    server = Homeserver()
    port = new_account(store, server)
    reply = message("yes", relation=Relation(later("ada", "0")))
    await sent(port, (MESSAGE, message("tea?")), (MESSAGE, reply))
    assert server.sent[1][1]["m.relates_to"] == {"m.in_reply_to": {"event_id": "$ours1"}}
    server.refuses[REACTION] = MatrixRefused("no", "M_FORBIDDEN", 403)
    refused = {"m.relates_to": {"rel_type": "m.annotation", "event_id": "$e", "key": "👍"}}
    well = message("well", relation=Relation(later("ada", "2")))
    await sent(port, (REACTION, refused), (MESSAGE, well), start=2)
    assert "m.relates_to" not in server.sent[-1][1]


async def test_what_failed_before_it_was_sent_is_surely_not_there(store: Store) -> None:
    """Asking whether a room is encrypted is not sending yet, so that it can still be taken back."""
    server = Homeserver()
    port = new_account(store, server)
    with store.transaction():
        port.put(ADA, ROOM, MESSAGE, message("x"), "k")
    row = port.outbox._rows.find("ada", "k")
    assert row
    for part, unsent in (("m.room.encryption", True), (MESSAGE, False)):
        server.refuses = {part: MatrixUnavailable("timed out")}
        with pytest.raises(MatrixUnavailable) as raised:
            await port.deliver(row)
        assert raised.value.unsent == unsent


def pair(store: Store) -> tuple[Several, Account, Account, Homeserver]:
    """An account for all, and Ada's own."""
    server = Homeserver()
    primary = new_account(store, server)
    own = new_account(store, server, "@ada:x", Own("ada", primary))
    return Several(primary, {"ada": own}), primary, own, server


async def test_an_account_of_its_own_that_fails_is_tried_again_and_ends_nobody(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its keys' file, another process in its folder, or a fault of ours; a void login ends its attempts alone."""
    monkeypatch.setattr(several_module, "BACKOFF_S", (0.001, 0.001))
    several, primary, own, _ = pair(store)
    errors: list[Exception] = [
        ExceptionGroup("", [StoreFailed("no room left")]),
        MatrixUnavailable("another process uses the keys"),
        KeyError("ours"),
        ExceptionGroup("", [ExceptionGroup("", [MatrixLoggedOut("log in again")])]),
    ]
    ended = asyncio.Event()
    several._on_lost = lambda _key, _reason: ended.set()

    async def fail() -> None:
        raise errors.pop(0)

    async def go_on() -> None:
        await asyncio.Event().wait()

    own.run, primary.run = fail, go_on  # type: ignore[method-assign,assignment]
    async with asyncio.TaskGroup() as group:
        task = group.create_task(several.run())
        await ended.wait()
        assert not task.done()
        task.cancel()
    assert errors == []
    assert several.lost == {"ada": "log in again"}


async def test_an_account_of_its_own_that_cannot_seal_ends_no_sending(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What goes wrong with its keys counts as a homeserver that is away."""
    several, _, own, server = pair(store)
    failed = list[str]()
    deliver = own._deliver

    async def broken(row: Any) -> str:
        if not failed:
            failed.append(row.key)
            raise OSError("the disk is gone")
        return await deliver(row)

    monkeypatch.setattr(own, "_deliver", broken)
    monkeypatch.setattr("mesh.bridges.matrix.outbox.BACKOFF_S", (0.001, 0.001))
    await sent(several, (MESSAGE, message("still here")))
    assert failed == ["0"]
    assert [body["body"] for _, body in server.sent] == ["still here"]
