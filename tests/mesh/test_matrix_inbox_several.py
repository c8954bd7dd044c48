"""The inbox where several accounts of one node put what they hear."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from mesh.bridges.matrix.inbox import Inbound, Inbox, Way
from mesh.bridges.matrix.schema import MATRIX_SCHEMA
from mesh.store import Store

NOW = 1_800_000_000_000


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    one = Store(tmp_path / "node.db", {"matrix": MATRIX_SCHEMA})
    yield one
    one.close()


@pytest.fixture
def inbox(store: Store) -> Inbox:
    return Inbox(store, lambda: NOW)


def event(number: int, sender: str = "@mara:x", way: Way = "account") -> Inbound:
    return Inbound(f"$e{number}", "!r", sender, "m.room.message", {"body": str(number)}, NOW, way)


def sealed(number: int) -> Inbound:
    return Inbound(f"$e{number}", "!r", "@mara:x", "m.room.encrypted", {"ciphertext": "…"}, NOW, "appservice")


async def test_what_our_own_users_say_is_not_taken(inbox: Inbox) -> None:
    """Whichever account brings it; that a room became encrypted is noted all the same."""
    inbox.leave_out(lambda user: user == "@ada:x")
    content = {"algorithm": "m.megolm.v1.aes-sha2"}
    change = Inbound("$s", "!r", "@ada:x", "m.room.encryption", content, NOW, "account", state_key="")
    assert inbox.take([event(1, "@ada:x"), event(2), event(2, way="appservice"), change]) == 1
    assert (await anext(inbox)).event_id == "$e2"
    assert inbox.is_encrypted("!r")


async def test_a_sealed_event_comes_again_when_somebody_opens_it(inbox: Inbox) -> None:
    """In the same run, whether it was handled meanwhile or not; and then never again, sealed or open."""
    inbox.take([sealed(1), sealed(2)])
    first, second = await anext(inbox), await anext(inbox)
    inbox.handled(first)
    assert inbox.take([event(1), event(2)]) == 2
    inbox.handled(second)  # the sealed one, by a consumer that was still at it: the open one is to be read still
    again = [await anext(inbox), await anext(inbox)]
    assert again == [replace(event(1), late=True), replace(event(2), late=True)]
    for one in again:
        inbox.handled(one)
    assert inbox.take([sealed(1), event(1), sealed(2), event(2)]) == 0
    assert inbox.waiting() == 0


def redaction(number: int, room: str = "!r") -> Inbound:
    what = f"$e{number}"
    return Inbound("$gone", room, "@mara:x", "m.room.redaction", {"redacts": what}, NOW, "account", redacts=what)


@pytest.mark.parametrize("is_handled", [True, False])
async def test_a_sealed_event_that_was_taken_back_never_comes_opened(inbox: Inbox, is_handled: bool) -> None:
    """Neither one that was shut, nor one that came together with its redaction."""
    inbox.take([sealed(1)])
    if is_handled:
        inbox.handled(await anext(inbox))
    inbox.shut("$e1")
    inbox.take([sealed(2), redaction(2), sealed(3), redaction(3, "!elsewhere")])
    assert inbox.take([event(1), event(2)]) == 0
    assert inbox.take([event(3)]) == 1
    inbox.rewind()
    while inbox.waiting():
        came = await anext(inbox)
        assert (came.kind == "m.room.message") == came.late == (came.event_id == "$e3")
        inbox.handled(came)


async def test_an_event_that_is_served_again_when_its_id_is_forgotten_was_never_late(
    inbox: Inbox, store: Store
) -> None:
    inbox.take([event(1), event(2)])
    for _ in range(2):
        inbox.handled(await anext(inbox))
    assert store.execute("DELETE FROM matrix_inbox WHERE event_id = '$e1'") == 1
    inbox.take([event(1)])
    assert not (await anext(inbox)).late


async def test_an_event_that_came_open_stays_open(inbox: Inbox) -> None:
    assert inbox.take([event(1)]) == 1
    assert inbox.take([sealed(1)]) == 0
    assert await anext(inbox) == event(1)
