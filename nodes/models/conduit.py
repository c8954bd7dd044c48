"""The one door to all models: any vendor in, one stream of text out."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, replace
from itertools import islice
from types import MappingProxyType

from pydantic import SecretStr

from nodes.errors import ConfigError, ModelError, ModelRefused, ModelUnavailable
from nodes.models.answers import plain
from nodes.models.base import CHARS_PER_TOKEN, Model, Request, Usage, estimate
from nodes.models.gate import Gate
from nodes.models.names import ModelName, is_provided
from nodes.models.openai import MAX_REPLY_S, Api, OpenAIModel, Patience
from nodes.models.parts import Fetch

ECHO = "echo"  # the embedded model's name; it is always there
DEFAULT_CONCURRENCY = 4  # calls to one vendor at a time: what small accounts and local servers bear
DEFAULT_MODEL_CALLS = 16  # calls to all models at a time, for a node on a laptop
MAX_CHARS_PER_TOKEN = 2 * CHARS_PER_TOKEN  # no prose has longer tokens: beyond this a vendor ignores `max_tokens`
MAX_MODELS_COUNTED = 256  # totals kept apart; those of further names are summed under OTHER
MAX_NAMES_SHOWN = 20  # in the sentence about an unknown model
OTHER = "(other)"
PRICE_TOKENS = 1_000_000  # vendors give prices for a million tokens


@dataclass(frozen=True, slots=True)
class Vendor:
    """Where models are to be had.

    `key` is the secret, or a function that fetches it at the first call (None: the vendor wants none). `provides` are
    patterns of model names: exact, or with `*`, `?` and `[...]`. `timeout_s` is how long it may be silent,
    `concurrency` how many calls there are at one time. Prices are for a million tokens in whatever currency the person
    thinks in; None: unknown. `images` are patterns of models that take pictures, and `fetch` reads one (see
    nodes.models.parts).
    """

    base_url: str
    provides: tuple[str, ...]
    key: SecretStr | Callable[[], SecretStr | None] | None = None
    api: Api = "chat"
    timeout_s: float = 60.0
    concurrency: int = DEFAULT_CONCURRENCY
    price_in: float | None = None
    price_out: float | None = None
    images: tuple[str, ...] = ()
    fetch: Fetch | None = None

    def has(self, model: str) -> bool:
        """Whether this vendor provides the model."""
        return is_provided(model, self.provides)

    def sees(self, model: str) -> bool:
        """Whether this model takes pictures; plain completions have no place for them."""
        return self.api == "chat" and is_provided(model, self.images)

    def cost(self, usage: Usage) -> float | None:
        """The price of a reply (cached tokens at full price, so never too low); None where a price is unknown."""
        if self.price_in is None or self.price_out is None:
            return None
        return (usage.prompt * self.price_in + usage.completion * self.price_out) / PRICE_TOKENS


@dataclass(frozen=True, slots=True)
class Total:
    """What one model has been used for. `failed` of the `calls` gave an error. `cost` None: a price is unknown."""

    calls: int = 0
    failed: int = 0
    prompt: int = 0
    cached: int = 0
    completion: int = 0
    cost: float | None = 0.0

    def plus(self, usage: Usage, cost: float | None, *, failed: bool) -> "Total":
        """The total with one more call."""
        return Total(
            self.calls + 1,
            self.failed + failed,
            self.prompt + usage.prompt,
            self.cached + usage.cached,
            self.completion + usage.completion,
            None if cost is None or self.cost is None else self.cost + cost,
        )


class StopFilter:
    """Cuts a stream of text at the first stop sequence, wherever the pieces of the stream begin and end. Pure.

    Holds back only what may be the beginning of a stop. `done` once a stop was found.
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._longest = max(map(len, self._stops), default=0)
        self._held = ""
        self.done = False

    def feed(self, piece: str) -> str:
        """Take the next piece; give the text that is now safe to show."""
        if self.done:
            return ""
        text = self._held + piece
        stop, maybe = self._found(text), self._begun(text)
        self.done = stop is not None and stop <= maybe
        cut = maybe if stop is None else min(stop, maybe)
        self._held = text[cut:]
        return text[:cut]

    def finish(self) -> str:
        """The stream has ended; give what was held back for a stop that did not come."""
        if self.done:
            return ""
        stop = self._found(self._held)
        self.done = stop is not None
        return self._held[:stop]

    def _found(self, text: str) -> int | None:
        """Where the first whole stop begins."""
        return min((at for at in (text.find(stop) for stop in self._stops) if at >= 0), default=None)

    def _begun(self, text: str) -> int:
        """Where the first stop begins of which the text has only the start; the end of the text if none does."""
        first = max(0, len(text) - self._longest + 1)
        starts = (at for at in range(first, len(text)) if any(s.startswith(text[at:]) for s in self._stops))
        return next(starts, len(text))


@dataclass(slots=True)
class _Meter:
    """What one call has used so far."""

    chars: int = 0
    usage: Usage | None = None
    failed: bool = False

    def reading(self, request: Request) -> Usage:
        """The vendor's count; without one an estimate; nothing for a call that failed before it gave any text."""
        if self.failed and not self.chars:
            return Usage(0, 0)
        return self.usage or estimate(request, self.chars)


def connect(name: str, vendor: Vendor) -> Model:
    """The model behind a vendor. Fetches its key, which may read a file: call it in a thread."""
    key = vendor.key() if callable(vendor.key) else vendor.key
    patience = Patience(timeout_s=vendor.timeout_s, reply_timeout_s=max(MAX_REPLY_S, vendor.timeout_s))
    return OpenAIModel(name, vendor.base_url, key, vendor.api, patience, vendor.fetch)


class Conduit:
    """Routes each request to a model by name, limits how many run, and counts what they use.

    `default` is the model of requests that name none. `vendors` are asked in order; the first that provides the model
    is used. `echo` replaces the embedded model, which is otherwise loaded at its first use. `model_calls` bounds the
    calls at one time (see Gate). `connect` makes the model behind a vendor, in a thread; tests give scripted ones.
    """

    def __init__(
        self,
        default: str,
        vendors: Mapping[str, Vendor],
        echo: Model | None = None,
        model_calls: int = DEFAULT_MODEL_CALLS,
        connect: Callable[[str, Vendor], Model] = connect,
    ) -> None:
        self._default = default
        self._vendors = dict(vendors)
        self._connect = connect
        limits = {ECHO: model_calls} | {name: vendor.concurrency for name, vendor in vendors.items()}
        self._gate = Gate(limits, model_calls)
        self._opening = {door: asyncio.Lock() for door in limits}
        self._models: dict[str, Model] = {ECHO: echo} if echo else {}
        self._totals: dict[str, Total] = {}
        self._closed = False

    async def stream(self, request: Request) -> AsyncGenerator[str | Usage, None]:
        """Yield text as it comes, without stop sequences and what follows them, then exactly one Usage.

        Waits for a place first. Close it (`contextlib.aclosing`) if it is not read to the end: that ends the call
        and frees the place. Raises ModelRefused for unknown models and ModelUnavailable, also in mid-stream.
        """
        name = ModelName.parse(request.model or self._default).name
        door = self._door(name)
        request = replace(request, model=name)
        async with self._gate.through(door):
            model = await self._model(door)
            meter = _Meter()
            try:
                async with aclosing(_bounded(model, request, meter)) as pieces:
                    async for piece in pieces:
                        yield piece
            except ModelError:
                meter.failed = True
                raise
            finally:
                self._count(door, request, meter)
            yield meter.reading(request)

    def cost(self, model: str, usage: Usage) -> float | None:
        """The price of a reply by this model, in the vendor's own currency; None where it is unknown."""
        return self._cost(self._door(ModelName.parse(model or self._default).name), usage)

    def totals(self) -> Mapping[str, Total]:
        """What each model was used for since the conduit was made, by name. Calls that were given up count as well."""
        return MappingProxyType(self._totals)

    async def close(self) -> None:
        """End all models; further calls fail. Idempotent."""
        self._closed = True
        async with AsyncExitStack() as stack:  # closes the rest even if one of them fails
            for model in self._models.values():
                stack.push_async_callback(model.close)
        self._models.clear()

    def _door(self, name: str) -> str:
        """The vendor to ask; ECHO for the embedded model."""
        if name == ECHO:
            return ECHO
        for door, vendor in self._vendors.items():
            if vendor.has(name):
                return door
        known = [ECHO, *(pattern for vendor in self._vendors.values() for pattern in vendor.provides)]
        more = ", …" if len(known) > MAX_NAMES_SHOWN else ""
        names = ", ".join(plain(pattern) for pattern in islice(known, MAX_NAMES_SHOWN))
        raise ModelRefused(f"no vendor provides the model {plain(name)}; name one of: {names}{more}")

    async def _model(self, door: str) -> Model:
        """The model behind a door, made when it is first needed."""
        async with self._opening[door]:
            if self._closed:
                raise ModelUnavailable("models cannot be used any more, since the node is stopping")
            if door not in self._models:
                make = _embedded if door == ECHO else lambda: self._connect(door, self._vendors[door])
                try:
                    self._models[door] = await asyncio.to_thread(make)
                except ConfigError as error:  # the key is not where the settings say: tried anew at the next call
                    raise ModelRefused(str(error)) from None
            return self._models[door]

    def _cost(self, door: str, usage: Usage) -> float | None:
        return 0.0 if door == ECHO else self._vendors[door].cost(usage)

    def _count(self, door: str, request: Request, meter: _Meter) -> None:
        usage = meter.reading(request)
        known = request.model in self._totals or len(self._totals) < MAX_MODELS_COUNTED
        key = request.model if known else OTHER
        self._totals[key] = self._totals.get(key, Total()).plus(usage, self._cost(door, usage), failed=meter.failed)


def _embedded() -> Model:
    from nodes.models.echo import Echo

    return Echo()


async def _bounded(model: Model, request: Request, meter: _Meter) -> AsyncGenerator[str, None]:
    """The text of one reply up to a stop sequence or the largest length that `max_tokens` can mean."""
    stops, room = StopFilter(request.stop), request.max_tokens * MAX_CHARS_PER_TOKEN
    async with aclosing(model.stream(request)) as pieces:
        async for piece in pieces:
            if isinstance(piece, Usage):
                meter.usage = piece
                continue
            meter.chars += len(piece)
            text = stops.feed(piece)[:room]
            room -= len(text)
            if text:
                yield text
            if stops.done or room <= 0:
                return
    if tail := stops.finish()[:room]:
        yield tail
