"""One connection to a NATS server, or to several that are one: it comes back by itself, and says who waits in vain."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit
from weakref import WeakSet

import structlog
from nats import errors
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription as NatsSubscription

from mesh.bus.nats.client import PERMISSIONS, RECONNECT_S, BusClient
from mesh.bus.nats.jetstream import API_S, Answer
from mesh.bus.nats.pull import Pull
from mesh.bus.nats.waiters import Waiters
from mesh.errors import BusRefused, BusUnavailable, MeshError
from mesh.words import plain
from protocol.errors import BadKey
from protocol.keys import Signer

CONNECT_S = 5.0  # for the first connection: later ones are tried for ever
PING_S = 10  # a server that froze is noticed after three of these
PENDING_BYTES = 4 * 1024 * 1024  # written but not yet sent: then publishing waits, which is the backpressure we want
DRAIN_S = 3.0  # at close, for what is under way
QUIET_S = 10.0  # the same complaint of the driver is logged no more often
OLDEST_SERVER = (2, 14)  # the first that can set a durable consumer back (CONSUMER.RESET)
INBOX = "_INBOX"  # replies go nowhere else, see NatsBus.subscribe

_log = structlog.get_logger()


@dataclass(slots=True)
class _Complaints:
    """Says each kind of complaint at most once in QUIET_S."""

    said: dict[str, float] = field(default_factory=dict[str, float])

    def say(self, error: Exception, where: str) -> None:
        """One line; only what a person can do something about is a warning."""
        kind, now = type(error).__name__, asyncio.get_running_loop().time()
        if now - self.said.get(kind, float("-inf")) < QUIET_S:
            return
        self.said[kind] = now
        text = plain(str(error)) or kind
        worth = isinstance(error, errors.SlowConsumerError) or "violation" in text.lower()
        (_log.warning if worth else _log.debug)("the bus driver complains", server=where, error=text)


class ServerWire:
    """One connection that comes back by itself, and who waits for what on it."""

    def __init__(self, url: str) -> None:
        # An address may hold a password: only host and port are ever shown.
        parts = [urlsplit(one if "://" in one else f"nats://{one}") for one in url.split(",")]
        self.where = ", ".join(plain(f"{part.hostname}:{part.port or 4222}") for part in parts)
        self.client = BusClient()
        self.pulls: WeakSet[Pull] = WeakSet()  # that must learn of a lost connection
        self.closing = False
        self._urls = url.split(",")
        self._complaints = _Complaints()
        self._first = True
        self._up = asyncio.Event()
        self._waiting = Waiters()
        self._replies = ""
        self._denied: set[str] = set()

    async def open(self, name: str, nkey_seed: str | None, credentials: Path | None, *, echo: bool) -> None:
        """The first connection. Raises BusUnavailable, BusRefused."""
        try:
            if nkey_seed is not None:
                Signer.from_seed(nkey_seed)
        except BadKey as error:
            raise BusRefused(f"The key for the bus cannot be used: {error}.") from error
        if credentials is not None and not await asyncio.to_thread(credentials.is_file):
            raise BusRefused(f"There is no credentials file {credentials}.")
        try:
            async with asyncio.timeout(CONNECT_S):
                await self.client.connect(
                    self._urls,
                    name=name,
                    no_echo=not echo,
                    nkeys_seed_str=nkey_seed,
                    user_credentials=str(credentials) if credentials is not None else None,
                    error_cb=self._on_error,
                    disconnected_cb=self._on_disconnected,
                    reconnected_cb=self._on_reconnected,
                    closed_cb=self._on_disconnected,
                    max_reconnect_attempts=-1,
                    reconnect_time_wait=cast("int", RECONNECT_S),  # typed as int, used in sleep()
                    ping_interval=PING_S,
                    pending_size=PENDING_BYTES,
                    drain_timeout=cast("int", DRAIN_S),
                    inbox_prefix=INBOX,
                )
                self._replies = self.client.new_inbox() + "."
                await self.listen(f"{self._replies}*", self._on_answer)
        except TimeoutError as error:
            why = plain(str(self.client.last_error or "no answer"))
            raise BusUnavailable(f"No NATS server answers at {self.where} ({why}).") from error
        except errors.Error as error:
            raise BusUnavailable(
                f"The connection to the NATS server at {self.where} failed: {plain(str(error))}"
            ) from error
        self._first = False
        version = self.client.connected_server_version
        if (version.major, version.minor) < OLDEST_SERVER:
            raise BusRefused(
                f"The NATS server at {self.where} is too old ({plain(str(version))}); it must be 2.14 or newer."
            )
        self._up.set()

    async def close(self) -> None:
        """Let what is under way finish, at most DRAIN_S, and disconnect."""
        self.closing = True
        if self._up.is_set():
            await self._waiting.settle(DRAIN_S)
        client = self.client
        if client.is_connected or client.is_connecting or client.is_reconnecting:
            with contextlib.suppress(errors.Error, TimeoutError):
                async with asyncio.timeout(2 * DRAIN_S):  # nats-py flushes once more after its own time limit
                    await client.drain()
        await client.end()
        await self._on_disconnected()
        self._up.set()  # whoever waits for a connection learns that there will be none

    def inbox(self) -> str:
        """A subject that nobody else uses."""
        return self.client.new_inbox()

    async def connected(self) -> None:
        """Return once there is a connection. Raises BusUnavailable when there never will be."""
        await self._up.wait()
        if self.closing:
            raise BusUnavailable("This connection to the bus is closed.")

    async def ask(self, subject: str, data: bytes, timeout_s: float, msg_id: str = "") -> Answer:
        """Send and wait for one answer. Raises BusUnavailable, BusRefused."""
        return (await self._ask(subject, data, timeout_s, msg_id, None))[0]

    async def ask_many(self, subject: str, data: bytes, timeout_s: float) -> list[Answer]:
        """Send and wait for all answers; the last one has a status. Raises BusUnavailable, BusRefused."""
        return await self._ask(subject, data, timeout_s, "", [])

    async def _ask(
        self, subject: str, data: bytes, timeout_s: float, msg_id: str, parts: list[Answer] | None
    ) -> list[Answer]:
        if self.closing or not self._up.is_set():
            await self._return(timeout_s)
        late = f"The server of the bus at {self.where} gave no answer on {subject} within {timeout_s:g} s."
        headers = {"Nats-Msg-Id": msg_id} if msg_id else None
        with self._waiting.one(subject, parts, timeout_s, BusUnavailable(late)) as (token, answers):
            try:
                await self.client.publish(subject, data, reply=self._replies + token, headers=headers)
            except errors.Error as error:
                raise _translated(error) from error
            return await answers

    async def _return(self, timeout_s: float) -> None:
        """Wait for the server to be back. Nothing is buffered: what is sent after its sender gave up is a riddle."""
        try:
            async with asyncio.timeout(timeout_s):
                await self.connected()
        except TimeoutError as error:
            raise BusUnavailable(f"The server of the bus at {self.where} is away.") from error

    async def post(self, subject: str, data: bytes, reply: str = "") -> None:
        """Send and forget; dropped when the server is away."""
        if self._up.is_set() and not self.closing:
            with contextlib.suppress(errors.Error):
                await self.client.publish(subject, data, reply=reply)

    async def listen(self, pattern: str, handler: Callable[[Answer], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
        """Subscribe for ourselves: no limit, since never more comes than we asked for. Returns what ends it."""

        async def on_message(msg: Msg) -> None:
            await handler(Answer(msg.subject, msg.data, _headers(msg), msg.reply))

        return (await self.subscribe(pattern, on_message, limit=0)).end

    async def subscribe(self, pattern: str, handler: Callable[[Msg], Awaitable[None]], limit: int) -> "Interest":
        """Subscribe; at most `limit` bytes wait for the handler, 0 for no limit."""
        try:
            subscription = await self.client.subscribe(  # pyright: ignore[reportUnknownMemberType]
                pattern, cb=handler, pending_bytes_limit=limit
            )
        except errors.Error as error:
            raise _translated(error) from error
        return Interest(subscription)

    async def flush(self, pattern: str) -> None:
        """Return when the server knows of the subscription. Raises BusUnavailable, BusRefused."""
        self._denied.discard(pattern.lower())
        try:
            await self.client.flush(timeout=cast("int", API_S))
        except (errors.Error, TimeoutError) as error:
            raise BusUnavailable(f"The server of the bus at {self.where} does not answer.") from error
        task = asyncio.current_task()
        if task is not None and task.cancelling():  # Python 3.11's wait_for, within flush, may lose a cancellation
            raise asyncio.CancelledError
        if pattern.lower() in self._denied:
            raise BusRefused(f"The server of the bus does not let us listen to {pattern}.")

    async def _on_answer(self, answer: Answer) -> None:
        self._waiting.take(answer.subject.rpartition(".")[2], answer)

    async def _on_error(self, error: Exception) -> None:
        text = str(error).lower()
        if self._first and "authorization violation" in text:
            raise BusRefused(f"The NATS server at {self.where} does not know our key.") from error
        if PERMISSIONS in text:
            subject = text.partition('"')[2].partition('"')[0]
            if "subscription" in text:
                self._denied.add(subject)
            self._waiting.fail(
                BusRefused(f"The server of the bus does not let us publish to {plain(subject)}."), subject
            )
        self._complaints.say(error, self.where)

    async def _on_disconnected(self) -> None:
        if self._up.is_set() and not self.closing:
            _log.warning("the bus lost its server", server=self.where)
        self._up.clear()
        self._waiting.fail(BusUnavailable(f"The connection to the server of the bus at {self.where} was lost."))
        for pull in self.pulls:
            pull.interrupt()

    async def _on_reconnected(self) -> None:
        _log.info("the bus has its server again", server=self.where)
        self._up.set()


class Interest:
    """nats-py's subscription, ended without complaint whatever state the connection is in."""

    def __init__(self, subscription: NatsSubscription) -> None:
        self._subscription = subscription

    async def end(self) -> None:
        """No more messages."""
        with contextlib.suppress(errors.Error):
            await self._subscription.unsubscribe()


def _headers(msg: Msg) -> Mapping[str, str]:
    return msg.headers or {}


def _translated(error: errors.Error) -> MeshError:
    if isinstance(error, errors.MaxPayloadError | errors.BadSubjectError | errors.BadHeaderError):
        return BusRefused(f"The bus cannot carry this message: {plain(str(error))}.")
    return BusUnavailable(f"The bus cannot send at the moment: {plain(str(error))}.")
