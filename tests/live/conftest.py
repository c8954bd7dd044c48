"""A homeserver and a person, for the tests of Matrix."""

import asyncio
from collections.abc import AsyncIterator, Generator

import pytest
from homeserver import Synapse
from matrix_rig import Human, Shared, new_way, person

SPARE = 40  # registrations: one a test, as what one leaves unheard must not reach the next


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Generator[Shared]:
    """A Synapse that stays up, and appservices that nobody used yet."""
    spare = [new_way() for _ in range(SPARE)]
    synapse = Synapse(tmp_path_factory.mktemp("synapse"), [one.text() for one, _ in spare])
    try:
        asyncio.run(synapse.start())
        yield synapse, spare
    finally:
        synapse.stop()


@pytest.fixture
async def human(shared: Shared) -> AsyncIterator[Human]:
    async with person(shared[0]) as one:
        yield one
