"""Any vendor that speaks OpenAI's API: chat or plain completions, streamed.

The driver sends the request. The answer is read by `nodes.models.answers` instead, because the driver puts no bound on
what it accepts and cannot tell a finished stream from one that broke off.
"""

import asyncio
import math
import random
import re
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from pydantic import SecretStr

from nodes.errors import ModelRefused, ModelUnavailable
from nodes.models.answers import SAYS, Fault, Reply, plain, utf8
from nodes.models.base import Request, Usage, estimate
from nodes.models.body import check, events_of
from nodes.models.parts import Fetch, content, data_urls

if TYPE_CHECKING:
    import httpx2
    from openai import AsyncOpenAI

Api = Literal["chat", "completions"]

MAX_VENDOR_STOPS = 4  # what the API allows; all of them are applied on our side anyway
MAX_RETRY_AFTER_S = 30.0  # asked to wait longer, we give up at once rather than come back too early
MAX_BACKOFF_S = 8.0  # between two tries when the vendor names no time
MAX_QUIRKS = 256  # models whose dislikes are remembered; beyond that all are learnt anew
MAX_SEED = 2**31 - 1  # some vendors read 32 bits
MAX_REPLY_S = 900.0  # from first try to last word: a slow machine at a long reply is done, a drip is not endless
CONNECT_TIMEOUT_S = 10.0  # a host that is up accepts within a second
OPTIONAL = ("stream_options", "seed", "temperature", "top_p", "stop")  # a request makes sense without these
SENT_HEADERS = frozenset(  # the driver would add facts about this machine, and whatever its environment says
    {"host", "connection", "content-type", "content-length", "transfer-encoding", "accept", "user-agent"}
)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait, in seconds, and how often to try again.

    `timeout_s` bounds the time without an event, `first_token_timeout_s` (None: the same) the time to the first event
    of a try, `reply_timeout_s` one reply with all its tries and pauses. `backoff_s` is the first pause; it doubles.
    """

    timeout_s: float = 60.0
    first_token_timeout_s: float | None = None
    reply_timeout_s: float = MAX_REPLY_S
    max_retries: int = 2
    backoff_s: float = 0.5


DEFAULT_PATIENCE = Patience()


class OpenAIModel:
    """One vendor's endpoint; implements `nodes.models.base.Model` for every model behind it.

    `name` is what people call the vendor. `api_key` None sends no key (local servers). `fetch` reads pictures (None:
    their names in the text must do). The driver is loaded in a thread at the first call, since that takes seconds on a
    cold disk.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - all that a vendor is, each once
        self,
        name: str,
        base_url: str,
        api_key: SecretStr | None,
        api: Api,
        patience: Patience = DEFAULT_PATIENCE,
        fetch: Fetch | None = None,
    ) -> None:
        self._name = name
        self._base_url = base_url
        self._key = api_key
        self._api: Api = api
        self._patience = patience
        self._fetch = fetch
        self._driver: AsyncOpenAI | None = None
        self._opening = asyncio.Lock()
        self._closed = False
        self._quirks: dict[str, frozenset[str]] = {}

    def __repr__(self) -> str:
        return f"OpenAIModel({self._name!r}, api={self._api!r})"

    async def stream(self, request: Request) -> AsyncGenerator[str | Usage, None]:
        """Yield text as it comes, then one Usage. Tries again only while nothing was yielded.

        Close the generator (`contextlib.aclosing`) to end the HTTP call. Raises ModelUnavailable and ModelRefused.
        """
        now = asyncio.get_running_loop().time
        deadline = now() + self._patience.reply_timeout_s
        begun, tries = False, 0
        pictures = await self._pictures(request)
        while True:
            quirks = self._quirks.get(request.model, frozenset())
            try:
                async with aclosing(self._try(self._body(request, quirks, pictures), request, deadline)) as pieces:
                    async for piece in pieces:
                        begun = True
                        yield piece
            except Fault as fault:
                if fault.invalid and self._learn(request.model, quirks, fault.said):
                    continue
                pause_s = self._pause_s(fault, tries)
                late = now() + pause_s >= deadline
                if begun or late or not fault.again or tries >= self._patience.max_retries:
                    raise self._error(request.model, fault) from None
                tries += 1
                await asyncio.sleep(pause_s)
            else:
                return

    async def close(self) -> None:
        """Free connections; calls that are under way fail. Idempotent."""
        self._closed = True
        driver, self._driver = self._driver, None
        if driver:
            await driver.close()

    async def _try(
        self, body: dict[str, object], request: Request, deadline: float
    ) -> AsyncGenerator[str | Usage, None]:
        """One try: text, then one Usage."""
        reply = Reply()
        try:
            async with aclosing(self._timed(self._events(body), deadline)) as events:
                async for event in events:
                    text = reply.take(event)
                    if text:
                        yield text
                    if reply.full:
                        break
        except Fault:
            if not reply.finished:  # what happens behind the end of the text is of no interest
                raise
        if not (reply.finished or reply.full):
            raise Fault("broke off in the middle of its answer", again=True)
        yield reply.usage or estimate(request, reply.chars)

    async def _timed(self, events: AsyncGenerator[bytes, None], deadline: float) -> AsyncGenerator[bytes, None]:
        """The same events; a Fault when the next one takes too long."""
        now = asyncio.get_running_loop().time
        wait_s = self._patience.first_token_timeout_s or self._patience.timeout_s
        async with aclosing(events):
            while True:
                try:
                    async with asyncio.timeout_at(min(deadline, now() + wait_s)):
                        event = await anext(events, None)
                except TimeoutError:
                    raise Fault("took too long to answer") from None
                if event is None:
                    return
                yield event
                wait_s = self._patience.timeout_s

    async def _events(self, body: dict[str, object]) -> AsyncGenerator[bytes, None]:
        """Send the request; the data of each event as it comes, or a plain JSON answer as one event."""
        driver = await self._open()
        import anyio
        import httpx2
        import openai

        path = "/chat/completions" if self._api == "chat" else "/completions"
        try:
            answer = await driver.post(
                path, body=body, cast_to=object, stream=True, stream_cls=openai.AsyncStream[object]
            )
            async with aclosing(answer), aclosing(events_of(answer.response)) as events:
                async for event in events:
                    yield event
        except (openai.APIConnectionError, httpx2.HTTPError, httpx2.StreamError, anyio.EndOfStream, OSError):
            raise Fault("could not be reached, or dropped the connection", again=True) from None

    async def _pictures(self, request: Request) -> Mapping[str, str]:
        """The pictures that the request can show, as `data:` URLs by their hashes."""
        fetch = self._fetch
        named = any(span.pictures for turn in request.turns for span in turn.spans)
        if fetch is None or self._api != "chat" or not named:
            return {}
        return await asyncio.to_thread(data_urls, request.turns, fetch)

    def _body(self, request: Request, quirks: frozenset[str], pictures: Mapping[str, str]) -> dict[str, object]:
        """The request in the vendor's terms, without what this model is known to dislike (`quirks`)."""
        fields: dict[str, object] = {
            "model": request.model,
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
            "seed": request.seed & MAX_SEED,
        }
        if request.top_p is not None:
            fields["top_p"] = request.top_p
        if request.stop:
            fields["stop"] = list(request.stop[:MAX_VENDOR_STOPS])
        if "max_tokens" in quirks:
            fields["max_completion_tokens"] = request.max_tokens
        fields = {key: value for key, value in fields.items() if key not in quirks}
        if self._api == "completions":
            return {**fields, "prompt": utf8("".join(turn.text for turn in request.turns))}
        turns = [("user" if turn.role == "text" else turn.role, turn) for turn in request.turns if turn.text]
        return {**fields, "messages": [{"role": role, "content": content(turn, pictures)} for role, turn in turns]}

    def _learn(self, model: str, known: frozenset[str], said: str) -> bool:
        """Find in the vendor's complaint a parameter to leave out from now on; False: nothing new was learnt.

        `known` are the dislikes that the request respected; another call may have learnt more since.
        """
        disliked = [name for name in OPTIONAL if name not in known and re.search(rf"\b{name}\b", said)]
        if "max_completion_tokens" in said and "max_tokens" not in known:
            disliked = ["max_tokens"]
        if not disliked:
            return False
        if len(self._quirks) >= MAX_QUIRKS:
            self._quirks.clear()
        self._quirks[model] = self._quirks.get(model, known) | {disliked[0]}
        return True

    def _pause_s(self, fault: Fault, tries: int) -> float:
        """Seconds until the next try; infinite when the vendor asks for more than we are ready to wait."""
        if fault.after_s is not None:
            return fault.after_s if fault.after_s <= MAX_RETRY_AFTER_S else math.inf
        return random.uniform(0.5, 1.0) * min(MAX_BACKOFF_S, self._patience.backoff_s * 2**tries)

    def _error(self, model: str, fault: Fault) -> ModelRefused | ModelUnavailable:
        """The fault as a person reads it: the key hidden first, then escaped and cut."""
        key = self._key.get_secret_value() if self._key else ""
        said = plain(fault.said.replace(key, "***") if key else fault.said)
        sentence = f"the vendor {plain(self._name)}, asked for the model {plain(model)}, {fault.words}"
        kind = ModelRefused if fault.final else ModelUnavailable
        return kind(f'{sentence}{SAYS}{said}"' if said else sentence)

    async def _open(self) -> "AsyncOpenAI":
        async with self._opening:
            if self._closed:
                raise Fault("was closed, since the node is stopping")
            if self._driver is None:
                self._driver = await asyncio.to_thread(self._connect)
            return self._driver

    def _connect(self) -> "AsyncOpenAI":
        """Load the driver and make its client (takes seconds when cold: call it in a thread)."""
        _check_settings(self._base_url, self._key)
        import httpx2
        import openai

        http = httpx2.AsyncClient(
            timeout=httpx2.Timeout(None, connect=CONNECT_TIMEOUT_S),
            follow_redirects=False,  # prompts go where a person said, and nowhere else
            event_hooks={"request": [self._dress], "response": [check]},
        )
        # The driver never sees the key (`_dress` adds it); given something, it does not look for keys in the
        # environment, which may be meant for another vendor.
        return openai.AsyncOpenAI(
            api_key="unused", admin_api_key="", base_url=self._base_url, max_retries=0, http_client=http
        )

    async def _dress(self, request: "httpx2.Request") -> None:
        """Send the headers that the request needs, our key, and nothing else."""
        for name in set(request.headers) - SENT_HEADERS:
            del request.headers[name]
        request.headers["accept-encoding"] = "identity"  # a small compressed answer can hide a huge one
        if self._key:
            request.headers["authorization"] = f"Bearer {self._key.get_secret_value()}"


def _check_settings(base_url: str, key: SecretStr | None) -> None:
    """Raise a Fault for an address or a key that cannot work; it shows neither."""
    try:
        parts = urlsplit(base_url)
        good = parts.scheme in {"http", "https"} and bool(parts.hostname) and "@" not in parts.netloc
    except ValueError:
        good = False
    if not good or not re.fullmatch(r"[!-~]+", base_url):
        raise Fault("has a base_url that is not http(s)://HOST/PATH; correct it, and keep keys out of it", final=True)
    if key and not re.fullmatch(r"[!-~]+", key.get_secret_value()):
        raise Fault("has a key with spaces, line breaks or non-ASCII characters; correct it", final=True)
