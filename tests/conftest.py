"""What every test starts from."""

from collections.abc import Iterator

import pytest
import structlog


@pytest.fixture(autouse=True)
def logs_as_they_were() -> Iterator[None]:
    """A command under test configures logging for its own stderr, which is closed when the test ends."""
    yield
    structlog.reset_defaults()
