"""`mesh hub`: a process of its own where nodes meet that cannot dial each other. It has no home and no keys."""

import argparse
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import asyncio

    from mesh.links.hub import Counts, Hub
    from mesh.links.tls import Tls

PORT: Final = 7418
TELL_S: Final = 3_600.0  # between two lines of counts
_LISTEN: Final = re.compile(r"(\[[0-9a-f:]+\]|[a-z0-9.-]+):(\d{1,5})", re.ASCII)
_MAX_PORT: Final = 65_535


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument(
        "--listen",
        type=_listen,
        default=_listen(f"0.0.0.0:{PORT}"),
        metavar="HOST:PORT",
        help=f"where nodes dial it (default: 0.0.0.0:{PORT}); port 0 takes any free one",
    )
    parser.add_argument(
        "--allow", action="append", default=[], metavar="MESH-ID", help="serve only these meshes (default: everybody)"
    )
    parser.add_argument("--certificate", type=Path, metavar="FILE", help="PEM: speak TLS; read again when it changes")
    parser.add_argument("--key", type=Path, metavar="FILE", help="the certificate's key in PEM; only you may read it")
    parser.add_argument(
        "--connections", type=_number, default=None, metavar="N", help="at a time, two for each pair (default: 4096)"
    )
    parser.add_argument(
        "--per-address",
        type=_number,
        default=None,
        metavar="N",
        help="connections from one address (default: 256); 0: without limit, behind a proxy",
    )
    parser.set_defaults(run=_run)


def _listen(text: str) -> tuple[str, int]:
    match = _LISTEN.fullmatch(text.lower())
    if match is None or int(match[2]) > _MAX_PORT:
        raise argparse.ArgumentTypeError("must be HOST:PORT, such as 0.0.0.0:7418")
    return match[1].strip("[]"), int(match[2])


def _number(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or len(text) > 6:  # noqa: PLR2004 - a million is more than any has
        raise argparse.ArgumentTypeError("must be a whole number from 0 to 999999")
    return int(text)


async def _run(options: argparse.Namespace) -> None:
    import asyncio

    from mesh.errors import MeshError
    from mesh.links.websocket.listening import Desk, listening

    hub, tls, stop = _hub(options), _tls(options), _stop_at_signals()
    host, port = options.listen
    desk = Desk(hub=hub, tls=tls.context if tls else None)
    try:
        async with listening(host, port, desk) as taken, asyncio.TaskGroup() as group:
            _say(f"The hub listens on {host}:{taken}. Nodes name it in mesh.yaml: links.hubs")
            tasks = [group.create_task(_tell(hub), name="counts")]
            if tls is not None:
                tasks.append(group.create_task(tls.watch(), name="certificate"))
            await stop.wait()
            for task in tasks:
                task.cancel()
    except OSError as error:
        raise MeshError(f"the hub cannot listen on {host}:{port}: {error.strerror}; choose another port") from None
    _say(_told(hub.counts))


def _hub(options: argparse.Namespace) -> "Hub":
    from dataclasses import replace

    from mesh.links.hub import Hub, Limits
    from nodes.errors import NodeError
    from protocol.errors import BadKey
    from protocol.keys import KeyKind, decode_public

    for mesh in options.allow:
        try:
            decode_public(mesh, KeyKind.MESH)
        except BadKey:
            raise NodeError(f"--allow {mesh[:80]!a} is not the id of a mesh; see: mesh keys show") from None
    allowed = frozenset(options.allow)
    given = {"connections": options.connections, "an_address": options.per_address}
    limits = replace(Limits(), **{name: value for name, value in given.items() if value is not None})
    return Hub(limits, allowed.__contains__ if allowed else None)


def _tls(options: argparse.Namespace) -> "Tls | None":
    from mesh.links.tls import Tls
    from nodes.errors import NodeError

    if (options.certificate is None) != (options.key is None):
        raise NodeError("--certificate and --key are given together, or neither is")
    return Tls(options.certificate, options.key) if options.certificate else None


def _stop_at_signals() -> "asyncio.Event":
    """An event that SIGTERM and SIGINT set."""
    import asyncio
    import contextlib
    import signal

    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        with contextlib.suppress(NotImplementedError):  # Windows: Ctrl-C arrives as KeyboardInterrupt
            loop.add_signal_handler(number, stop.set)
    return stop


async def _tell(hub: "Hub") -> None:
    """Say the counts now and then; who was there is told to nobody."""
    import asyncio

    while True:
        await asyncio.sleep(TELL_S)
        _say(_told(hub.counts))


def _say(line: str) -> None:
    """Tell it at once, to a log as well: a program that runs for months fills no buffer."""
    from nodes.layout import lines

    lines([line])
    sys.stdout.flush()


def _told(counts: "Counts") -> str:
    return (
        f"{counts.connections} connections, {counts.pairs} pairs now; since the start {counts.met} pairs,"
        f" {counts.bytes:,} bytes carried, {counts.turned_away} turned away"
    )
