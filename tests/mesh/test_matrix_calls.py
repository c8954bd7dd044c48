"""Files from homeservers of all sorts, without a homeserver."""

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from mesh.bridges.matrix.account import Account, Session
from mesh.bridges.matrix.errors import MatrixLoggedOut, MatrixRefused, MatrixUnavailable
from mesh.bridges.matrix.schema import MATRIX_SCHEMA
from mesh.store import Store

NEW, OLD = "/_matrix/client/v1/media/download/x/y", "/_matrix/media/v3/download/x/y"


@asynccontextmanager
async def account(path: Path, answers: dict[str, Any]) -> AsyncGenerator[tuple[Account, list[tuple[str, bool]]]]:
    """An account on a homeserver of sorts, and what was asked there: path, and whether with a token."""
    asked = list[tuple[str, bool]]()

    async def handler(request: web.Request) -> web.StreamResponse:
        asked.append((request.path, "Authorization" in request.headers))
        answer = answers.get(request.path, {"status": 404, "text": '{"errcode": "M_UNRECOGNIZED"}'})
        return await answer(request) if callable(answer) else web.Response(**answer)

    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", handler)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    store = Store(path / "node.db", {"matrix": MATRIX_SCHEMA})
    one = Account(Session(f"http://127.0.0.1:{runner.addresses[0][1]}", "@us:x", "D", "t"), store, lambda: 0)
    try:
        yield one, asked
    finally:
        await one._api.close()
        store.close()
        await runner.cleanup()


async def test_old_homeservers_have_files_elsewhere(tmp_path: Path) -> None:
    async with account(tmp_path, {OLD: {"body": b"old", "content_type": "image/png"}}) as (one, asked):
        assert await one.download("mxc://x/y", 3) == (b"old", "image/png")
    assert [path for path, _ in asked] == [NEW, OLD]


async def test_nobody_sends_us_on_to_another_address(tmp_path: Path) -> None:
    """A homeserver could name any address that this machine reaches: we asked for no such thing, and go nowhere."""
    moved = {"status": 307, "headers": {"Location": "/files/y"}}
    async with account(tmp_path, {NEW: moved, "/files/y": {"body": b"there"}}) as (one, asked):
        with pytest.raises(MatrixUnavailable):
            await one.download("mxc://x/y", 10)
    assert asked == [(NEW, True)]


async def test_no_more_is_read_than_was_asked_for(tmp_path: Path) -> None:
    """A file without an end is refused as soon as it is too long."""

    async def endless(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        while True:
            await answer.write(b"x" * 65536)

    async with account(tmp_path, {NEW: endless}) as (one, asked):
        with pytest.raises(MatrixRefused, match="longer than 1000000 bytes") as raised:
            await one.download("mxc://x/y", 1_000_000)
    assert raised.value.code == "TOO_LARGE"
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (401, '{"errcode": "M_UNKNOWN_TOKEN"}', MatrixLoggedOut),
        (403, '{"errcode": "M_FORBIDDEN"}', MatrixRefused),
        (502, "<html>", MatrixUnavailable),
        (204, "", MatrixUnavailable),
    ],
)
async def test_answers_that_are_no_file(tmp_path: Path, status: int, body: str, error: type[Exception]) -> None:
    async with account(tmp_path, {NEW: {"status": status, "text": body}}) as (one, _):
        with pytest.raises(error):
            await one.download("mxc://x/y", 10)


@pytest.mark.parametrize("answer", [{}, {"joined": 7}, {"joined_rooms": [None, "!a", {}]}, {"joined_rooms": {}}])
async def test_nonsense_for_members_and_rooms(tmp_path: Path, answer: dict[str, Any]) -> None:
    reply = {"text": json.dumps(answer)}
    paths = {"/_matrix/client/v3/joined_rooms": reply, "/_matrix/client/v3/rooms/!r/joined_members": reply}
    async with account(tmp_path, paths) as (one, _):
        assert await one.members("ada", "!r") == []
        assert await one.joined("ada") == (["!a"] if isinstance(answer.get("joined_rooms"), list) else [])
