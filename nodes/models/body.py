"""The body of a vendor's answer: no more of it is read than an answer can need."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from http import HTTPStatus
from typing import TYPE_CHECKING

from nodes.models.answers import (
    DONE,
    MAX_ERROR_BYTES,
    MAX_EVENT_BYTES,
    MAX_RAW_BYTES,
    EventParser,
    Fault,
    refusal,
    too_much,
)

if TYPE_CHECKING:
    import httpx2

DRAIN_TIMEOUT_S = 0.1  # after the last event, for the end of the body: the connection can then be used again


async def check(response: "httpx2.Response") -> None:
    """Raise a Fault for an answer that is no success; of its body no more than MAX_ERROR_BYTES is read."""
    if response.headers.get("content-encoding", "identity") != "identity":
        raise Fault("answered in a compressed form, though asked not to")
    if HTTPStatus.OK <= response.status_code < HTTPStatus.MULTIPLE_CHOICES:
        return
    async with aclosing(response.aiter_raw()) as chunks:
        body = await _head(chunks, MAX_ERROR_BYTES, whole=False)
    raise refusal(response.status_code, response.headers, body)


async def events_of(response: "httpx2.Response") -> AsyncGenerator[bytes, None]:
    """The events of a response that began well; an answer in plain JSON is one event."""
    async with aclosing(response.aiter_raw()) as chunks:
        if response.headers.get("content-type", "").startswith("application/json"):
            yield await _head(chunks, MAX_EVENT_BYTES, whole=True)
            return
        async with aclosing(_split(chunks)) as events:
            async for event in events:
                yield event


async def _split(chunks: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """The events in a stream of bytes, up to and including `[DONE]`."""
    parser, total = EventParser(), 0
    async for chunk in chunks:
        total += len(chunk)
        if total > MAX_RAW_BYTES:
            raise too_much()
        for event in parser.feed(chunk):
            yield event
            if event.strip() == DONE:
                await _drain(chunks)
                return
    for event in parser.finish():
        yield event


async def _drain(chunks: AsyncGenerator[bytes, None]) -> None:
    """Read what little is behind the last event, so that the connection can be used again."""
    with suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_TIMEOUT_S):
            async for _ in chunks:
                pass


async def _head(chunks: AsyncGenerator[bytes, None], max_bytes: int, *, whole: bool) -> bytes:
    """The first `max_bytes` of a body. With `whole`, a Fault if there are more."""
    head = bytearray()
    async for chunk in chunks:
        head += chunk
        if len(head) > max_bytes:
            if whole:
                raise too_much()
            break
    return bytes(head[:max_bytes])
