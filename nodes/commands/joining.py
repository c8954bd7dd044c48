"""What lives beside a node: the bridge to Matrix, and all that joins it to other people's nodes."""

from typing import Final

from mesh.bridges.matrix.account import Account
from mesh.bridges.matrix.appservice import AppService
from mesh.bridges.matrix.common import Own
from mesh.bridges.matrix.port import MatrixPort
from mesh.bridges.matrix.schema import MATRIX_SCHEMA
from mesh.bridges.matrix.several import Several
from mesh.links.channel import Self
from mesh.links.ground import LINKS_SCHEMA
from mesh.links.messages import MAX_PAPERS, Papers
from mesh.links.tls import Tls
from mesh.store import MESH_SCHEMA
from nodes.companion import Companions
from nodes.control import Operations
from nodes.disputes.disputes import Disputes
from nodes.disputes.operations import operations as dispute_operations
from nodes.disputes.rooms import party
from nodes.disputes.tables import DISPUTES_SCHEMA
from nodes.errors import NodeError
from nodes.home import Home
from nodes.matrix.bridge import Bridge
from nodes.matrix.login import Login, read_login
from nodes.matrix.operations import operations
from nodes.matrix.schema import BRIDGE_SCHEMA
from nodes.media import Media
from nodes.node import Node
from nodes.peers.operations import operations as peer_operations
from nodes.peers.peers import Peers
from nodes.peers.recovery import RECOVERY_SCHEMA, Recovery
from nodes.peers.tables import PEERS_SCHEMA
from nodes.peers.ways import WAYS_SCHEMA
from nodes.presence.introductions import Introductions
from nodes.presence.operations import operations as presence_operations
from nodes.presence.presence import Presence
from nodes.presence.tables import PRESENCE_SCHEMA
from nodes.recalls.operations import operations as recall_operations
from nodes.recalls.recalls import Recalls
from nodes.recalls.tables import RECALLS_SCHEMA
from nodes.receipts.receipts import Receipts
from nodes.receipts.tables import RECEIPTS_SCHEMA
from nodes.turns import TURNS_SCHEMA
from nodes.words.operations import operations as word_operations
from nodes.words.tables import WORDS_SCHEMA
from nodes.words.words import Words

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


def join(home: Home, node: Node, media: Media) -> Operations:
    """Give a node its companions; returns what may be asked of them. Raises NodeError."""
    login = read_login(home.keys)
    peers = _peers(home, node)
    disputes = Disputes(node, peers)
    more: Operations = {**_parts(node, peers), **dispute_operations(disputes)}
    if login is None:
        node.companion = Companions(peers, disputes)
        return more
    bridge = Bridge(node, lambda one: _port(node, login, one), node.config.matrix, login.owner, media)
    bridge.hearing.steward.party = party(disputes, login.owner)
    peers.ways.rooms, bridge.ways.has_moved = bridge.ways, peers.room_moved
    node.companion = Companions(bridge, peers, disputes)
    kind = "appservice" if login.registration else "account"
    return {**more, **operations(bridge, kind, login.homeserver)}


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
