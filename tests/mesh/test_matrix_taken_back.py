"""Taking back what is not sent yet: certain where it can be, and followed by a redaction where it cannot."""

import asyncio
import json
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from mesh.bridges.matrix import outbox as outbox_module
from mesh.bridges.matrix import rows as rows_module
from mesh.bridges.matrix.content import later, message, redaction
from mesh.bridges.matrix.errors import MatrixUnavailable
from mesh.bridges.matrix.outbox import Outbox, Outcome, Outgoing, Pending
from mesh.bridges.matrix.port import MESSAGE, REDACTION
from mesh.bridges.matrix.schema import MATRIX_SCHEMA
from mesh.store import Store

NOW = 1_800_000_000_000


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    one = Store(tmp_path / "node.db", {"matrix": MATRIX_SCHEMA})
    yield one
    one.close()


class Server:
    """Takes what it gets once it is `open`; before, it does what `error` says, or lets everybody wait."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(outbox_module, "BACKOFF_S", (0.001, 0.001))
        self.taken, self.tried = list[Outgoing](), asyncio.Event()
        self.open = asyncio.Event()
        self.error: MatrixUnavailable | None = None

    async def deliver(self, row: Outgoing) -> str:
        self.tried.set()
        if self.error and not self.open.is_set():
            raise self.error
        await self.open.wait()
        self.taken.append(row)
        return f"${row.key}"

    def keys(self) -> list[str]:
        return [row.key for row in self.taken]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    return Server(monkeypatch)


def put(store: Store, outbox: Outbox, *keys: str) -> None:
    with store.transaction():
        for key in keys:
            outbox.put("ada", "!r", MESSAGE, message(key), key)
    outbox.wake()


def cancel(store: Store, outbox: Outbox, key: str) -> bool:
    with store.transaction():
        return outbox.cancel("ada", key)


@asynccontextmanager
async def running(outbox: Outbox) -> AsyncGenerator[None]:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(outbox.run())
        try:
            yield
        finally:
            task.cancel()


async def test_what_waits_is_taken_back_and_never_sent(store: Store, server: Server) -> None:
    """Its words are forgotten, whoever waits for it is told, and its sending is not reported as failed."""
    done = list[Outcome]()
    outbox = Outbox(store, lambda: NOW, server.deliver, done.append)
    put(store, outbox, "first", "second", "third")
    async with running(outbox), asyncio.TaskGroup() as group:
        await server.tried.wait()
        told = group.create_task(outbox.wait("ada", "second"))
        await asyncio.sleep(0)
        assert cancel(store, outbox, "second")
        assert (await told).event_id is None
        server.open.set()
        await outbox.wait("ada", "third")
    assert server.keys() == ["first", "third"]
    assert [one.key for one in done] == ["first", "third"]
    assert store.rows("SELECT content FROM matrix_outbox WHERE key = 'second'") == [(None,)]
    assert not cancel(store, outbox, "second")
    assert not cancel(store, outbox, "never put")


async def test_what_is_on_its_way_is_redacted_after_it(store: Store, server: Server) -> None:
    outbox = Outbox(store, lambda: NOW, server.deliver)
    put(store, outbox, "words")
    async with running(outbox):
        await server.tried.wait()
        with store.transaction():
            assert not outbox.cancel("ada", "words")
            outbox.put("ada", "!r", REDACTION, redaction(later("ada", "words")), "gone")
        outbox.wake()
        server.open.set()
        await outbox.wait("ada", "gone")
    assert server.keys() == ["words", "gone"]
    assert json.loads(server.taken[1].content)["redacts"] == later("ada", "words")


@pytest.mark.parametrize(
    ("error", "is_certain"),
    [
        (MatrixUnavailable("timed out"), False),
        (MatrixUnavailable("nobody listens there", unsent=True), True),
        (MatrixUnavailable("too many", 0.001), True),
    ],
)
async def test_between_two_attempts_it_matters_whether_the_first_may_have_arrived(
    store: Store, server: Server, error: MatrixUnavailable, is_certain: bool
) -> None:
    server.error = error
    outbox = Outbox(store, lambda: NOW, server.deliver)
    put(store, outbox, "words", "more")
    async with running(outbox):
        await server.tried.wait()
        await asyncio.sleep(0)
        assert [one.in_flight for one in outbox.pending("")] == [not is_certain, False]
        assert cancel(store, outbox, "words") == is_certain
        server.open.set()
        await outbox.wait("ada", "more")
    assert server.keys() == (["more"] if is_certain else ["words", "more"])


async def test_after_one_doubtful_attempt_a_certain_failure_makes_nothing_certain(store: Store, server: Server) -> None:
    server.error = MatrixUnavailable("timed out")
    outbox = Outbox(store, lambda: NOW, server.deliver)
    put(store, outbox, "words")
    async with running(outbox):
        for error in (server.error, MatrixUnavailable("nobody listens there", unsent=True)):
            server.error = error
            for _ in range(2):
                server.tried.clear()
                await server.tried.wait()
        assert not cancel(store, outbox, "words")


def test_what_an_earlier_run_may_have_sent_is_not_certain(store: Store, server: Server) -> None:
    """That is the first row of each account in each room."""
    before = Outbox(store, lambda: NOW, server.deliver)
    put(store, before, "1", "2")
    outbox = Outbox(store, lambda: NOW, server.deliver)
    assert not cancel(store, outbox, "1")
    assert cancel(store, outbox, "2")


async def test_a_transaction_that_fails_takes_nothing_back(store: Store, server: Server) -> None:
    outbox = Outbox(store, lambda: NOW, server.deliver)
    put(store, outbox, "words")
    async with asyncio.TaskGroup() as group:
        told = group.create_task(outbox.wait("ada", "words"))
        await asyncio.sleep(0)
        with suppress(KeyError), store.transaction():
            assert outbox.cancel("ada", "words")
            raise KeyError
        server.open.set()
        async with running(outbox):
            assert (await told).event_id == "$words"


async def test_all_of_an_act_is_taken_back_at_once(store: Store, server: Server) -> None:
    """What begins with a prefix, whoever says it; what is on its way is named."""
    outbox = Outbox(store, lambda: NOW, server.deliver)
    put(store, outbox, "act/0", "act/end", "acting", "other_/0")
    with store.transaction():
        outbox.put("bob", "!s", MESSAGE, message("b"), "act/0")
    async with running(outbox):
        await server.tried.wait()
        for _ in range(3):
            await asyncio.sleep(0)
        flying = [Pending("ada", "act/0", "!r", in_flight=True), Pending("bob", "act/0", "!s", in_flight=True)]
        assert [one for one in outbox.pending("act/") if one.in_flight] == flying
        assert Pending("ada", "act/end", "!r", in_flight=False) in outbox.pending("act/")
        with store.transaction():
            assert outbox.cancel_prefix("act/") == flying
            assert outbox.cancel_prefix("%") == outbox.cancel_prefix("other__") == []
        server.open.set()
        await outbox.wait("ada", "other_/0")
        await outbox.wait("bob", "act/0")
    assert sorted(server.keys()) == ["act/0", "act/0", "acting", "other_/0"]


async def test_what_an_account_left_is_given_up_page_by_page(
    store: Store, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of its rows once, however many pages there are."""
    monkeypatch.setattr(rows_module, "PAGE", 2)
    done = list[Outcome]()
    before = Outbox(store, lambda: NOW, server.deliver)
    with store.transaction():
        for number in range(5):
            before.put("ada", f"!{number}", MESSAGE, message("x"), str(number), account="ada")
    outbox = Outbox(store, lambda: NOW, server.deliver, done.append)
    async with running(outbox):
        await outbox.wait("ada", "4")
    assert [one.key for one in done] == list("01234")
    assert all("not used any more" in (one.reason or "") for one in done)
    assert server.taken == []
