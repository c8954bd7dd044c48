"""A model that plays a script: for tests of whatever stands behind a model, without a network.

    model = Scripted(["Hello", " there"], [ModelUnavailable("busy")])

The first call says "Hello there", the second fails, and so does every later one: the last reply is for ever.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from nodes.errors import ModelUnavailable
from nodes.models.base import Request, Usage, estimate

Step = str | Usage | Exception | asyncio.Event


class Scripted:
    """Implements `nodes.models.base.Model` from scripts, one a call.

    A step is a piece of text, a Usage, an exception to raise, or an Event to wait for. Where a script has no Usage, an
    estimate ends the reply. `requests` are those seen, `running` is how many calls are under way now and `most_running`
    at any time; `began` and `ended` are set whenever a call begins, and ends in whatever way.
    """

    def __init__(self, *scripts: Sequence[Step]) -> None:
        self._scripts = scripts or ([],)
        self.requests: list[Request] = []
        self.running = 0
        self.most_running = 0
        self.began = asyncio.Event()
        self.ended = asyncio.Event()
        self.closed = False

    async def stream(self, request: Request) -> AsyncGenerator[str | Usage, None]:
        """Play the next script. Raises what the script says, and ModelUnavailable after `close`."""
        if self.closed:
            raise ModelUnavailable("the scripted model was closed")
        script = self._scripts[min(len(self.requests), len(self._scripts) - 1)]
        self.requests.append(request)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        self.began.set()
        try:
            async with aclosing(_play(script, request)) as pieces:
                async for piece in pieces:
                    yield piece
        finally:
            self.running -= 1
            self.ended.set()

    async def close(self) -> None:
        """Idempotent."""
        self.closed = True


async def _play(script: Sequence[Step], request: Request) -> AsyncGenerator[str | Usage, None]:
    chars, counted = 0, False
    for step in script:
        if isinstance(step, Exception):
            raise step
        if isinstance(step, asyncio.Event):
            await step.wait()
            continue
        if isinstance(step, Usage):
            counted = True
        else:
            chars += len(step)
        yield step
    if not counted:
        yield estimate(request, chars)
