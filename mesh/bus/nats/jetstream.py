"""JetStream as we use it: one stream, direct reads, durable cursors. Questions and answers; `wire` carries them.

The requests are the server's own JSON API (`$JS.API.…`), which says more than any client library passes on.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, cast

from mesh.bus.base import DURABLE, MAX_BATCH, MAX_READ, MAX_UNACKED, Stored
from mesh.errors import BusFull, BusRefused, BusUnavailable, MeshError
from mesh.words import plain

API_S = 5.0  # for an answer of the server: it takes milliseconds, and seconds only while a cluster elects a leader
PUBLISH_S = 5.0  # for an acknowledgement: 0.3 ms here; a disk that needs longer is not keeping up

NANOSECONDS = 1_000_000_000
DUPLICATE_WINDOW_S = 24 * 3600  # a message id is remembered so long; costs 0.2 KiB a message
MAX_STREAM_MSGS = 50_000_000  # then the oldest go: years of talk, and the server still recovers it in seconds
MAX_STREAM_MSG_BYTES = 1024 * 1024  # headers included, as the server's own max_payload
MAX_ACK_WAIT_S = 3600  # we ask for redelivery ourselves when we reconnect, so the server need not guess

READ_BATCH = 1_000  # messages one direct read asks for
READ_BYTES = 8 * 1024 * 1024  # at most so much of them comes at once

NO_RESPONDERS = "503"
NOT_FOUND = "404"
CONSUMER_NOT_FOUND = 10014
STREAM_NOT_FOUND = 10059
STREAM_DIFFERS = 10058
NO_ROOM = frozenset({10023, 10028, 10047, 10077, 10120})  # resources, storage, limits: the numbers are in its source


class Answer(NamedTuple):
    """What came back on an inbox. `status` is empty for ordinary messages, `reply` too when nothing is awaited."""

    subject: str
    data: bytes
    headers: Mapping[str, str]
    reply: str

    @property
    def status(self) -> str:
        """The server's three digits, or nothing."""
        return self.headers.get("Status", "")


class Wire(Protocol):
    """What JetStream needs of a connection."""

    async def ask(self, subject: str, data: bytes, timeout_s: float, msg_id: str = "") -> Answer:
        """One answer. Raises BusUnavailable, BusRefused."""
        ...

    async def ask_many(self, subject: str, data: bytes, timeout_s: float) -> Sequence[Answer]:
        """All answers up to and including the one with a status. Raises BusUnavailable, BusRefused."""
        ...


def refusal(error: Mapping[str, Any]) -> MeshError:
    """The exception that says what the server's JSON error means for us."""
    code, words = error.get("err_code"), plain(str(error.get("description", "no reason given")))
    if code in NO_ROOM:
        return BusFull(f"The bus has no room to store more ({words}); make room on the disk of its server.")
    if error.get("code") == 503:  # noqa: PLR2004 - as in HTTP: not now
        return BusUnavailable(f"The bus cannot store messages at the moment: {words}.")
    return BusRefused(f"The bus refused: {words}.")


def _stored(answer: Answer) -> Stored:
    return Stored(int(answer.headers["Nats-Sequence"]), answer.headers["Nats-Subject"], answer.data)


def _seconds(value: float) -> int:
    return int(value * NANOSECONDS)


class JetStream:
    """The stream `name` behind a wire. With `manage` it is made and kept as we need it; else others do that."""

    def __init__(self, wire: Wire, name: str, *, manage: bool) -> None:
        self._wire = wire
        self.name = name
        self._manage = manage

    async def call(self, what: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """One request to the API; returns its answer, errors included (key `error`)."""
        data = json.dumps(body).encode() if body is not None else b""
        answer = await self._wire.ask(f"$JS.API.{what}", data, API_S)
        if answer.status == NO_RESPONDERS:
            raise BusUnavailable("The server of the bus does not offer JetStream (yet).")
        try:
            return cast("dict[str, Any]", json.loads(answer.data))
        except ValueError as error:
            raise BusRefused("The server of the bus gave an answer that is no JSON.") from error

    async def _must(self, what: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        answer = await self.call(what, body)
        if "error" in answer:
            raise refusal(answer["error"])
        return answer

    async def ensure(self) -> None:
        """Make the stream, or bring its settings up to date."""
        if not self._manage:
            return
        settings = {
            "name": self.name,
            "subjects": [f"{DURABLE}>"],
            "storage": "file",
            "retention": "limits",
            "discard": "old",
            "max_msgs": MAX_STREAM_MSGS,
            "max_msg_size": MAX_STREAM_MSG_BYTES,
            "duplicate_window": _seconds(DUPLICATE_WINDOW_S),
            "allow_direct": True,
            "num_replicas": 1,
        }
        answer = await self.call(f"STREAM.CREATE.{self.name}", settings)
        if answer.get("error", {}).get("err_code") == STREAM_DIFFERS:
            answer = await self.call(f"STREAM.UPDATE.{self.name}", settings)
        if "error" in answer:
            raise refusal(answer["error"])

    async def store(self, subject: str, data: bytes, msg_id: str) -> int:
        """Store a message; returns its sequence once it is on the disk."""
        answer = await self._wire.ask(subject, data, PUBLISH_S, msg_id)
        if answer.status == NO_RESPONDERS:
            await self.ensure()  # somebody removed the stream: it is there for the next try
            raise BusUnavailable("The bus had no stream to store messages in; try again.")
        try:
            ack = cast("dict[str, Any]", json.loads(answer.data))
            if "error" in ack:
                raise refusal(ack["error"])
            return int(ack["seq"])
        except (ValueError, KeyError, TypeError) as error:
            raise BusRefused("The server of the bus acknowledged a message in words we do not know.") from error

    async def last_seq(self) -> int:
        """The newest sequence; 0 when the stream is empty."""
        return (await self.life())[1]

    async def last(self, subject: str) -> Stored | None:
        """The newest message on exactly this subject."""
        body = json.dumps({"last_by_subj": subject}).encode()
        answer = await self._wire.ask(f"$JS.API.DIRECT.GET.{self.name}", body, API_S)
        if answer.status == NOT_FOUND:
            return None
        if answer.status:
            raise BusUnavailable(f"The stream {self.name} cannot be read at the moment (status {answer.status}).")
        return _stored(answer)

    async def read(self, first: int, last: int) -> list[Stored]:
        """Messages with first <= seq <= last, at most MAX_READ, from the disk or its cache, past every consumer."""
        found: list[Stored] = []
        first = max(first, 1)
        while first <= last and len(found) < MAX_READ:
            want = min(last - first + 1, MAX_READ - len(found), READ_BATCH)
            body = json.dumps({"seq": first, "batch": want, "max_bytes": READ_BYTES}).encode()
            *parts, end = await self._wire.ask_many(f"$JS.API.DIRECT.GET.{self.name}", body, API_S)
            messages = [_stored(part) for part in parts]
            found += [message for message in messages if message.seq <= last]
            if end.status == NO_RESPONDERS:
                raise BusUnavailable(f"The stream {self.name} cannot be read at the moment.")
            if not messages or end.headers.get("Nats-Num-Pending") == "0":
                break
            first = messages[-1].seq + 1
        return found

    async def erase(self, seq: int) -> None:
        """Overwrite a message with random bytes on the server's disk, and remove it."""
        answer = await self.call(f"STREAM.MSG.DELETE.{self.name}", {"seq": seq, "no_erase": False})
        if "error" in answer and await self.read(seq, seq):  # the server has several words for what is not there
            raise refusal(answer["error"])

    async def life(self) -> tuple[str, int]:
        """When the stream was made, which tells it from another of the same name, and its newest sequence."""
        info = await self.call(f"STREAM.INFO.{self.name}")
        if info.get("error", {}).get("err_code") == STREAM_NOT_FOUND:
            if not self._manage:
                raise BusUnavailable(f"The stream {self.name} does not exist (yet); whoever runs the server makes it.")
            await self.ensure()
            info = await self._must(f"STREAM.INFO.{self.name}")
        if "error" in info:
            raise refusal(info["error"])
        return str(info["created"]), int(info["state"]["last_seq"])

    async def rewind(self, consumer: str, acked: int, after: int) -> int:
        """Set the durable consumer behind what was acknowledged, or make it; returns the sequence it begins behind.

        `acked` is what this process has acknowledged, 0 for nothing; `after` counts only when the consumer is new.
        """
        info = await self.call(f"CONSUMER.INFO.{self.name}.{consumer}")
        if info.get("error", {}).get("err_code") == CONSUMER_NOT_FOUND:
            return await self._create(consumer, acked or after)
        if "error" in info:
            raise refusal(info["error"])
        # Without this the server would wait for the acks of a reader that is gone, MAX_ACK_WAIT_S long.
        behind = max(acked, int(info["ack_floor"]["stream_seq"]))
        await self._must(f"CONSUMER.RESET.{self.name}.{consumer}", {"seq": behind + 1})
        return behind

    async def _create(self, consumer: str, behind: int) -> int:
        settings = {
            "durable_name": consumer,
            "name": consumer,
            "ack_policy": "all",
            "ack_wait": _seconds(MAX_ACK_WAIT_S),
            "max_ack_pending": MAX_UNACKED,
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": behind + 1,
        }
        await self._must(
            f"CONSUMER.CREATE.{self.name}.{consumer}",
            {"stream_name": self.name, "config": settings, "action": "create"},
        )
        return behind

    def pull(self, expires_s: float, heartbeat_s: float) -> bytes:
        """The body of a request for the next MAX_BATCH messages."""
        body = {"batch": MAX_BATCH, "max_bytes": READ_BYTES, "expires": _seconds(expires_s)}
        return json.dumps(body | {"idle_heartbeat": _seconds(heartbeat_s)}).encode()
