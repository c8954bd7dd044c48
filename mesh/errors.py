"""What can go wrong between nodes.

MeshError
├── BusUnavailable     the server is away, or did not answer in time: try again, the id makes it safe
├── BusFull            the server has no room to store: a person must make some
├── BusRefused         the server said no: credentials, permissions, or a subject that does not exist
├── ServerFailed       the embedded server could not be started
└── StoreFailed        the node's database cannot be read or written
"""


class MeshError(Exception):
    """Base of everything that `mesh` raises. `str(error)` is one plain sentence for a person."""


class BusUnavailable(MeshError):
    """The server is away or did not answer in time. Retrying is safe: every durable publish carries an id."""


class BusFull(MeshError):
    """The server cannot store more: its disk or its limit is used up."""


class BusRefused(MeshError):
    """The server refused: wrong credentials, missing permission, or nobody answers on the subject."""


class ServerFailed(MeshError):
    """The embedded nats-server did not become ready; the sentence holds its last words."""


class StoreFailed(MeshError):
    """The node's database cannot be read or written; the sentence says what to do."""
