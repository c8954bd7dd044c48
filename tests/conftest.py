"""What every test starts from."""

import os
from collections.abc import Iterator

import pytest
import structlog

SKIP_FAILS = "AMPMESH_SKIP_FAILS"  # set where every tool can be installed, so that a skipped test is a hole
FORBIDDEN = "not allowed here"  # in the reason of a skip: the machine forbids it, and nobody can install it


@pytest.fixture(autouse=True)
def logs_as_they_were() -> Iterator[None]:
    """A command under test configures logging for its own stderr, which is closed when the test ends."""
    yield
    structlog.reset_defaults()


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Fail where tests were skipped and none may be; the summary says which and why."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if SKIP_FAILS in os.environ and not exitstatus and isinstance(reporter, pytest.TerminalReporter):
        skipped = sum(FORBIDDEN not in str(one.longrepr) for one in reporter.getreports("skipped"))
        if skipped:
            reporter.write_line(f"\n{SKIP_FAILS} is set, and {skipped} skipped", red=True)
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
