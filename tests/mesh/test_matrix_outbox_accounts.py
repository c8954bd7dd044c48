"""The outbox of several accounts: who sends what, in which order, and who waits for whom."""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.bridges.matrix import outbox as outbox_module
from mesh.bridges.matrix import rows as rows_module
from mesh.bridges.matrix.content import Relation, later, message, reaction
from mesh.bridges.matrix.errors import MatrixFull, MatrixLoggedOut, MatrixRefused, MatrixUnavailable
from mesh.bridges.matrix.outbox import PRIMARY, Outbox, Outgoing
from mesh.bridges.matrix.schema import MATRIX_SCHEMA
from mesh.store import Store

NOW = 1_800_000_000_000


class Servers:
    """What each account's homeserver does: takes all, or fails until told otherwise, or never answers."""

    def __init__(self) -> None:
        self.taken = list[tuple[str, str]]()
        self.away = set[str]()
        self.tried = asyncio.Event()
        self.errors = dict[str, Exception]()

    async def deliver(self, row: Outgoing) -> str:
        await asyncio.sleep(0)
        if error := self.errors.get(row.key):
            raise error
        if row.account in self.away:
            self.tried.set()
            raise MatrixUnavailable("away", 0.001 if row.key == "patient" else None)
        self.taken.append((row.account, row.key))
        return f"${row.key}"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    one = Store(tmp_path / "node.db", {"matrix": MATRIX_SCHEMA})
    yield one
    one.close()


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Servers:
    monkeypatch.setattr(outbox_module, "BACKOFF_S", (0.001, 0.001))
    return Servers()


def new_outbox(store: Store, servers: Servers, *own: str, void: list[str] | None = None) -> Outbox:
    outbox = Outbox(store, lambda: NOW, servers.deliver)
    for account in own:
        outbox.serve(account, servers.deliver, (void if void is not None else []).append)
    return outbox


def put(store: Store, outbox: Outbox, account: str, key: str, content: dict[str, Any] | None = None) -> None:
    speaker = account or "bob"
    with store.transaction():
        outbox.put(speaker, "!r", "m.room.message", content or message(key), key, account=account)
    outbox.wake()


@asynccontextmanager
async def running(outbox: Outbox) -> AsyncGenerator[None]:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(outbox.run())
        try:
            yield
        finally:
            task.cancel()


@settings(max_examples=20)
@given(order=st.lists(st.sampled_from([PRIMARY, "ada", "eve"]), min_size=1, max_size=20))
async def test_accounts_keep_one_order_in_a_room(tmp_path_factory: pytest.TempPathFactory, order: list[str]) -> None:
    store, servers = Store(tmp_path_factory.mktemp("db") / "node.db", {"matrix": MATRIX_SCHEMA}), Servers()
    outbox = new_outbox(store, servers, "ada", "eve")
    for number, account in enumerate(order):
        put(store, outbox, account, str(number))
    async with running(outbox):
        await outbox.wait(order[-1] or "bob", str(len(order) - 1))
    assert servers.taken == [(account, str(number)) for number, account in enumerate(order)]
    store.close()


async def test_nobody_waits_for_an_account_whose_homeserver_is_away(store: Store, servers: Servers) -> None:
    """The others overtake it; when it is back, its own are sent in their order."""
    servers.away.add("ada")
    outbox = new_outbox(store, servers, "ada")
    for account, key in (("ada", "1"), (PRIMARY, "2"), ("ada", "3"), (PRIMARY, "4")):
        put(store, outbox, account, key)
    async with running(outbox):
        await outbox.wait("bob", "4")
        assert servers.taken == [(PRIMARY, "2"), (PRIMARY, "4")]
        servers.away.clear()
        await outbox.wait("ada", "3")
    assert servers.taken[2:] == [("ada", "1"), ("ada", "3")]


async def test_an_account_that_is_told_to_wait_a_moment_is_waited_for(store: Store, servers: Servers) -> None:
    servers.away.add("ada")
    outbox = new_outbox(store, servers, "ada")
    put(store, outbox, "ada", "patient")
    put(store, outbox, PRIMARY, "after")
    async with running(outbox):
        await servers.tried.wait()
        servers.away.clear()
        await outbox.wait("bob", "after")
    assert servers.taken == [("ada", "patient"), (PRIMARY, "after")]


async def test_a_reply_to_what_cannot_be_sent_yet_goes_and_a_reaction_waits(store: Store, servers: Servers) -> None:
    servers.away.add("ada")
    outbox = new_outbox(store, servers, "ada")
    put(store, outbox, "ada", "first")
    put(store, outbox, PRIMARY, "reply", message("yes", relation=Relation(reply_to=later("ada", "first"))))
    put(store, outbox, PRIMARY, "reaction", reaction(later("ada", "first"), "👍"))
    async with running(outbox):
        await outbox.wait("bob", "reply")
        assert servers.taken == [(PRIMARY, "reply")]
        servers.away.clear()
        await outbox.wait("bob", "reaction")
    assert servers.taken[1:] == [("ada", "first"), (PRIMARY, "reaction")]


async def test_a_refused_event_holds_up_no_account(store: Store, servers: Servers) -> None:
    servers.errors["no"] = MatrixRefused("403", "M_FORBIDDEN", 403)
    outbox = new_outbox(store, servers, "ada")
    put(store, outbox, "ada", "no")
    put(store, outbox, PRIMARY, "yes")
    async with running(outbox):
        assert (await outbox.wait("bob", "yes")).event_id == "$yes"
        assert (await outbox.wait("ada", "no")).reason == "403"


async def test_a_void_login_is_told_once_and_its_rows_wait_for_the_next_start(store: Store, servers: Servers) -> None:
    """A reaction to what the silenced account was to say is given up; whoever waits for it is told."""
    servers.errors["1"] = MatrixLoggedOut("log in again")
    void = list[str]()
    outbox = new_outbox(store, servers, "ada", void=void)
    for account, key in (("ada", "1"), ("ada", "2"), (PRIMARY, "3")):
        put(store, outbox, account, key)
    put(store, outbox, PRIMARY, "4", reaction(later("ada", "1"), "👍"))
    async with running(outbox), asyncio.TaskGroup() as group:
        waiting = group.create_task(wait_in_vain(outbox, "ada", "2"))
        await outbox.wait("bob", "4")
        await waiting
        put(store, outbox, "ada", "5")
        with pytest.raises(MatrixLoggedOut):
            await outbox.wait("ada", "5")
    assert void == ["log in again"]
    assert outbox.waiting("ada") == outbox.waiting() == 3
    servers.errors.clear()
    outbox = new_outbox(store, servers, "ada")
    async with running(outbox):
        await outbox.wait("ada", "5")
    assert [key for account, key in servers.taken if account == "ada"] == ["1", "2", "5"]


async def wait_in_vain(outbox: Outbox, speaker: str, key: str) -> None:
    with pytest.raises(MatrixLoggedOut):
        await outbox.wait(speaker, key)


async def test_what_an_account_left_that_is_no_more_is_given_up(store: Store, servers: Servers) -> None:
    put(store, new_outbox(store, servers, "ada"), "ada", "k")
    outbox = new_outbox(store, servers)
    put(store, outbox, PRIMARY, "mine")
    async with running(outbox):
        assert "not used any more" in ((await outbox.wait("ada", "k")).reason or "")
        assert (await outbox.wait("bob", "mine")).event_id


async def test_one_accounts_full_outbox_is_not_the_others(
    store: Store, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows_module, "MAX_WAITING", 1)
    outbox = new_outbox(store, servers, "ada")
    put(store, outbox, "ada", "1")
    with pytest.raises(MatrixFull):
        put(store, outbox, "ada", "2")
    put(store, outbox, PRIMARY, "3")
    assert outbox.waiting() == 2


async def test_a_hanging_homeserver_uses_up_nobody_elses_places(
    store: Store, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests of one account that get no answer leave the other's in other rooms alone."""
    monkeypatch.setattr(outbox_module, "ROOMS_AT_ONCE", 1)

    async def hang(_: Outgoing) -> str:
        await asyncio.Event().wait()
        return ""

    outbox = Outbox(store, lambda: NOW, servers.deliver)
    outbox.serve("ada", hang, [].append)
    with store.transaction():
        for room in ("!1", "!2"):
            outbox.put("ada", room, "m.room.message", message("x"), room, account="ada")
        outbox.put("bob", "!3", "m.room.message", message("x"), "free")
    async with running(outbox):
        assert (await outbox.wait("bob", "free")).event_id == "$free"
