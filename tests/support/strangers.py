"""Requests that are none, as anybody may send them to a port."""

import asyncio
from contextlib import closing
from typing import Final

NONSENSE: Final = [
    b"GET /why/aa/\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /\x1b[2J HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET http://[ HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /why/aa/bb HTTP/1.1\r\nHost: x\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nabcd",
    b"GET /x HTTP/1.1\r\n" + b"A: b\r\n" * 20_000 + b"\r\n",
]


async def say(port: int, data: bytes) -> bytes:
    """What a port of this machine answers to these bytes, until it hangs up."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    with closing(writer):
        return await reader.read()
