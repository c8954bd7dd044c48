"""What a simulation is about: how many meshes, how they are linked, what they say, and what goes wrong."""

from pathlib import Path
from typing import Annotated, Any, Final, Literal, cast

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from nodes.errors import ConfigError
from nodes.settings import Settings, load
from protocol.quota import Quota
from protocol.statement import Trust

MAX_NODES: Final = 100_000  # light meshes take some hundreds of kilobytes each
MAX_WHOLE: Final = 32  # whole nodes: each has a bus and a database of its own
MAX_LINKS: Final = 200  # relationships of one mesh
WHOLE: Final[dict[str, Any]] = {"nodes": 12, "hours": 1.0, "hostile": 0.0}  # what is usual where nodes are whole
HUGE: Final = 2**53 - 1

MEANT: Final = {"budget": "HOPS,ACTS, such as 6,16", "quota": "ACTS,CHAINS,TOKENS, such as 120,50,20000, or trust"}

Shape = Literal["random", "ring", "star", "line", "small-world"]
Basins = Literal["own", "common"]


def _numbers(value: object) -> object:
    """`6,16` as a list: how it is written on the command line, and may be in a file."""
    if not isinstance(value, str):
        return value
    if value == "trust":
        return None
    try:
        return [int(word.replace("_", "")) for word in value.split(",")]
    except ValueError:
        raise ValueError("must be whole numbers with commas between them") from None


Number = Annotated[int, Field(ge=0, le=HUGE)]
Two = Annotated[tuple[Number, Number], BeforeValidator(_numbers)]
Three = Annotated[tuple[Number, Number, Number] | None, BeforeValidator(_numbers)]


class Scenario(Settings):
    """All that a simulation depends on: the same scenario gives the same outcome."""

    nodes: int = Field(default=24, ge=2, le=MAX_NODES, description="Meshes, each of a person of its own.")
    links: int = Field(default=4, ge=1, le=MAX_LINKS, description="Relationships of a mesh, about; not for ring, line.")
    shape: Shape = Field(default="small-world", description="Who is linked with whom.")
    basins: Basins = Field(
        default="own",
        description="own: each mesh shares a basin of its own with its peers. common: all share one, and pass it on.",
    )
    relays: float = Field(
        default=0.25, ge=0, le=1, description="Share of meshes that pass on the own basin of a peer to another peer."
    )
    trust: Literal["close", "known", "guest"] = Field(default="known", description="How each sees its peers.")
    quota: Three = Field(
        default=(120, 50, 20_000),
        strict=False,
        description="Acts a minute, chains a day and tokens a day of a peer; trust: those of the trust level.",
    )
    budget: Two = Field(default=(6, 16), strict=False, description="Hops and acts of a chain that a person begins.")
    hours: float = Field(default=6.0, gt=0, le=8_784, description="How long people talk.")
    talk: float = Field(default=4.0, ge=0, le=3_600, description="Things that a person says an hour.")
    history: int = Field(default=3, ge=0, le=1_000, description="Things that each said before anybody was linked.")
    ems: int = Field(default=1, ge=0, le=20, description="Ems of a mesh. Each act of a person names one who hears it.")
    chance: float = Field(default=0.1, ge=0, le=1, description="Of an em's answering what does not name it.")
    hostile: float = Field(default=0.34, ge=0, le=1, description="Share of meshes that are hostile.")
    partition: float = Field(default=0.25, ge=0, le=1, description="Share that is cut off for the middle third.")
    broken: float = Field(default=0.002, ge=0, le=0.5, description="Chance that a message breaks its wire.")
    latency: int = Field(default=80, ge=1, le=600_000, description="Milliseconds from mesh to mesh.")
    skew: float = Field(default=2.0, ge=0, le=3_600, description="Clocks are wrong by up to so many seconds.")
    sign: float = Field(default=1.0, ge=0, le=1, description="Share of frames that are signed, and checked by all.")
    whole: bool = Field(default=False, description="Run whole nodes instead of the rules alone.")
    seed: int = Field(default=1, ge=0, le=HUGE, description="Another seed is another swarm.")

    @model_validator(mode="after")
    def _few_enough(self) -> "Scenario":
        if self.whole and self.nodes > MAX_WHOLE:
            raise ValueError(f"nodes: whole nodes are at most {MAX_WHOLE}; ask for fewer, or do without whole")
        if self.whole and self.hostile:
            raise ValueError("hostile: whole nodes are honest; set it to 0, or do without whole")
        return self

    @property
    def trusting(self) -> Trust:
        """The trust level."""
        return Trust(self.trust)

    @property
    def allowance(self) -> Quota | None:
        """The quota that every mesh sets for its peers; None: what the trust level gives."""
        return None if self.quota is None else Quota(*self.quota)


def scenario(path: Path | None, given: dict[str, Any]) -> Scenario:
    """A scenario from a file and from what was `given` on the command line, which counts more. Raises ConfigError."""
    read = load(path, Scenario).model_dump(exclude_unset=True) if path else {}
    told = {**read, **given}
    usual = WHOLE if told.get("whole") else {}
    try:
        return Scenario.model_validate({**usual, **told})
    except ValidationError as error:
        raise ConfigError([_told(cast("dict[str, Any]", problem)) for problem in error.errors()]) from None


def _reason(problem: dict[str, Any], key: str) -> str:
    """What is wrong with a key."""
    if key in MEANT and problem["type"] != "value_error":
        return f"must be {MEANT[key]}"
    reason = str(problem["msg"]).removeprefix("Value error, ")
    return f"{reason[0].lower()}{reason[1:]}"


def _told(problem: dict[str, Any]) -> str:
    """One mistake as `key: what is wrong`."""
    key = str(problem["loc"][0]) if problem["loc"] else ""
    reason = _reason(problem, key)
    return f"{key}: {reason}" if key else reason
