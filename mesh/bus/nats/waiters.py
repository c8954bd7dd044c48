"""Who waits for which answer: many questions share one inbox, told apart by a token at the end of the reply subject."""

import asyncio
import itertools
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

from mesh.bus.nats.jetstream import Answer
from mesh.errors import MeshError


@dataclass(slots=True)
class _Waiter:
    subject: str
    future: asyncio.Future[list[Answer]]
    parts: list[Answer] | None  # None when one answer is all

    def take(self, answer: Answer) -> None:
        if self.parts is not None:
            self.parts.append(answer)
            if not answer.status:
                return
        if not self.future.done():
            self.future.set_result([answer] if self.parts is None else self.parts)

    def fail(self, error: MeshError) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class Waiters:
    """All that wait on one connection."""

    def __init__(self) -> None:
        self._waiting: dict[str, _Waiter] = {}
        self._tokens = itertools.count()

    @contextmanager
    def one(
        self, subject: str, parts: list[Answer] | None, timeout_s: float, late: MeshError
    ) -> Generator[tuple[str, asyncio.Future[list[Answer]]]]:
        """A token and the future of its answers: one, or with `parts` all up to the one that has a status.

        A timer instead of a cancellation ends the wait with `late`: the driver swallows cancellations here and there.
        """
        loop = asyncio.get_running_loop()
        token = str(next(self._tokens))
        waiter = self._waiting[token] = _Waiter(subject.lower(), loop.create_future(), parts)
        timer = loop.call_later(timeout_s, waiter.fail, late)
        try:
            yield token, waiter.future
        finally:
            timer.cancel()
            del self._waiting[token]
            waiter.future.cancel()
            if not waiter.future.cancelled():
                waiter.future.exception()  # looked at, so that nobody complains that it never was

    def take(self, token: str, answer: Answer) -> None:
        """An answer arrived; nobody may be waiting for it any more."""
        waiter = self._waiting.get(token)
        if waiter is not None:
            waiter.take(answer)

    def fail(self, error: MeshError, subject: str | None = None) -> None:
        """End the wait of all, or of those who asked on `subject` (lower case, as the driver reports it)."""
        for waiter in self._waiting.values():
            if subject in (None, waiter.subject):
                waiter.fail(type(error)(*error.args))  # each its own: a traceback belongs to one task

    async def settle(self, timeout_s: float) -> None:
        """Return when nobody waits any more, or after `timeout_s`."""
        futures = [waiter.future for waiter in self._waiting.values()]
        if futures:
            await asyncio.wait(futures, timeout=timeout_s)
