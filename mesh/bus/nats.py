"""The bus over NATS. The only module that knows nats-py."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit
from weakref import WeakSet

import structlog
from nats import errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription as NatsSubscription

from mesh.bus.base import Handler, Message, Stored, check_durable, check_size, check_subject
from mesh.bus.jetstream import API_S, NO_RESPONDERS, Answer, JetStream
from mesh.bus.pull import Pull
from mesh.bus.waiters import Waiters
from mesh.errors import BusFull, BusRefused, BusUnavailable, MeshError
from mesh.words import plain
from protocol.errors import BadKey
from protocol.keys import Signer

CONNECT_S = 5.0  # for the first connection: later ones are tried for ever
RECONNECT_S = 0.2  # between two attempts; an embedded server is back within 0.1 s
PING_S = 10  # a server that froze is noticed after three of these
PENDING_BYTES = 4 * 1024 * 1024  # written but not yet sent: then publishing waits, which is the backpressure we want
SLOW_BYTES = 64 * 1024 * 1024  # waiting for one handler; beyond, live messages are dropped (stored ones can be read)
DRAIN_S = 3.0  # at close, for what is under way
QUIET_S = 10.0  # the same complaint of the driver is logged no more often
OLDEST_SERVER = (2, 14)  # the first that can set a durable consumer back (CONSUMER.RESET)
INBOX = "_INBOX"  # replies go nowhere else, see NatsBus.subscribe
PERMISSIONS = "permissions violation"
PING = b"PING\r\n"

_log = structlog.get_logger()


class _Client(Client):
    """nats-py's client with five habits changed; each is tested from outside. It types its futures loosely."""

    _ended = False

    async def end(self) -> None:
        """Close for good; nats-py's attempts to reconnect may swallow their cancellation and go on for ever."""
        self._ended = True
        if self._current_server is not None:  # else it never began to connect
            await self.close()
        while (task := self._reconnection_task) is not None and not task.done():
            task.cancel()
            await asyncio.wait([task], timeout=RECONNECT_S)

    async def _close(self, status: int, do_cbs: bool = True) -> None:  # noqa: FBT001, FBT002 - as nats-py calls it
        """Close also when the server goes just then; nats-py gives up half way, with an error of the socket's."""
        try:
            await super()._close(status, do_cbs)
        except OSError:
            self._status = Client.DISCONNECTED  # what was to be written is gone, so the second time goes through
            await super()._close(status, do_cbs)

    async def _select_next_server(self) -> None:
        if self._ended:
            raise errors.NoServersError
        await super()._select_next_server()

    async def _process_err(self, err_msg: str) -> None:
        """Come back after any error of the server; nats-py closes itself for good after most of them."""
        error = errors.Error(f"nats: {err_msg}")
        await self._error_cb(error)
        if PERMISSIONS not in err_msg:
            await self._process_op_err(error)

    async def _process_pong(self) -> None:
        """Survive a flush that was cancelled; nats-py ends its reading task over it."""
        waiting = cast("list[asyncio.Future[bool]]", self._pongs)  # pyright: ignore[reportUnknownMemberType]
        if waiting:
            future = waiting.pop(0)
            self._pongs_received += 1
            self._pings_outstanding = 0
            if not future.done():
                future.set_result(True)

    async def _send_ping(self, future: "asyncio.Future[bool] | None" = None) -> None:
        """Send PING behind what waits to be sent; nats-py overtakes it, so that its flush proves nothing."""
        waiting = cast("list[asyncio.Future[bool]]", self._pongs)  # pyright: ignore[reportUnknownMemberType]
        waiting.append(future or asyncio.get_running_loop().create_future())
        await self._send_command(PING)
        await self._flush_pending()


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


class _Wire:
    """One connection that comes back by itself, and who waits for what on it."""

    def __init__(self, url: str) -> None:
        # An address may hold a password: only host and port are ever shown.
        parts = [urlsplit(one if "://" in one else f"nats://{one}") for one in url.split(",")]
        self.where = ", ".join(plain(f"{part.hostname}:{part.port or 4222}") for part in parts)
        self.client = _Client()
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

    async def subscribe(self, pattern: str, handler: Callable[[Msg], Awaitable[None]], limit: int) -> "_Interest":
        """Subscribe; at most `limit` bytes wait for the handler, 0 for no limit."""
        try:
            subscription = await self.client.subscribe(  # pyright: ignore[reportUnknownMemberType]
                pattern, cb=handler, pending_bytes_limit=limit
            )
        except errors.Error as error:
            raise _translated(error) from error
        return _Interest(subscription)

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


class _Interest:
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


class _Listener:
    """A handler and the subscription that feeds it."""

    def __init__(self, wire: _Wire, pattern: str, handler: Handler) -> None:
        self._wire = wire
        self._pattern = pattern
        self._handler = handler
        self._interest: _Interest | None = None
        self._busy = asyncio.Lock()
        self._task: asyncio.Task[object] | None = None
        self._closed = False

    async def open(self) -> None:
        self._interest = await self._wire.subscribe(self._pattern, self._take, limit=SLOW_BYTES)
        try:
            await self._wire.flush(self._pattern)
        except BaseException:
            await self._interest.end()
            raise

    async def _take(self, msg: Msg) -> None:
        if self._closed:
            return
        async with self._busy:
            self._task = asyncio.current_task()
            # The server lets anybody name any subject as the place for an answer, its own API included. Whoever answers
            # there does it with *our* permissions, so answers go to inboxes and nowhere else.
            reply = msg.reply if _is_inbox(msg.reply) else None
            try:
                await self._handler(Message(msg.subject, msg.data, reply))
            except Exception as error:  # noqa: BLE001 - a handler's fault must not end the subscription
                _log.error("a handler failed", pattern=self._pattern, error=repr(error))
        if self._closed and self._interest is not None:
            await self._interest.end()

    async def close(self) -> None:
        """End it, after the message in hand. A handler may close its own subscription."""
        if self._closed or self._interest is None:
            return
        self._closed = True
        if self._task is asyncio.current_task() and self._busy.locked():
            return
        async with self._busy:
            await self._interest.end()


def _is_inbox(subject: str) -> bool:
    """Whether an answer may go there: a place of somebody's own, and nothing with wildcards or empty tokens."""
    first, *rest = subject.split(".")
    return first == INBOX and bool(rest) and all(token and token not in {"*", ">"} for token in rest)


class NatsBus:
    """See Bus. Made by `connect`."""

    def __init__(self, wire: _Wire, stream: JetStream, storage_full: Callable[[], bool] | None) -> None:
        self._wire = wire
        self._stream = stream
        self._storage_full = storage_full

    @classmethod
    async def connect(  # noqa: PLR0913 - each is one independent fact about the server
        cls,
        url: str,
        *,
        nkey_seed: str | None = None,
        credentials: Path | None = None,
        stream: str = "MESH",
        manage_stream: bool = True,
        name: str = "ampmesh",
        storage_full: Callable[[], bool] | None = None,
        echo: bool = True,
    ) -> "NatsBus":
        """Connect to the server(s) at `url` (several with commas), as the user of an nkey or a credentials file.

        With `manage_stream` the stream is made and kept as this project needs it, on a server of our own; else somebody
        else has made it. `storage_full` tells whether the server's disk is full, where we can know: a full
        nats-server does not answer at all. Without `echo` subscriptions bring only what others publish, and the stream
        everything. Raises BusUnavailable after CONNECT_S, BusRefused.
        """
        wire = _Wire(url)
        try:
            await wire.open(name, nkey_seed, credentials, echo=echo)
            jetstream = JetStream(wire, stream, manage=manage_stream)
            await jetstream.ensure()
        except BaseException:
            await wire.close()
            raise
        return cls(wire, jetstream, storage_full)

    async def publish(self, subject: str, data: bytes, msg_id: str) -> int:
        """See Bus. Many may be under way at once; a cancelled one may have been stored."""
        check_durable(subject, data, msg_id)
        try:
            return await self._stream.store(subject, data, msg_id)
        except BusUnavailable as error:
            if self._storage_full is not None and self._storage_full():
                raise BusFull("The disk of the bus server is full; make room on it.") from error
            raise

    async def send(self, subject: str, data: bytes) -> None:
        """See Bus."""
        check_subject(subject)
        check_size(subject, data)
        await self._wire.post(subject, data)

    async def request(self, subject: str, data: bytes, timeout_s: float) -> bytes:
        """See Bus."""
        check_subject(subject)
        check_size(subject, data)
        answer = await self._wire.ask(subject, data, timeout_s)
        if answer.status == NO_RESPONDERS:
            raise BusRefused(f"Nobody answers on {subject}.")
        return answer.data

    async def subscribe(self, pattern: str, handler: Handler) -> _Listener:
        """See Bus. `Message.reply` is None unless it is an inbox."""
        check_subject(pattern, pattern=True)
        await self._wire.connected()
        listener = _Listener(self._wire, pattern, handler)
        await listener.open()
        return listener

    async def consume(self, name: str, after: int) -> Pull:
        """See Bus."""
        check_subject(name.replace(".", " "))  # a name is one token
        await self._wire.connected()
        pull = Pull(self._wire, self._stream, name, after)
        await pull.open()
        self._wire.pulls.add(pull)
        return pull

    async def read(self, first: int, last: int) -> Sequence[Stored]:
        """See Bus."""
        return await self._stream.read(first, last)

    async def last(self, subject: str) -> Stored | None:
        """See Bus."""
        check_subject(subject)
        return await self._stream.last(subject)

    async def last_seq(self) -> int:
        """See Bus."""
        return await self._stream.last_seq()

    async def erase(self, seq: int) -> None:
        """See Bus."""
        await self._stream.erase(seq)

    async def close(self) -> None:
        """See Bus."""
        if not self._wire.closing:
            for pull in list(self._wire.pulls):
                await pull.close()
            await self._wire.close()
