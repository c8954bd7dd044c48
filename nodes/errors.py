"""What can go wrong in a node.

NodeError                a sentence for a person; the command line prints it and exits with `code`
├── ConfigError          one or more mistakes in a person's files, each with file, line and suggestion
├── HomeError            the home folder: missing, read-only, or held by another node
├── ModelError           a model did not give a reply
│   ├── ModelUnavailable   timeouts, 429, 5xx, broken streams: trying later may help
│   └── ModelRefused       4xx, wrong key, unknown model: a person must change something
└── NotRunning           the command needs a running node
"""


class NodeError(Exception):
    """Base of everything a node raises. `str(error)` is one plain sentence for a person."""

    code = 1


class ConfigError(NodeError):
    """Mistakes in a person's files; `problems` has one line each: `FILE:LINE: KEY: what is wrong; what to do`."""

    code = 2

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class HomeError(NodeError):
    """The home folder cannot be used as it is."""

    code = 3


class ModelError(NodeError):
    """A model gave no reply."""


class ModelUnavailable(ModelError):
    """The model may answer later: timeout, 429, 5xx, or a stream that broke."""


class ModelRefused(ModelError):
    """The model will not answer until a person changes something: key, name, or a request it calls invalid."""


class NotRunning(NodeError):
    """The command needs a running node, and there is none."""

    code = 4
