"""What can go wrong with a homeserver.

MatrixError
├── MatrixUnavailable   away, overloaded, or answering nonsense: try again, the transaction id makes it safe
├── MatrixRefused       it said no, and will say no again: `code` and `status` say why
│   └── MatrixAsks      it wants the password for this, within the `session` that it names
├── MatrixLoggedOut     our token is not valid (any more): a person must log in again
│   └── MatrixSilenced  it is that of one speaker's own account: everybody else goes on
├── MatrixFull          too much waits already, in or out
└── BadContent          what was to be sent is no event content
"""

from mesh.errors import MeshError


class MatrixError(MeshError):
    """Base of everything that the Matrix bridge raises."""


class MatrixUnavailable(MatrixError):
    """The homeserver is away or asks for patience. `retry_after_s` is what it asked for, None when it did not say.

    `unsent`: it is certain that it did nothing of what was asked.
    """

    def __init__(self, sentence: str, retry_after_s: float | None = None, *, unsent: bool = False) -> None:
        super().__init__(sentence)
        self.retry_after_s, self.unsent = retry_after_s, unsent or retry_after_s is not None


class MatrixRefused(MatrixError):
    """The homeserver refused for good. `code` is Matrix's errcode, `status` the HTTP status."""

    def __init__(self, sentence: str, code: str, status: int) -> None:
        super().__init__(sentence)
        self.code, self.status = code, status


class MatrixAsks(MatrixRefused):
    """The homeserver wants to be shown first who asks. `session` belongs into the answer."""

    def __init__(self, sentence: str, session: str) -> None:
        super().__init__(sentence, "PASSWORD_WANTED", 401)
        self.session = session


class MatrixLoggedOut(MatrixError):
    """The homeserver does not know our token."""


class MatrixSilenced(MatrixLoggedOut):
    """The homeserver does not know the token of an account that speaks for one speaker alone."""


class MatrixFull(MatrixError):
    """A bound is reached; nothing was taken."""


class BadContent(MatrixError):
    """The content cannot be an event: not JSON as Matrix has it."""
