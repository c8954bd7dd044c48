"""A store that keeps nothing: what a node's gates write down after every act, they remember as well."""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

from mesh.store import Store


class _Nowhere:
    """What of a Store the gates use."""

    def transaction(self) -> AbstractContextManager[None]:
        """Nothing is written, so nothing can be half written."""
        return nullcontext()

    def execute(self, sql: str, values: Sequence[object] = ()) -> int:  # noqa: ARG002 - a Store's
        """Nothing."""
        return 0

    def many(self, sql: str, rows: Iterable[Sequence[object]]) -> int:  # noqa: ARG002 - a Store's
        """Nothing."""
        return 0

    def rows(self, sql: str, values: Sequence[object] = ()) -> list[Any]:  # noqa: ARG002 - a Store's
        """None."""
        return []

    def one(self, sql: str, values: Sequence[object] = ()) -> None:  # noqa: ARG002 - a Store's
        """None."""
        return


def nowhere() -> Store:
    """Such a store."""
    return cast("Store", _Nowhere())
