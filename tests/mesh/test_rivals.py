"""Two nodes that count with one key, as when a home was copied and both run: noticed once, and nothing is lost."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import NOW, OTHER, SCHEMAS, TRUST, frame, root
from structlog.testing import capture_logs

from mesh.bus.memory import MemoryBroker
from mesh.entries import recent
from mesh.ledger import Ledger
from mesh.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    one = Store(tmp_path / "node.db", SCHEMAS)
    yield one
    one.close()


def test_one_number_for_two_things_is_told_once(store: Store) -> None:
    ledger = Ledger(MemoryBroker().connect(), store, TRUST, lambda: NOW, lambda _: None)
    with capture_logs() as logs:
        ledger.hear(*frame(1, root("one", 1)))
        ledger.hear(*frame(1, root("one", 1), sent=NOW + 1))  # framed anew
        ledger.hear(*frame(2, root("two", 2)))
        ledger.hear(*frame(2, root("two there", 3), node=OTHER))
        ledger.hear(*frame(2, root("two elsewhere", 4), basin="tea"))
        assert not [one for one in logs if "one key" in one["event"]]
        ledger.hear(*frame(2, root("another two", 5)))
        ledger.hear(*frame(1, root("another one", 6)))
    assert len([one for one in logs if "one key" in one["event"]]) == 1
    said = [entry.act.text for entry in recent(store, "yappings", 10)]
    assert said == ["one", "two", "two there", "another two", "another one"]
