"""What strangers can do at the door of a listener, and whoever we dial to us: hold on, send elsewhere, read nothing."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NoReturn

import aiohttp
import pytest
from aiohttp import web
from authority import Authority
from sides import NOW, Side, sides, until_heard
from strangers import NONSENSE, say
from structlog.testing import capture_logs

from mesh import door
from mesh.errors import MeshError
from mesh.links import links
from mesh.links.channel import Proved, Self, call
from mesh.links.hub import Hub
from mesh.links.links import Links
from mesh.links.session import Session
from mesh.links.tls import Tls
from mesh.links.ways import Meeting
from mesh.links.websocket import wires
from mesh.links.websocket.dialling import dial, meet
from mesh.links.websocket.listening import Desk, listening
from mesh.links.websocket.wires import SocketWire
from mesh.links.wire import WireBroken
from protocol.certificate import Certificate, issue
from protocol.keys import KeyKind, MeshId, NodeId, Signer

SLOT = "5a" * 32
EVE = Signer(b"e" * 32, KeyKind.NODE)
EVE_MESH = Signer(b"f" * 32, KeyKind.MESH)
EVE_SELF = Self(EVE, issue(EVE_MESH, Certificate(MeshId(EVE_MESH.public), NodeId(EVE.public), 0, 2 * NOW, ["speak"])))


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


@asynccontextmanager
async def answering(handler: Callable[[web.Request], Any]) -> AsyncIterator[str]:
    """A server that says whatever it likes to whoever dials; gives its URL."""
    app = web.Application()
    app.router.add_get("/{rest:.*}", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"ws://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def test_what_is_no_request_writes_nothing_on_the_terminal(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Else whoever reaches the port fills the log, in their words."""

    async def taken(_: SocketWire) -> None:
        """Nobody comes."""

    async with listening("127.0.0.1", 0, Desk(taken, Hub(clock=lambda: NOW))) as port:
        for data in NONSENSE:
            assert (await say(port, data)).startswith((b"HTTP/1.0 400 ", b"HTTP/1.1 404 "))
    assert caplog.records == []
    assert "".join(capfd.readouterr()) == ""


@pytest.mark.parametrize("path", [f"/meet/{SLOT}/call", "/meet/short/call", "/link", "/"])
async def test_whoever_asks_for_no_link_is_answered_once_and_hung_up_on(path: str) -> None:
    """Connections that are kept for a next question would be any number: nobody counts them."""

    async def taken(wire: SocketWire) -> None:
        raise AssertionError(wire)

    async with listening("127.0.0.1", 0, Desk(taken, Hub())) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"GET {path} HTTP/1.1\r\nHost: hub\r\nContent-Length: 9\r\n\r\nnot a web".encode())
        assert (await reader.read()).startswith(b"HTTP/1.1 4")
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize("tls", [False, True])
async def test_whoever_says_nothing_makes_room_and_has_little_time(
    tls: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With TLS also before the handshake; who does speak is served meanwhile, and after a handshake that fails."""
    monkeypatch.setattr(door, "MAX_WAITING", 3)
    authority = Authority(tmp_path)
    shown = Tls(*authority.issue()).context if tls else None
    async with listening("127.0.0.1", 0, Desk(hub=Hub(), tls=shown)) as port:
        url = f"{'wss' if tls else 'ws'}://127.0.0.1:{port}"
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(6)]
        for reader, _ in held[:3]:
            await _is_gone(reader)
        async with asyncio.TaskGroup() as group:
            for calls in (True, False):
                group.create_task(_visit(url, authority.trusted if tls else None, calls=calls))
        assert not held[-1][0].at_eof()
        monkeypatch.setattr(door, "ASK_S", 0.05)
        late = await asyncio.open_connection("127.0.0.1", port)
        late[1].write(b"GET / HT")
        await _is_gone(late[0])
        ending = await asyncio.open_connection("127.0.0.1", port)
    await _is_gone(ending[0])
    for _, writer in (*held, late, ending):
        writer.close()


async def _is_gone(reader: asyncio.StreamReader) -> None:
    try:
        while await reader.read(1_000):
            pass
    except ConnectionError:
        pass


async def _visit(url: str, trusted: ssl.SSLContext | None, *, calls: bool) -> None:
    wire = await meet(url, SLOT, EVE_SELF, calls=calls, trusted=trusted)
    await wire.send(b"hello")
    assert await wire.receive() == b"hello"
    await wire.close()


async def test_an_error_in_the_block_of_a_listener_goes_through_as_it_is() -> None:
    with pytest.raises(MeshError, match="as it is"):
        async with listening("127.0.0.1", 0, Desk(hub=Hub())):
            raise MeshError("as it is")


async def test_whoever_is_dialled_sends_us_nowhere_else() -> None:
    """Not to a service that only we can reach."""
    asked = list[str]()

    async def inside(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.Response()

    async with answering(inside) as private:

        async def elsewhere(_: web.Request) -> NoReturn:
            raise web.HTTPFound(private.replace("ws", "http", 1) + "/delete")

        async with answering(elsewhere) as url:
            with pytest.raises(WireBroken, match="elsewhere"):
                await dial(url)
    assert asked == []


async def test_a_name_out_there_does_not_lead_to_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    found = socket.getaddrinfo("127.0.0.1", 1, type=socket.SOCK_STREAM)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with pytest.raises(WireBroken, match="not known"):
        await dial("ws://evil.example.org:1")
    with pytest.raises(WireBroken, match="nothing listens"):
        await dial("ws://nearby:1")


@pytest.mark.parametrize("words", [["prove " + "0" * 32] * 3, ["prove " + "0" * 4_000], ["prove "], ["hello"]])
async def test_a_hub_asks_once_and_for_its_challenge_alone(words: list[str]) -> None:
    """A node signs nothing else, and not without end."""
    heard = list[bytes]()

    async def hub(request: web.Request) -> web.WebSocketResponse:
        end = web.WebSocketResponse()
        await end.prepare(request)
        for word in words:
            await end.send_str(word)
        async for message in end:
            heard.append(message.data)
        return end

    async with answering(hub) as url:
        with pytest.raises(WireBroken, match="no hub"):
            await meet(url, SLOT, EVE_SELF, calls=True)
    assert len(heard) == (len(words) == 3)


async def test_a_connection_that_nobody_reads_is_cut_when_it_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits to be sent would hold it open for as long as the other end likes."""
    monkeypatch.setattr(wires, "CLOSE_S", 0.02)
    closed = asyncio.Event()

    async def flooded(wire: SocketWire, transport: asyncio.Transport) -> None:
        held = transport.get_extra_info("socket")
        async with asyncio.TaskGroup() as group:
            sending = group.create_task(_for_ever(wire))
            await until(lambda: transport.get_write_buffer_size() > 100_000)
            sending.cancel()
        await wire.close()
        await until(lambda: held.fileno() == -1)
        closed.set()

    async def taken(wire: SocketWire) -> None:
        group.create_task(flooded(wire, wire._socket._req.transport))
        await closed.wait()

    async with (
        listening("127.0.0.1", 0, Desk(taken)) as port,
        aiohttp.ClientSession() as session,
        asyncio.TaskGroup() as group,
        session.ws_connect(f"http://127.0.0.1:{port}/link"),
    ):
        await closed.wait()

    async def deaf(request: web.Request) -> web.WebSocketResponse:
        end = web.WebSocketResponse()
        await end.prepare(request)
        await closed.wait()
        return end

    closed.clear()
    async with answering(deaf) as url:
        wire = await dial(url)
        await flooded(wire, wire._socket._conn.transport)


async def _for_ever(wire: SocketWire) -> None:
    while True:
        await wire.send(bytes(500_000))


@asynccontextmanager
async def working(side: Side, admit: Callable[[Proved], str | None], **ways: Any) -> AsyncIterator[Links]:
    """A side's links, which listen."""
    made = side.sessions = Links(side.who, side.ground, admit)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(made.run(("127.0.0.1", 0)))
        await made.ready.wait()
        made.host(ways.get("host", ()))
        try:
            yield made
        finally:
            task.cancel()


async def test_a_slip_of_ours_in_serving_a_link_is_told_of() -> None:
    """Nobody reads what the HTTP server tells, as strangers' words would be in it."""

    async def slip(_wire: SocketWire) -> None:
        raise KeyError("nobody thought of that")

    with capture_logs() as logs:
        async with listening("127.0.0.1", 0, Desk(taken=slip)) as port:
            wire = await dial(f"ws://127.0.0.1:{port}")
            with pytest.raises(WireBroken):
                await wire.receive()
            await wire.close()
    assert [one["log_level"] for one in logs] == ["error"]


async def test_a_slip_of_ours_with_a_link_or_a_stranger_does_not_end_the_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slips = 0

    def slip(*_: object) -> NoReturn:
        nonlocal slips
        slips += 1
        raise KeyError("nobody thought of that")

    async with sides(tmp_path) as (a, b), listening("127.0.0.1", 0, Desk(hub=Hub(clock=lambda: NOW))) as port:
        a.gives, b.taken = {"tea": 0}, {"tea"}
        url, slot = f"ws://127.0.0.1:{port}", bytes.fromhex(SLOT)
        here = Meeting(url, slot, calls=False, who=a.who)

        def admit(proved: Proved) -> str | None:
            return slip() if proved.mesh == EVE_MESH.public else None

        async with working(a, admit, host=[here]) as one, working(b, lambda _: None) as other:
            wire = await meet(url, SLOT, EVE_SELF, calls=True)
            await call(wire, EVE_SELF, a.mesh)
            await until(lambda: slips == 1)
            await wire.close()
            with monkeypatch.context() as patched:
                patched.setattr(Session, "run", slip)
                other.dial({a.mesh: [f"ws://127.0.0.1:{one.port}"]})
                await until(lambda: slips > 2)
            await a.say("tea", "still here")
            await until_heard(b, "tea", ["still here"])


async def test_a_peer_that_hangs_up_at_once_is_not_dialled_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every link that ends soon costs a wait, also one over which the peer has said something."""
    waits = list[float]()

    def uniform(_low: float, _high: float) -> float:
        waits.append(_high)
        return 0.0

    async with sides(tmp_path) as (a, b), working(a, lambda _: None) as one, working(b, lambda _: None) as other:
        monkeypatch.setattr(links.random, "uniform", uniform)
        other.dial({a.mesh: [f"ws://127.0.0.1:{one.port}"]})
        for number in range(4):
            await until(lambda: b.mesh in one.sessions and other.sessions and other.sessions[a.mesh].vocabulary)
            assert len(waits) == number
            session = other.sessions[a.mesh]
            one.drop(b.mesh)
            await until(lambda session=session: other.sessions.get(a.mesh, session) is not session)
