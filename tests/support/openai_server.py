"""A small OpenAI-compatible server with faults to order, for tests and for trying the product by hand.

    async with FakeOpenAI() as server:
        server.play(Answer(pieces=("Hello", " there")), Answer(status=429))

Without an order it says the last line of the prompt. As a program: `python tests/support/openai_server.py --port 0`.
"""

import argparse
import asyncio
import itertools
import json
import signal
import sys
from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from aiohttp import web

USAGE: Mapping[str, Any] = {
    "prompt_tokens": 7,
    "completion_tokens": 3,
    "prompt_tokens_details": {"cached_tokens": 5},
}


@dataclass(frozen=True)
class Answer:
    """How to answer one request.

    `hold` is waited for before the piece number `hold_at` (0: before the headers). `end` says how a stream ends:
    `done` with everything, `no_done` without `[DONE]`, `no_finish` also without a finish reason, `drop` by cutting the
    connection. `usage` None: nothing is counted. `rejects`: parameters that are answered with 400. `body` replaces all.
    """

    pieces: Iterable[str] = ("Hello", " there")
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    usage: Mapping[str, Any] | None = field(default_factory=lambda: USAGE)
    end: Literal["done", "no_done", "no_finish", "drop"] = "done"
    plain: bool = False
    body: bytes | None = None
    rejects: tuple[str, ...] = ()
    delay_s: float = 0.0
    hold: asyncio.Event | None = None
    hold_at: int = 0


@dataclass(frozen=True)
class Seen:
    """One request as it came."""

    path: str
    headers: Mapping[str, str]
    body: dict[str, Any]


class FakeOpenAI:
    """The server. `requests` are those seen; `gone` is set when a client hung up before the end of its answer."""

    def __init__(self, port: int = 0) -> None:
        self._port = port
        self._answers: deque[Answer] = deque()
        self._runner: web.AppRunner | None = None
        self.requests: list[Seen] = []
        self.connections: set[Any] = set()
        self.running = 0
        self.most_running = 0
        self.arrived = asyncio.Event()
        self.gone = asyncio.Event()
        self.url = ""

    def play(self, *answers: Answer) -> None:
        """Order the next answers, in this order."""
        self._answers.extend(answers)

    def mend(self) -> None:
        """Forget what was ordered and not yet played."""
        self._answers.clear()

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_post("/v1/chat/completions", self._answer)
        app.router.add_post("/v1/completions", self._answer)
        self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/v1"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._runner
        await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.requests.append(Seen(request.path, dict(request.headers), body))
        self.connections.add(request.transport)
        answer = self._answers.popleft() if self._answers else Answer(pieces=_echo(body))
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        self.arrived.set()
        try:
            return await self._perform(request, body, answer)
        except (asyncio.CancelledError, ConnectionError):
            self.gone.set()
            raise
        finally:
            self.running -= 1

    async def _perform(self, request: web.Request, body: dict[str, Any], answer: Answer) -> web.StreamResponse:
        if answer.hold and answer.hold_at == 0:
            await answer.hold.wait()
        disliked = next((name for name in answer.rejects if name in body), None)
        if disliked:
            text = f"Unsupported parameter: '{disliked}'"
            if disliked == "max_tokens":
                text += "; use 'max_completion_tokens' instead"
            return web.json_response({"error": {"message": text}}, status=400)
        if answer.body is not None:
            return web.Response(body=answer.body, status=answer.status, headers=_typed(answer.headers))
        if answer.status != web.HTTPOk.status_code:
            error = {"error": {"message": f"made-up error {answer.status}"}}
            return web.json_response(error, status=answer.status, headers=answer.headers)
        chat = request.path.endswith("chat/completions")
        if answer.plain:
            return web.json_response(_whole(answer, chat=chat))
        return await self._stream(request, answer, chat=chat)

    async def _stream(self, request: web.Request, answer: Answer, *, chat: bool) -> web.StreamResponse:
        response = web.StreamResponse(headers=_typed(answer.headers))
        await response.prepare(request)
        for number, piece in enumerate(answer.pieces):
            if answer.hold and number and number == answer.hold_at:
                await answer.hold.wait()
            if answer.delay_s:
                await asyncio.sleep(answer.delay_s)
            await response.write(_event(_piece(piece, chat=chat)))
        if answer.end == "drop":
            assert request.transport
            request.transport.close()
            return response
        if answer.end != "no_finish":
            await response.write(_event(_piece(None, chat=chat)))
        if answer.usage is not None:
            await response.write(_event({"choices": [], "usage": answer.usage}))
        if answer.end == "done":
            await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response


def _typed(headers: Mapping[str, str]) -> dict[str, str]:
    return {"Content-Type": "text/event-stream", **headers}


def _event(chunk: Mapping[str, Any]) -> bytes:
    return b": a comment\nevent: message\ndata: " + json.dumps(chunk).encode() + b"\n\n"


def _piece(text: str | None, *, chat: bool) -> dict[str, Any]:
    """A chunk with text; with None the last one, which gives the finish reason."""
    said = ({"delta": {"content": text} if text is not None else {}}) if chat else {"text": text or ""}
    return {"choices": [{"index": 0, **said, "finish_reason": None if text is not None else "stop"}], "usage": None}


def _whole(answer: Answer, *, chat: bool) -> dict[str, Any]:
    text = "".join(answer.pieces)
    said = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
    return {"choices": [{"index": 0, **said, "finish_reason": "stop"}], "usage": answer.usage}


def _echo(body: Mapping[str, Any]) -> list[str]:
    """The last line of the prompt that is not blank, word by word."""
    prompt = body.get("prompt") or body["messages"][-1]["content"]
    if isinstance(prompt, list):
        prompt = "".join(part.get("text", "") for part in prompt)
    lines = [line for line in str(prompt).splitlines() if line.strip()] or ["(nothing)"]
    words = lines[-1].split(" ")
    return [word + (" " if more else "") for word, more in itertools.zip_longest(words, words[1:])]


async def _serve(port: int) -> None:
    stop = asyncio.Event()
    for sign in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(sign, stop.set)
    async with FakeOpenAI(port) as server:
        sys.stdout.write(server.url + "\n")
        sys.stdout.flush()
        await stop.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="an OpenAI-compatible server that says your last line back")
    parser.add_argument("--port", type=int, default=0)
    with suppress(KeyboardInterrupt):
        asyncio.run(_serve(parser.parse_args().port))
