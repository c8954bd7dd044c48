"""The configuration of the embedded nats-server. Pure: values in, text out; nobody writes it by hand."""

import json
from dataclasses import dataclass
from pathlib import Path

from mesh.errors import ServerFailed

MAX_PAYLOAD = 1024 * 1024  # bytes, headers included: a frame is at most 64 KiB, an attachment is sent in pieces
LOG_BYTES = 1024 * 1024  # of the server's log, before it begins a new file
LOG_FILES = 3  # kept, the current one included: a log never eats the disk
WRITE_DEADLINE = "5s"  # a client that does not read for so long is disconnected; its durable cursor waits
PUBLIC_KEY_CHARS = 56  # of an nkey: 35 bytes in base 32


@dataclass(frozen=True, slots=True)
class ServerKeys:
    """Who may log in, as public nkeys of type user (`U…`); `mesh_id` is the mesh's public nkey (`A…`).

    `node` may do everything in the account MESH. `client` is the owner's command line: it talks to the node on
    `c.<mesh>.` and listens to basins, and can neither speak in a basin nor touch JetStream. `system` is for the
    account SYS.
    """

    mesh_id: str
    node: str
    client: str
    system: str


@dataclass(frozen=True, slots=True)
class Place:
    """Where the server keeps things and listens. `port` -1 is any free one; `store_bytes` limits JetStream."""

    ports: Path
    store: Path
    log: Path
    port: int
    store_bytes: int


def server_config(keys: ServerKeys, place: Place) -> str:
    """The text of the configuration file. Raises ServerFailed when a key or a path cannot be written into one."""
    for field, key in (("mesh", keys.mesh_id), ("node", keys.node), ("client", keys.client), ("system", keys.system)):
        if len(key) != PUBLIC_KEY_CHARS or not (key.isascii() and key.isalnum()):
            raise ServerFailed(f"The {field} key for the bus is not a public nkey of {PUBLIC_KEY_CHARS} letters.")
    for path in (place.ports, place.store, place.log):
        if not str(path).isprintable():
            raise ServerFailed(f"The bus cannot use a folder whose name holds control characters: {str(path)!r}.")
    # The server's own format takes JSON, but not JSON's \uXXXX escapes.
    return json.dumps(_settings(keys, place), indent=2, ensure_ascii=False) + "\n"


def _settings(keys: ServerKeys, place: Place) -> dict[str, object]:
    client_permissions = {
        "publish": {"allow": [f"c.{keys.mesh_id}.>"]},
        "subscribe": {"allow": ["b.>", "e.>", "_INBOX.>"]},
    }
    return {
        "server_name": f"mesh-{keys.mesh_id}",
        "listen": f"127.0.0.1:{place.port}",
        "ports_file_dir": str(place.ports),
        "log_file": str(place.log),
        "log_size_limit": LOG_BYTES,
        "logfile_max_num": LOG_FILES,
        "max_payload": MAX_PAYLOAD,
        "write_deadline": WRITE_DEADLINE,
        "jetstream": {
            "store_dir": str(place.store),
            "max_file_store": place.store_bytes,
            # The default flushes every two minutes: a power cut would take acknowledged messages with it.
            "sync_interval": "always",
        },
        "accounts": {
            "MESH": {
                "jetstream": "enabled",
                "users": [{"nkey": keys.node}, {"nkey": keys.client, "permissions": client_permissions}],
            },
            "SYS": {"users": [{"nkey": keys.system}]},
        },
        "system_account": "SYS",
    }
