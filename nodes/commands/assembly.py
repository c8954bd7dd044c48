"""Where the concrete parts of a node are chosen and joined."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

import structlog
from pydantic import SecretStr

from mesh.bridges.matrix.account import Account
from mesh.bridges.matrix.appservice import AppService
from mesh.bridges.matrix.common import Own
from mesh.bridges.matrix.port import MatrixPort
from mesh.bridges.matrix.schema import MATRIX_SCHEMA
from mesh.bridges.matrix.several import Several
from mesh.bus.nats import NatsBus
from mesh.clock import now_ms
from mesh.errors import StoreFailed
from mesh.links.channel import Self
from mesh.links.ground import LINKS_SCHEMA
from mesh.links.messages import MAX_PAPERS, Papers
from mesh.links.papers import learn_papers
from mesh.links.tls import Tls
from mesh.server import Server, ServerKeys
from mesh.store import MESH_SCHEMA, Store
from mesh.words import plain
from nodes.client import Client
from nodes.companion import Companions
from nodes.config import MeshConfig
from nodes.config import Vendor as VendorConfig
from nodes.control import Control, Operations
from nodes.disputes.disputes import Disputes
from nodes.disputes.operations import operations as dispute_operations
from nodes.disputes.rooms import party
from nodes.disputes.tables import DISPUTES_SCHEMA
from nodes.em import Em
from nodes.errors import ConfigError, ModelRefused, NodeError, NotRunning
from nodes.home import Home, Running, at_home
from nodes.matrix.bridge import Bridge
from nodes.matrix.login import Login, read_login
from nodes.matrix.operations import operations
from nodes.matrix.tables import BRIDGE_SCHEMA
from nodes.media import Media
from nodes.models.conduit import ECHO, Conduit, Vendor
from nodes.models.names import ModelName, is_provided
from nodes.node import Ground, Identity, Node
from nodes.peers.operations import operations as peer_operations
from nodes.peers.peers import Peers
from nodes.peers.recovery import RECOVERY_SCHEMA, Recovery
from nodes.peers.tables import PEERS_SCHEMA
from nodes.peers.ways import WAYS_SCHEMA
from nodes.presence.introductions import Introductions
from nodes.presence.operations import operations as presence_operations
from nodes.presence.presence import Presence
from nodes.presence.tables import PRESENCE_SCHEMA
from nodes.prompt import Style
from nodes.recalls.operations import operations as recall_operations
from nodes.recalls.recalls import Recalls
from nodes.recalls.tables import RECALLS_SCHEMA
from nodes.receipts.receipts import Receipts
from nodes.receipts.tables import RECEIPTS_SCHEMA
from nodes.speaker import Models
from nodes.turns import TURNS_SCHEMA
from nodes.words.operations import operations as word_operations
from nodes.words.tables import WORDS_SCHEMA
from nodes.words.words import Words
from protocol.keys import NodeId

DRAIN_S: Final = 10.0  # a stop waits so long for replies that are being written; others are written at the next start
SCHEMAS: Final = {
    "mesh": MESH_SCHEMA,
    "turns": TURNS_SCHEMA,
    "matrix": MATRIX_SCHEMA,
    "rooms": BRIDGE_SCHEMA,
    "links": LINKS_SCHEMA,
    "peers": PEERS_SCHEMA,
    "ways": WAYS_SCHEMA,
    "words": WORDS_SCHEMA,
    "disputes": DISPUTES_SCHEMA,
    "recovery": RECOVERY_SCHEMA,
    "presence": PRESENCE_SCHEMA,
    "receipts": RECEIPTS_SCHEMA,
    "recalls": RECALLS_SCHEMA,
}

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
        conduit, models = _models(home, config)
        stack.push_async_callback(conduit.close)
        client = NodeId(home.signer("client").public)
        identity = Identity(home.signer("node"), home.certificate(), home.trust(), client)
        identity.certificate.check(now_ms())
        media = Media(home.media)
        node = Node(config, home.ems, identity, Ground(bus, store, models, now_ms, media))
        login = read_login(home.keys)
        peers = _peers(home, node)
        more: Operations = {**_parts(node, peers), **(_matrix(node, login, media) if login else {})}
        disputes = Disputes(node, peers)
        more = {**more, **dispute_operations(disputes)}
        if login and isinstance(node.companion, Bridge):
            node.companion.hearing.party = party(disputes, login.owner)
            peers.ways.rooms = node.companion.ways
        node.companion = Companions(*([node.companion] if login else []), peers, disputes)
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
                home.announce(running)
                log.info("the node is up", mesh=config.name, ems=len(node.runtime.ems), bus=url)
                for problem in (*model_problems(config, node.runtime.ems.values()), *_key_problems(home, config)):
                    log.warning(problem)
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


def _parts(node: Node, peers: Peers) -> Operations:
    """Join what linked nodes do with each other beside passing on acts; returns what may be asked of it."""
    presence = Presence(node, peers)
    Receipts(node, peers)
    return {
        **peer_operations(peers),
        **word_operations(Words(node, peers), peers),
        **presence_operations(peers, presence, Introductions(node, peers, presence)),
        **recall_operations(peers, Recalls(node, peers)),
    }


def _peers(home: Home, node: Node) -> Peers:
    """What joins the node to other people's."""
    certificates, revocations = home.documents()
    shown = Papers(certificates[:MAX_PAPERS], revocations)
    peers = Peers(node, Self(node.identity.signer, certificates[0]), shown)
    links = node.config.links
    if links.certificate and links.key:
        files = [node.config.resolve(home.path, file) for file in (links.certificate, links.key)]
        peers.links.tls = Tls(*files)
    Recovery(node, peers).begin(home.recovered)
    return peers


def _matrix(node: Node, login: Login, media: Media) -> Operations:
    """Give the node a bridge to Matrix; returns what may be asked of it."""
    bridge = Bridge(node, lambda one: _port(node, login, one), node.config.matrix, login.owner, media)
    node.companion = bridge
    return operations(bridge, "appservice" if login.registration else "account", login.homeserver)


def _port(node: Node, login: Login, bridge: Bridge) -> MatrixPort:
    store, clock = node.ground.store, node.ground.clock
    if login.registration and login.listening:
        pages = bridge.pages.page if bridge.pages else None
        where = (login.listening.host, login.listening.port)
        primary = AppService(
            login.homeserver, login.registration, where, store, clock, on_done=bridge.done, pages=pages
        )
    elif login.account:
        primary = Account(login.account, store, clock, bridge.done)
    else:
        raise NodeError("keys/matrix.json holds no login; run: mesh matrix register, or: mesh matrix login")
    own = {em: Account(session, store, clock, own=Own(em, primary)) for em, session in login.own.items()}
    return Several(primary, own, bridge.lost)


def _models(home: Home, config: MeshConfig) -> tuple[Conduit, Models]:
    vendors = {name: _vendor(home, config, name, vendor) for name, vendor in config.models.vendors.items()}

    def style(model: str) -> Style:
        name = ModelName.parse(model).name
        if name == ECHO:
            return "echo"
        for vendor in vendors.values():
            if vendor.has(name):
                return vendor.api
        return "chat"

    def sees(model: str) -> bool:
        name = ModelName.parse(model).name
        vendor = next((vendor for vendor in vendors.values() if vendor.has(name)), None)
        return name != ECHO and vendor is not None and vendor.sees(name)

    conduit = Conduit(config.models.default, vendors, model_calls=config.limits.model_calls)
    return conduit, Models(conduit, style, config.models.default, sees=sees, price=conduit.cost)


def model_problems(config: MeshConfig, ems: Iterable[Em]) -> list[str]:
    """A sentence for every model that some ems would speak with and that no vendor provides."""
    models = config.models
    wanted: dict[str, list[str]] = {models.default: []}
    for em in ems:
        wanted.setdefault(em.settings.model or models.default, []).append(em.name)
    problems: list[str] = []
    for model, users in wanted.items():
        try:
            name = ModelName.parse(model).name
        except ModelRefused as error:
            problems.append(str(error))
            continue
        if name == ECHO or any(is_provided(name, vendor.provides) for vendor in models.vendors.values()):
            continue
        whose = "the default model" if model == models.default else f"the model of {', '.join(sorted(users))}"
        problems.append(f"no vendor in mesh.yaml provides {plain(model)}, {whose}: whoever has it cannot answer")
    return problems


def _key_problems(home: Home, config: MeshConfig) -> Iterable[str]:
    for name, vendor in config.models.vendors.items():
        try:
            vendor_key(home, config, name, vendor)
        except ConfigError as error:
            yield str(error)


def _vendor(home: Home, config: MeshConfig, name: str, vendor: VendorConfig) -> Vendor:
    prices = vendor.prices
    return Vendor(
        base_url=vendor.base_url,
        provides=vendor.provides,
        key=partial(vendor_key, home, config, name, vendor),
        api=vendor.api,
        timeout_s=vendor.timeout_s,
        concurrency=vendor.concurrency,
        price_in=prices.input if prices else None,
        price_out=prices.output if prices else None,
        images=vendor.images,
        fetch=Media(home.media).get,
    )


def vendor_key(home: Home, config: MeshConfig, name: str, vendor: VendorConfig) -> SecretStr | None:
    """Fetch a vendor's key when it is first needed. Raises ConfigError when it is not where the settings say."""
    where = f"{home.path / 'mesh.yaml'}: models.vendors.{name}"
    if vendor.api_key_env is not None:
        key = os.environ.get(vendor.api_key_env, "")
        if not key:
            raise ConfigError([f"{where}.api_key_env: the environment has no {vendor.api_key_env}; set it"])
        return SecretStr(key)
    if vendor.api_key_file is None:
        return None
    path: Path = config.resolve(home.path, vendor.api_key_file)
    try:
        return SecretStr(path.read_text("utf-8").strip())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"{where}.api_key_file: {path} cannot be read: {error}"]) from None
