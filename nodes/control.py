"""What the owner's other programs may ask of a running node: signed requests on `c.<mesh>.<operation>`."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Annotated, Any, Final

import msgspec
import structlog

from mesh.bus.base import Message
from mesh.entries import Entry, recent
from mesh.errors import MeshError
from nodes.chains import STOPPED
from nodes.errors import NodeError
from nodes.node import Node
from nodes.picture import MAX_LISTED, Picture, pictures
from nodes.records import numbers
from protocol.acts import Act, ActId
from protocol.errors import BadRequest, ProtocolError
from protocol.husk import is_husk
from protocol.keys import KeyKind, decode_public
from protocol.request import VALID_MS, decode_request
from protocol.vocabulary import MAX_TEXT

AT_A_TIME: Final = 64  # requests; more wait in the subscription's own queue
MAX_HISTORY: Final = 1_000  # acts one request may ask for
MAX_ANSWER: Final = 900_000  # bytes of history in one answer, the newest: the bus takes little more in one message

Operations = Mapping[str, tuple[type[Any], Callable[[Any], Awaitable[dict[str, Any]]]]]
"""By name: what a request holds, and what answers it."""

log = structlog.get_logger(__name__)


class Say(msgspec.Struct, forbid_unknown_fields=True):
    """Say something. `refs` are ids in hex; the first is what it answers. `media`: pictures (see nodes.picture)."""

    basin: str
    text: str
    kind: str = "say"
    refs: list[str] = []
    media: Annotated[list[Picture], msgspec.Meta(max_length=MAX_LISTED)] = []


class TakeBack(msgspec.Struct, forbid_unknown_fields=True):
    """Take back an act, by its id in hex; `reason` is for whoever reads that it was taken back."""

    act: str
    reason: str = ""


class OfBasin(msgspec.Struct, forbid_unknown_fields=True):
    """Something about a basin."""

    basin: str
    limit: int = 50


class Nothing(msgspec.Struct, forbid_unknown_fields=True):
    """A request without arguments."""


def shown(entry: Entry) -> dict[str, Any]:
    """An act as scripts see it."""
    act = entry.act
    return {"n": entry.n, "basin": entry.basin, "mesh": entry.mesh, "node": entry.node, **shown_act(act)}


def shown_act(act: Act) -> dict[str, Any]:
    """An act without its place: ids in hex, times in Unix milliseconds; `media` only where pictures are shown."""
    media = msgspec.to_builtins(pictures(act))
    return {
        "id": act.id.hex(),
        "kind": act.kind,
        "author": act.author,
        "refs": [ref.hex() for ref in act.refs],
        "root": act.root.hex(),
        "budget": msgspec.structs.asdict(act.budget),
        "at_ms": act.at_ms,
        "text": act.text,
        **({"media": media} if media else {}),
    }


class Control:
    """Serves a node's owner."""

    def __init__(self, node: Node, more: Operations = MappingProxyType({})) -> None:
        """`more` are the operations of a companion."""
        self._node = node
        self.ready = asyncio.Event()
        self._client = decode_public(node.identity.client, KeyKind.NODE)
        self._answered: OrderedDict[bytes, int] = OrderedDict()
        self._started_ms = node.ground.clock()
        self._operations: Operations = {
            "say": (Say, self._say),
            "redact": (TakeBack, self._redact),
            "stop": (OfBasin, self._stop),
            "history": (OfBasin, self._history),
            "status": (Nothing, self._status),
            **more,
        }

    async def serve(self) -> None:
        """Answer until cancelled."""
        slots = asyncio.Semaphore(AT_A_TIME)
        async with asyncio.TaskGroup() as group:

            async def take(message: Message) -> None:
                await slots.acquire()
                task = group.create_task(self._answer(message), name=message.subject)
                task.add_done_callback(lambda _: slots.release())

            await self._node.ground.bus.subscribe(f"c.{self._node.identity.mesh}.*", take)
            self.ready.set()
            await asyncio.get_running_loop().create_future()

    async def _answer(self, message: Message) -> None:
        if message.reply is None:
            return
        name = message.subject.rpartition(".")[2]
        try:
            reply = await self._answered_with(name, message.data)
        except (msgspec.MsgspecError, ProtocolError, NodeError, MeshError, ValueError) as error:
            reply = {"error": str(error)}
        except Exception:  # one request that nobody thought of must not end the node
            log.exception("a request could not be answered", operation=name[:32])
            reply = {"error": "a mistake in ampmesh itself; the node's log tells where"}
        try:
            await self._node.ground.bus.send(message.reply, msgspec.json.encode(reply))
        except MeshError as error:  # whoever asked may have named any place and any amount
            log.warning("an answer could not be sent", operation=name[:32], reason=str(error))

    async def _answered_with(self, name: str, data: bytes) -> dict[str, Any]:
        """What answers a request."""
        body = self._checked(name, data)
        if name not in self._operations:
            raise NodeError(f"there is no operation {name[:32]!r}; there are {', '.join(self._operations)}")
        kind, operation = self._operations[name]
        return await operation(msgspec.json.decode(body, type=kind))

    def _checked(self, operation: str, data: bytes) -> bytes:
        """The body of a request that the owner made and that was not answered before. Raises BadRequest."""
        now = self._node.ground.clock()
        request = decode_request(self._client, operation, now, data)
        while self._answered and next(iter(self._answered.values())) < now - 2 * VALID_MS:
            self._answered.popitem(last=False)
        if request.seal in self._answered:
            raise BadRequest("the request was answered before")
        self._answered[request.seal] = now
        return request.body

    async def _say(self, request: Say) -> dict[str, Any]:
        if not request.text.strip():
            raise ValueError("there is nothing to say")
        if len(request.text) > MAX_TEXT:
            raise ValueError(f"that is {len(request.text)} characters; at most {MAX_TEXT} fit into one message")
        refs = [ActId(bytes.fromhex(ref)) for ref in request.refs]
        more = {"media": msgspec.to_builtins(request.media)} if request.media else {}
        act = await self._node.say(request.basin, request.text, refs, request.kind, **more)
        room = self._node.runtime.rooms.get(request.basin)
        return {**shown_act(act), "listeners": len(room.roster.ems) if room else 0}

    async def _redact(self, request: TakeBack) -> dict[str, Any]:
        if len(request.reason) > MAX_TEXT:
            raise ValueError(f"a reason has at most {MAX_TEXT} characters")
        return shown_act(await self._node.redact(ActId(bytes.fromhex(request.act)), request.reason))

    async def _stop(self, request: OfBasin) -> dict[str, Any]:
        return shown_act(await self._node.say(request.basin, STOPPED, [], "cancel"))

    async def _history(self, request: OfBasin) -> dict[str, Any]:
        """The newest acts of a basin; what was taken back is left out."""
        limit = max(0, min(request.limit, MAX_HISTORY))
        acts: list[dict[str, Any]] = []
        room = MAX_ANSWER
        for entry in reversed(recent(self._node.ground.store, request.basin, limit)):
            if is_husk(entry.act):
                continue
            acts.append(shown(entry))
            room -= len(msgspec.json.encode(acts[-1]))
            if room < 0:
                acts.pop()
                break
        return {"acts": acts[::-1]}

    async def _status(self, _: Nothing) -> dict[str, Any]:
        node, store = self._node, self._node.ground.store
        return {
            "mesh": node.identity.mesh,
            "name": node.config.name,
            "human": node.config.human,
            "node": node.identity.signer.public,
            "started_ms": self._started_ms,
            "ems": sorted(node.runtime.ems),
            "default_model": node.ground.models.default,
            "models": {em.name: em.settings.model or node.ground.models.default for em in node.runtime.ems.values()},
            "speaking": node.runtime.speaking(),
            "basins": sorted(basin for basin, room in node.runtime.rooms.items() if room.roster.ems),
            **numbers(store),
        }
