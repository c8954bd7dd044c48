"""The node's own settings: mesh.yaml."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Literal, Self, cast
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, StringConstraints, field_validator, model_validator

from nodes.commented import commented
from nodes.errors import ModelRefused
from nodes.matrix.settings import Matrix
from nodes.models import names
from nodes.peers.settings import Links
from nodes.settings import Name, Settings

MAX_HOPS: Final = 64  # replies to replies; talk that goes deeper has long begun anew
MAX_ACTS: Final = 4_096  # of a chain; every one may be a model call
MAX_TOKENS: Final = 100_000_000  # of a chain; at usual prices already hundreds of dollars
MAX_MINUTES: Final = 10_080.0  # a week; what goes on longer is a task
MAX_VENDORS: Final = 64  # one is asked after another for each model name
MAX_PATTERNS: Final = 64  # model name patterns of one vendor, tried in turn
MAX_BASINS: Final = 1_024  # that need settings of their own; the number of basins has no limit here
MAX_LISTENERS: Final = 1_000  # ems that a node is built to hold
MAX_CALLS: Final = 256  # model calls at a time; each holds a connection
MAX_TIMEOUT_S: Final = 3_600.0  # a model that is silent for an hour will not answer
MIN_CONTEXT: Final = 256  # tokens: who the em is, what is said, and a short reply
MAX_QUEUE: Final = 10_000  # acts waiting for one em; about 10 MB if they are long

YAPPINGS: Final = "yappings"
GENEROUS: Final[Mapping[str, float]] = {"hops": 24, "acts": 48, "tokens": 200_000, "minutes": 10.0}


def _model_name(value: str) -> str:
    if not value.isprintable() or " " in value:
        raise ValueError("must be a model's name, without spaces and characters that cannot be seen")
    try:
        context = names.ModelName.parse(value).context
    except ModelRefused as error:
        raise ValueError(str(error)) from None
    if context is not None and context < MIN_CONTEXT:
        raise ValueError(f"asks for a context of {context} tokens; a prompt and a reply need {MIN_CONTEXT} or more")
    return value


ModelName = Annotated[str, StringConstraints(min_length=1, max_length=200), AfterValidator(_model_name)]
"""A model as `nodes.models.names` reads it: name, perhaps ^tokenizer and @context, in which a prompt has room."""

FileName = Annotated[str, StringConstraints(min_length=1, max_length=4_096, pattern=r"^[^\x00-\x1f]+$")]


def _url(schemes: tuple[str, ...], value: str) -> str:
    try:
        parts = urlsplit(value)
        _ = parts.port  # raises when it is no number
    except ValueError as error:
        raise ValueError("is not a URL; write one such as https://example.org/v1") from error
    if parts.scheme not in schemes or not parts.hostname:
        raise ValueError(f"must be a URL that begins with {' or '.join(f'{scheme}://' for scheme in schemes)}")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError("must hold no password, query or fragment; keys have settings of their own")
    return value


def _http_url(value: str) -> str:
    return _url(("https", "http"), value)


def _nats_url(value: str) -> str:
    return _url(("nats", "tls", "ws", "wss"), value)


class Budget(Settings):
    """What one chain of replies may use up before it ends."""

    hops: int = Field(default=6, ge=0, le=MAX_HOPS, description="Replies to replies: how deep a chain may go.")
    acts: int = Field(default=16, ge=0, le=MAX_ACTS, description="Messages in the whole chain.")
    tokens: int = Field(
        default=50_000, ge=0, le=MAX_TOKENS, description="Model tokens in the whole chain, prompts included."
    )
    minutes: float = Field(default=10.0, gt=0, le=MAX_MINUTES, description="Minutes until the chain is over.")


class Basin(Settings):
    """Settings of one basin."""

    budget: Budget = Field(default_factory=Budget, description="What a person's or a timer's message here starts with.")
    listeners: tuple[Name, ...] | None = Field(
        default=None,
        max_length=MAX_LISTENERS,
        strict=False,
        description="Ems that may listen here, such as [aporia, ruri]; null lets every em listen that names the basin.",
    )


class Server(Settings):
    """The bus."""

    url: Annotated[str, AfterValidator(_nats_url)] | None = Field(
        default=None, description="An existing NATS server, such as nats://10.0.0.5:4222; null starts one of our own."
    )
    credentials: FileName | None = Field(
        default=None, description="File with the NATS credentials for that server; relative to the home folder."
    )
    port: int = Field(default=0, ge=0, le=65_535, description="Port of our own server; 0 takes any free one.")


class Prices(Settings):
    """What a vendor asks, in its own currency per million tokens."""

    input: float = Field(ge=0, le=1e6, description="Per million prompt tokens.")
    output: float = Field(ge=0, le=1e6, description="Per million completion tokens.")


class Vendor(Settings):
    """One OpenAI-compatible endpoint. Keys are never in the settings: only where they are found."""

    base_url: Annotated[str, AfterValidator(_http_url)] = Field(description="Where its API begins: https://…/v1")
    api_key_env: str | None = Field(default=None, description="Environment variable that holds the key.")
    api_key_file: FileName | None = Field(
        default=None, description="File that holds the key and nothing else; relative to the home folder."
    )
    provides: tuple[ModelName, ...] = Field(
        min_length=1,
        max_length=MAX_PATTERNS,
        strict=False,
        description="Model names that go here; * stands for anything, as in [mistral-*].",
    )
    images: tuple[ModelName, ...] = Field(
        default=(),
        max_length=MAX_PATTERNS,
        strict=False,
        description="Models among them that take pictures; the others are told a picture's name.",
    )
    api: Literal["chat", "completions"] = Field(
        default="chat", description="chat, or completions for base models, which take plain text."
    )
    timeout_s: float = Field(
        default=60.0, gt=0, le=MAX_TIMEOUT_S, description="Seconds without a word until a call has failed."
    )
    concurrency: int = Field(default=4, ge=1, le=MAX_CALLS, description="Calls to this vendor at a time.")
    prices: Prices | None = Field(default=None, description="Per million tokens; null counts no cost.")

    @field_validator("api_key_env")
    @classmethod
    def _variable(cls, value: str | None) -> str | None:
        if value is not None and not (value.isidentifier() and value.isascii() and value.upper() == value):
            raise ValueError("must be the name of an environment variable, such as MY_VENDOR_KEY, and not the key")
        return value

    @model_validator(mode="after")
    def _one_key(self) -> Self:
        if self.api_key_env is not None and self.api_key_file is not None:
            raise ValueError("has both api_key_env and api_key_file; keep one")
        return self

    @model_validator(mode="after")
    def _pictures_in_chats(self) -> Self:
        if self.images and self.api == "completions":
            raise ValueError("has images and api: completions, which takes text alone; remove one of them")
        return self


class Models(Settings):
    """Where text comes from."""

    default: ModelName = Field(
        default="echo", description="Model of every em that names none; `echo` needs nothing installed."
    )
    vendors: dict[Name, Vendor] = Field(
        default_factory=dict,
        max_length=MAX_VENDORS,
        description="Endpoints by a name of your own; a model goes to the first that provides it.",
    )


class Limits(Settings):
    """What the node takes upon itself."""

    model_calls: int = Field(default=8, ge=1, le=MAX_CALLS, description="Model calls at a time, over all vendors.")
    queue: int = Field(
        default=256, ge=1, le=MAX_QUEUE, description="Acts that wait for one em; it skips the oldest beyond that."
    )


def _basins() -> dict[str, Basin]:
    return {YAPPINGS: Basin(budget=Budget.model_validate(GENEROUS))}


_USUAL: Final = Basin()


class MeshConfig(Settings):
    """All of mesh.yaml."""

    name: Name = Field(default="home", description="What you call this mesh; your ems are known as em@name.")
    human: Name = Field(
        default_factory=lambda data: str(data["name"]), description="Your own name as an author; the mesh's if not set."
    )
    server: Server = Field(default_factory=Server, description="The message bus.")
    models: Models = Field(default_factory=Models, description="Where text comes from.")
    basins: dict[Name, Basin] = Field(
        default_factory=_basins,
        max_length=MAX_BASINS,
        description="Basins that differ from the usual: hops 6, acts 16, tokens 50000, minutes 10. "
        "yappings is for idle talk and testing; every node has it.",
    )
    limits: Limits = Field(default_factory=Limits, description="What this node takes upon itself.")
    links: Links = Field(default_factory=Links, description="Links to other people's nodes; see `mesh peer`.")
    matrix: Matrix = Field(default_factory=Matrix, description="Matrix rooms; log in with `mesh matrix`.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="The least that is logged: debug, info, warning or error."
    )

    @field_validator("basins", mode="before")
    @classmethod
    def _yappings(cls, value: object) -> object:
        """What the file leaves open about yappings is generous, and yappings is always there."""
        if not isinstance(value, dict):
            return value
        basins = cast("dict[str, object]", value)
        given = basins.get(YAPPINGS, {})
        if not isinstance(given, dict):
            return basins
        basin = cast("dict[str, object]", given)
        budget = basin.get("budget", {})
        if isinstance(budget, dict):
            basin = {**basin, "budget": {**GENEROUS, **cast("dict[str, object]", budget)}}
        return {**basins, YAPPINGS: basin}

    def basin(self, name: str) -> Basin:
        """The settings of a basin; the usual ones if the file says nothing of it."""
        return self.basins.get(name, _USUAL)

    def resolve(self, home: Path, file: str) -> Path:
        """A file that the settings name, seen from the home folder; `~` is the person's own folder."""
        return home / Path(file).expanduser()


_VENDOR_EXAMPLE: Final = """\
An example:
  vendors:
    somewhere:
      base_url: https://api.example.org/v1
      api_key_env: SOMEWHERE_KEY        (or api_key_file: keys/somewhere)
      provides: [mistral-*, llama-3.1-405b]
      images: [mistral-medium-*]        (models that take pictures; none if not given)
      api: chat                         (or completions, for base models)
      timeout_s: 60
      concurrency: 4
      prices: {input: 0.5, output: 1.5}"""


def starter_mesh_yaml(name: str) -> str:
    """The file that `mesh init` writes: every key with what it is for and its default, commented out.

    `name` is the mesh's name and the only line that is live, beside the headings of sections. `#key: value` is a
    setting that waits for its # to be removed; `# ` begins a sentence. Raises pydantic's ValidationError for a bad
    name.
    """
    examples = {"vendors": _VENDOR_EXAMPLE}
    return commented("Settings of a mesh node", MeshConfig(name=name), frozenset({"name"}), examples)
