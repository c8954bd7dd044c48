"""Where the concrete parts of a node are chosen and joined."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

import structlog

from mesh.bus.nats.bus import NatsBus
from mesh.clock import now_ms
from mesh.errors import StoreFailed
from mesh.links.papers import learn_papers
from mesh.server import Server, ServerKeys
from mesh.store import Store
from nodes.client import Client
from nodes.commands.joining import SCHEMAS, join
from nodes.commands.vendors import key_problems, model_problems, models_of
from nodes.config import MeshConfig
from nodes.control import Control
from nodes.errors import NotRunning
from nodes.home import Home, Running, at_home
from nodes.media import Media
from nodes.node import Ground, Identity, Node
from protocol.keys import NodeId

DRAIN_S: Final = 10.0  # a stop waits so long for replies that are being written; others are written at the next start
log = structlog.get_logger(__name__)


async def serve(home: Home, started: Callable[[], Awaitable[None]] | None = None) -> None:
    """Run the node of a home until SIGTERM or SIGINT, then drain it.

    `started` runs beside it once it is ready; when `started` ends, the node does. Raises NodeError, MeshError (also in
    groups) when it cannot start or go on.
    """
    config = home.config()
    stop = _stop_at_signals()
    async with AsyncExitStack() as stack:
        held = home.hold()
        stack.callback(held.release)
        store = Store(home.database, SCHEMAS)
        stack.callback(store.close)
        server, url = await _server(home, config, stack)
        bus = await _bus(home, config, server, url)
        stack.push_async_callback(bus.close)
        conduit, models = models_of(home, config)
        stack.push_async_callback(conduit.close)
        client = NodeId(home.signer("client").public)
        identity = Identity(home.signer("node"), home.certificate(), home.trust(), client)
        identity.certificate.check(now_ms())
        media = Media(home.media)
        node = Node(config, home.ems, identity, Ground(bus, store, models, now_ms, media))
        more = join(home, node, media)
        credentials = _credentials(home, config) if server is None else None
        running = Running(os.getpid(), url, now_ms(), server is None, None if credentials is None else str(credentials))
        stack.callback(home.announce, None)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(node.run(), name="node")]
            if server is not None:
                tasks.append(group.create_task(server.supervise(), name="server"))
            await _first(node.ready, stop)
            if not stop.is_set():
                control = Control(node, more)
                tasks.append(group.create_task(control.serve(), name="control"))
                await _first(control.ready, stop)
                log.info("the node is up", mesh=config.name, ems=len(node.runtime.ems), bus=url)
                for problem in (*model_problems(config, node.runtime.ems.values()), *key_problems(home, config)):
                    log.warning(problem)
                home.announce(running)  # whoever waits for it finds all that was to be said
                if started is not None:
                    tasks.append(group.create_task(_then(started, stop), name="beside"))
                await stop.wait()
                await _drain(node)
            for task in tasks:
                task.cancel()


async def _first(*events: asyncio.Event) -> None:
    """Wait for one of several events: a stop is not kept waiting by a node that has much to catch up with."""
    async with asyncio.TaskGroup() as group:
        waits = [group.create_task(event.wait()) for event in events]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()


def _stop_at_signals() -> asyncio.Event:
    """An event that SIGTERM and SIGINT set; a second one ends the program without waiting for anything."""
    stop, loop, task = asyncio.Event(), asyncio.get_running_loop(), asyncio.current_task()

    def signalled() -> None:
        if stop.is_set() and task is not None:
            task.cancel()
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        with contextlib.suppress(NotImplementedError):  # Windows: Ctrl-C arrives as KeyboardInterrupt
            loop.add_signal_handler(number, signalled)
    return stop


async def _drain(node: Node) -> None:
    log.info("stopping")
    if not await node.drain(DRAIN_S):
        log.warning("replies were still being written; they are taken up at the next start")


async def _then(work: Callable[[], Awaitable[None]], stop: asyncio.Event) -> None:
    try:
        await work()
    finally:
        stop.set()


async def _server(home: Home, config: MeshConfig, stack: AsyncExitStack) -> tuple[Server | None, str]:
    if config.server.url is not None:
        return None, config.server.url
    keys = {name: home.signer(name).public for name in ("node", "client", "system")}
    server = Server(home.data / "nats", ServerKeys(home.mesh_id(), **keys), config.server.port)
    stack.push_async_callback(server.stop)
    await server.start()
    return server, server.url


async def _bus(home: Home, config: MeshConfig, server: Server | None, url: str) -> NatsBus:
    """The node's own connection. What it says itself, and what links bring, its ledger has heard before the bus."""
    if server is not None:
        seed = home.signer("node").seed()
        return await NatsBus.connect(url, nkey_seed=seed, storage_full=server.is_full, echo=False)
    return await NatsBus.connect(url, credentials=_credentials(home, config), echo=False)


def _credentials(home: Home, config: MeshConfig) -> Path | None:
    file = config.server.credentials
    return config.resolve(home.path, file) if file else None


@asynccontextmanager
async def connect(home: Home) -> AsyncGenerator[Client]:
    """A client of the running node. Raises NotRunning."""
    running = home.running()
    start = f"start it with: mesh up{at_home(home.path)}"
    if running is None:
        raise NotRunning(f"no node is running on {home.path}; {start}")
    if not running.alive:
        raise NotRunning(f"the node with process id {running.pid} ended without a word; {start}")
    if running.external:  # mesh.yaml is not asked: a mistake in it must not lock anybody out of a node that runs
        credentials = None if running.credentials is None else Path(running.credentials)
        opening = NatsBus.connect(running.url, credentials=credentials, manage_stream=False)
    else:
        opening = NatsBus.connect(running.url, nkey_seed=home.signer("client").seed(), manage_stream=False)
    bus = await opening
    trust = home.trust()

    def learn() -> None:
        """What peers say is listened to as well."""
        with contextlib.suppress(StoreFailed), contextlib.closing(Store(home.database, read_only=True)) as store:
            learn_papers(store, trust)

    learn()
    try:
        yield Client(bus, home.mesh_id(), home.signer("client"), trust, now_ms, learn)
    finally:
        await bus.close()
