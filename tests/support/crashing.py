"""A node that ends as by `kill -9` at a named boundary of a turn: python crashing.py BOUNDARY HOME."""

import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mesh.ledger import Ledger
from mesh.outbox import Outbox
from nodes.commands.assembly import serve
from nodes.commands.common import run_loop
from nodes.home import Home
from nodes.runtime import Runtime
from protocol.acts import Act

BOUNDARIES = ("before decision", "within decision", "after decision", "during call", "before publish", "after publish")


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def crash_at(boundary: str) -> None:
    publish, hear = Outbox._publish, Runtime.hear
    if boundary == "before decision":
        Ledger.take = die  # type: ignore[method-assign,assignment]
    if boundary == "within decision":

        def hear_and_die(self: Runtime, entries: Sequence[Any]) -> None:
            hear(self, entries)
            die()

        Runtime.hear = hear_and_die  # type: ignore[method-assign]
    if boundary == "after decision":
        Runtime.proceed = die  # type: ignore[method-assign]
    if boundary == "during call":
        import nodes.models.echo

        nodes.models.echo.Echo.stream = die  # type: ignore[assignment]

    async def publish_or_die(self: Outbox, basin: str, frames: Sequence[Sequence[Act]]) -> None:
        is_reply = not frames[0][0].is_root
        if is_reply and boundary == "before publish":
            die()
        await publish(self, basin, frames)
        if is_reply and boundary == "after publish":
            die()

    Outbox._publish = publish_or_die  # type: ignore[method-assign]


main: Callable[[], object] = lambda: run_loop(serve(Home(Path(sys.argv[2]))))  # noqa: E731

if __name__ == "__main__":
    crash_at(sys.argv[1])
    main()
