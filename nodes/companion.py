"""What lives beside a node's runtime and sees what it sees: a bridge to people elsewhere."""

import asyncio
from collections.abc import Iterable, Sequence
from typing import Protocol

from mesh.entries import Entry
from nodes.turns import Taken
from protocol.acts import Act


class Companion(Protocol):
    """Nothing here may wait, except `run`."""

    def hear(self, entries: Sequence[Entry]) -> None:
        """New acts, once each, in order; within the ledger's transaction, after the runtime."""
        ...

    def proceed(self) -> None:
        """That transaction has committed."""
        ...

    def show(self, basin: str, act: Act) -> None:
        """The words so far of an act that is being written; no words when it begins. May come in any number."""
        ...

    def ended(self, turn: Taken, act: Act | None) -> None:
        """A turn has ended, with this reply or none; within the transaction that records it."""
        ...

    def listens(self, em: str, basin: str) -> bool | None:
        """Whether an em listens in a basin; None leaves it to its settings."""
        ...

    def basins(self) -> Iterable[str]:
        """Basins that matter beside those of the ems' settings."""
        ...

    def hosted(self) -> None:
        """The ems, or where they listen, have changed."""
        ...

    async def run(self) -> None:
        """Work until cancelled; begun when the node has caught up."""
        ...


class Companions:
    """Several companions as one."""

    def __init__(self, *companions: Companion) -> None:
        self._all = companions

    def hear(self, entries: Sequence[Entry]) -> None:
        """Each hears them."""
        for one in self._all:
            one.hear(entries)

    def proceed(self) -> None:
        """Each is told."""
        for one in self._all:
            one.proceed()

    def show(self, basin: str, act: Act) -> None:
        """Each is shown it."""
        for one in self._all:
            one.show(basin, act)

    def ended(self, turn: Taken, act: Act | None) -> None:
        """Each is told."""
        for one in self._all:
            one.ended(turn, act)

    def listens(self, em: str, basin: str) -> bool | None:
        """No of any of them is a no; otherwise the first that has an opinion is right."""
        told = [there for one in self._all if (there := one.listens(em, basin)) is not None]
        return all(told) if told else None

    def basins(self) -> Iterable[str]:
        """Those of all."""
        return {basin for one in self._all for basin in one.basins()}

    def hosted(self) -> None:
        """Each is told."""
        for one in self._all:
            one.hosted()

    async def run(self) -> None:
        """All at once; what one of them raises ends all."""
        async with asyncio.TaskGroup() as group:
            for one in self._all:
                group.create_task(one.run(), name=type(one).__name__.lower())


class Alone:
    """No companion."""

    def hear(self, entries: Sequence[Entry]) -> None:
        """Nothing."""

    def proceed(self) -> None:
        """Nothing."""

    def show(self, basin: str, act: Act) -> None:
        """Nothing."""

    def ended(self, turn: Taken, act: Act | None) -> None:
        """Nothing."""

    def listens(self, em: str, basin: str) -> bool | None:  # noqa: ARG002 - a Companion's
        """The settings alone decide."""
        return None

    def basins(self) -> Iterable[str]:
        """None."""
        return ()

    def hosted(self) -> None:
        """Nothing."""

    async def run(self) -> None:
        """Wait until cancelled."""
        await asyncio.get_running_loop().create_future()
