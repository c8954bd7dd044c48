"""Whether the node of a home runs, and what it says of itself."""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mesh.errors import MeshError
from nodes.errors import NodeError

if TYPE_CHECKING:
    from nodes.home import Home, Running


@dataclass(frozen=True, slots=True)
class Reached:
    """What became of the question.

    `running`: what the home says of a node, None when it names none. `status`: that node's own answer, None when there
    was none; then `why` says in a sentence why not.
    """

    running: "Running | None"
    status: dict[str, Any] | None
    why: str = ""


async def reach(home: "Home") -> Reached:
    """Ask the node of a home how it is. Never raises for a node that is not there."""
    running = home.running()
    start = f"start it with: mesh up --home {home.path}"
    if running is None:
        return Reached(None, None, f"no node is running on {home.path}; {start}")
    if not _alive(running.pid):
        return Reached(running, None, f"the node with process id {running.pid} ended without a word; {start}")
    from nodes.commands.assembly import connect

    try:
        async with connect(home) as client:
            return Reached(running, await client.status())
    except (NodeError, MeshError) as error:
        return Reached(running, None, str(error))


def _alive(pid: int) -> bool:
    if os.name != "posix" or pid <= 0:  # elsewhere signal 0 is no question; the bus will tell
        return pid > 0
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
