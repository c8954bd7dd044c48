"""What an em's config.yaml may say."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final, get_args

from pydantic import AfterValidator, AliasChoices, Field, StringConstraints, field_validator

from nodes.chatlog import is_name
from nodes.config import MIN_CONTEXT, YAPPINGS, ModelName
from nodes.pattern import compile_pattern
from nodes.settings import Name, Settings
from nodes.spoken import SpokenKind

MAX_DELAY_S: Final = 600.0  # ten minutes; later than that nobody waits
MAX_REPLY_TOKENS: Final = 32_768  # no vendor writes more at a time in one reply
MAX_PROMPT_TOKENS: Final = 2_000_000  # the largest context window on offer, doubled
MIN_PROMPT_TOKENS: Final = 192  # who the em is, a taste of its text, and what it answers: a reply leaves it so much
MAX_WINDOW: Final = 512  # messages of history that an em sees: a node keeps so many of every basin in memory
MAX_ASKED_WINDOW: Final = 10_000  # what settings may ask for: ems of Chapter II ask for more than they can have here
MAX_STOPS: Final = 64  # each is looked for in every piece of streamed text
MAX_BASINS: Final = 256  # that one em listens in
MAX_NICKNAMES: Final = 32  # each is looked for in every message
MAX_COUNT: Final = 2**53 - 1  # every language can hold it exactly

_NOT_USED: Final = "is a key of Chapter II that is not used here; it is ignored"
_CHAPTER2: Final = """
    active_interfaces addons airtable auth best_of chat.context compat continuation_model_local_tokenization
    continuation_options default_name discord_mute discord_proxy_url discord_random_threshold discord_send_typing
    discord_token discord_user_whitelist em_folder end_to_end_test end_to_end_test_discord_channel_id
    end_to_end_test_discord_token ensembles exa_search_api_key folder frequency_penalty ignore_dotted_messages
    image_limits include_images interfaces legacy logit_bias lookup_msg_cache max_queued_replies may_speak
    message_history_footer message_history_format message_history_header message_history_max_tokens
    message_history_operator message_history_separator metaphor_search_api_key mufflers name_prefix
    name_prefix_optional novelai_api_key only_reply_on_ping port presence_penalty prevent_gpt_topic_change
    prevent_scene_break proxy_url reply_on_sim representation_model sampling scene_break send_typing split_message
    sysname thread_mute threads_inherit_history trim_final_incomplete_sentence use_nicknames vendors
"""


def _author(value: str) -> str:
    if value and not is_name(value):
        raise ValueError("cannot be a name: no < or >, no line break, no / at its ends, no space around it")
    return value


SpokenName = Annotated[str, StringConstraints(max_length=64), AfterValidator(_author)]
Nickname = Annotated[str, StringConstraints(min_length=1, max_length=64), AfterValidator(_author)]
StopSequence = Annotated[str, StringConstraints(min_length=1, max_length=200)]


class Allowance(Settings):
    """What an em may use up, over all basins. None sets no limit of its own."""

    replies_per_hour: int | None = Field(default=None, ge=0, le=MAX_COUNT, description="Messages in any 60 minutes.")
    tokens_per_day: int | None = Field(
        default=None, ge=0, le=MAX_COUNT, description="Model tokens in any 24 hours, prompts included."
    )


class EmSettings(Settings):
    """An em's config.yaml. Keys that Chapter II has too keep their names and meaning."""

    tolerated: ClassVar[Mapping[str, str]] = dict.fromkeys(_CHAPTER2.split(), _NOT_USED)

    name: SpokenName = Field(
        default="",
        validation_alias=AliasChoices("name", "NAME"),
        description="The name it is shown with; the folder's name if not set.",
    )
    nicknames: tuple[Nickname, ...] = Field(
        default=(), max_length=MAX_NICKNAMES, strict=False, description="Other names that it answers to."
    )
    model: ModelName | None = Field(
        default=None,
        validation_alias=AliasChoices("model", "continuation_model", "engines.complete"),
        description="The model it speaks with; null is the mesh's default.",
    )
    temperature: float = Field(default=0.95, ge=0, le=5, description="How freely the model chooses words.")
    top_p: float | None = Field(default=None, gt=0, le=1, description="Share of likely words; null is the model's own.")
    seed: int | None = Field(default=None, ge=0, le=MAX_COUNT, description="Makes seeded models repeatable.")
    max_tokens: int = Field(
        default=120,
        ge=1,
        le=MAX_REPLY_TOKENS,
        validation_alias=AliasChoices("max_tokens", "continuation_max_tokens"),
        description="Tokens of a reply, at most.",
    )
    recency_window: int = Field(
        default=35, ge=1, le=MAX_ASKED_WINDOW, description=f"Messages of history that it sees, {MAX_WINDOW} at most."
    )
    prompt_max_tokens: int = Field(
        default=8_000,
        ge=MIN_CONTEXT,
        le=MAX_PROMPT_TOKENS,
        validation_alias=AliasChoices("prompt_max_tokens", "total_max_tokens"),
        description="Tokens of prompt and reply together.",
    )
    stop_sequences: tuple[StopSequence, ...] = Field(
        default=(), max_length=MAX_STOPS, strict=False, description="Text that ends a reply."
    )
    basins: tuple[Name, ...] = Field(
        default=(YAPPINGS,), max_length=MAX_BASINS, strict=False, description="Where it listens."
    )
    reply_on_ping: bool = Field(default=True, description="Answers an @mention or a reply to it.")
    reply_on_name: bool = Field(default=True, description="Answers when its name or a nickname is said.")
    reply_on_random: int = Field(
        default=0, ge=0, le=MAX_COUNT, description="N answers one message in N by chance; false (or 0) none."
    )
    reply_on_regex: str | None = Field(
        default=None, description="Answers where this regular expression is found; see nodes.pattern for what may be."
    )
    reply_on_floor: bool = Field(default=False, description="Takes a turn when nobody in particular was addressed.")
    reply_on_all: bool = Field(default=False, description="Answers everything.")
    vocabulary: bool = Field(
        default=False, description="Is shown what the words mean that this mesh has adopted, where they are said."
    )
    acts: tuple[SpokenKind, ...] = Field(
        default=(),
        max_length=len(get_args(SpokenKind)),
        strict=False,
        description="What it may do by lines of its replies, such as [propose, adopt, contest]; see docs/words.md.",
    )
    mute: bool = Field(default=False, description="Listens and remembers, and never speaks.")
    delay_s: float = Field(
        default=0.0, ge=0, le=MAX_DELAY_S, description="Seconds to wait before answering, so that people can read."
    )
    budget: Allowance = Field(default_factory=Allowance, description="What it may use up, over all basins.")

    @field_validator("reply_on_random", mode="before")
    @classmethod
    def _chance(cls, value: Any) -> Any:  # noqa: ANN401 - whatever the file holds; what is no number fails as an int
        if value is True:
            raise ValueError("must be a whole number N, for one message in N, or false")
        return 0 if value is False else value

    @field_validator("reply_on_regex")
    @classmethod
    def _countable(cls, value: str | None) -> str | None:
        if value is not None:
            compile_pattern(value)
        return value

    def shares(self, context: int | None = None) -> tuple[int, int]:
        """Tokens of the prompt and of the reply, at most, for a model with this context window (None: no bound)."""
        whole = self.prompt_max_tokens if context is None else min(self.prompt_max_tokens, context)
        reply = min(self.max_tokens, whole - MIN_PROMPT_TOKENS)
        return whole - reply, reply
