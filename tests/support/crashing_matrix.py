"""A node that ends as by `kill -9` between a room and its ems: python crashing_matrix.py BOUNDARY HOME."""

import sys
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from crashing import die

from mesh.bridges.matrix import inbox, outbox
from mesh.bridges.matrix.appservice import AppService
from mesh.bridges.matrix.crypto import Crypto
from mesh.bridges.matrix.inbox import Inbound
from mesh.bridges.matrix.outbox import Outcome, Outgoing
from mesh.outbox import Outbox, Waiting
from nodes.commands.assembly import serve
from nodes.commands.common import run_loop
from nodes.home import Home
from nodes.matrix.bridge import Bridge
from nodes.models.conduit import Conduit
from nodes.runtime import Runtime
from protocol.acts import Act

Patch = Callable[[], None]


def replaced(owner: type, name: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    setattr(owner, name, wrap(getattr(owner, name)))


def before(owner: type, name: str, when: Callable[..., bool] = lambda *_: True) -> None:
    """Die when a method is called."""

    def wrap(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **more: Any) -> Any:
            if when(*arguments):
                die()
            return call(*arguments, **more)

        return wrapped

    replaced(owner, name, wrap)


def after(owner: type, name: str, when: Callable[..., bool] = lambda *_: True) -> None:
    """Die when a method has done its work."""

    def wrap(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **more: Any) -> Any:
            result = call(*arguments, **more)
            if when(*arguments):
                die()
            return result

        return wrapped

    replaced(owner, name, wrap)


def after_giving(owner: type, name: str) -> None:
    """Die when a method has given something."""

    def wrap(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **more: Any) -> Any:
            result = call(*arguments, **more)
            if result:
                die()
            return result

        return wrapped

    replaced(owner, name, wrap)


def after_awaiting(owner: type, name: str, when: Callable[..., bool] = lambda *_: True) -> None:
    """Die when a coroutine has done its work."""

    def wrap(call: Callable[..., Awaitable[Any]]) -> Callable[..., Any]:
        async def wrapped(*arguments: Any, **more: Any) -> Any:
            result = await call(*arguments, **more)
            if when(*arguments):
                die()
            return result

        return wrapped

    replaced(owner, name, wrap)


def is_said(_: object, event: Inbound) -> bool:
    return event.kind == "m.room.message"


def has_words(_: object, events: Iterable[Inbound], *_more: object) -> bool:
    return any(event.kind == "m.room.message" for event in events)


def is_root(_: object, waiting: Waiting) -> bool:
    return waiting.act.is_root


def is_reply(_: object, waiting: Waiting) -> bool:
    return not waiting.act.is_root


def of_root(_: object, _basin: str, frames: Sequence[Sequence[Act]]) -> bool:
    return frames[0][0].is_root


def of_reply(_: object, _basin: str, frames: Sequence[Sequence[Act]]) -> bool:
    return not frames[0][0].is_root


def in_part(*parts: str) -> Callable[[object, Outgoing], bool]:
    return lambda _, row: row.key.split("/")[1] in parts


def noted(_: object, row: Outgoing, _outcome: Outcome) -> bool:
    return in_part("0", "end")(None, row)


DRAFTED = frozenset({"draft before", "draft taken", "second draft taken", "last edit before", "last edit taken"})
HEARING: dict[str, Patch] = {
    "push before": lambda: before(inbox.Inbox, "take", has_words),
    "push within": lambda: after(inbox.Inbox, "_insert", is_said),
    "push kept": lambda: after(inbox.Inbox, "take", has_words),
    "act before": lambda: before(Outbox, "put"),
    "act within": lambda: before(inbox.Inbox, "mark", is_said),
    "act kept": lambda: before(Outbox, "send", is_root),
    "act published": lambda: after_awaiting(Outbox, "_publish", of_root),
    "turn within": lambda: after(Bridge, "hear"),
    "turn decided": lambda: before(Runtime, "proceed"),
}
WRITING: dict[str, Patch] = {
    "call": lambda: before(Conduit, "stream"),
    "draft before": lambda: before(AppService, "_deliver", in_part("0")),
    "draft taken": lambda: after_awaiting(AppService, "_deliver", in_part("0")),
    "second draft taken": lambda: after_awaiting(AppService, "_deliver", in_part("w1")),
    "reply within": lambda: before(Bridge, "ended"),
    "reply kept": lambda: before(Outbox, "send", is_reply),
    "reply published": lambda: after_awaiting(Outbox, "_publish", of_reply),
}
SHOWING: dict[str, Patch] = {
    "shown within": lambda: after(outbox.Outbox, "put"),
    "shown kept": lambda: before(Bridge, "proceed"),
    "sent before": lambda: before(AppService, "_deliver", in_part("0", "end")),
    "sent taken": lambda: after_awaiting(AppService, "_deliver", in_part("0", "end")),
    "last edit before": lambda: before(AppService, "_deliver", in_part("end")),
    "last edit taken": lambda: after_awaiting(AppService, "_deliver", in_part("end")),
    "sent noted": lambda: after(outbox.Outbox, "_record", noted),
}

PARTS = {"hearing": HEARING, "writing": WRITING, "showing": SHOWING}


def device() -> type:
    """The class of devices, which loads cryptography."""
    from mesh.bridges.matrix.device import Device

    return Device


def has_messages(_: object, answer: dict[str, Any]) -> bool:
    return bool(answer.get("to_device", {}).get("events"))


def is_key(_: object, kind: str, _messages: object) -> bool:
    return kind == "m.room.encrypted"


SEALING: dict[str, Patch] = {
    "key before": lambda: before(device(), "take", has_messages),
    "key taken": lambda: after_giving(device(), "take"),
    "opened": lambda: after_giving(Crypto, "_open"),
    "key shared": lambda: after_awaiting(device(), "_tell", is_key),
    "sealed taken": lambda: after_awaiting(AppService, "_deliver", in_part("0", "end")),
}

if __name__ == "__main__":
    (HEARING | WRITING | SHOWING | SEALING)[sys.argv[1]]()
    run_loop(serve(Home(Path(sys.argv[2]))))
