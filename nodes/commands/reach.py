"""Whether the node of a home runs, and what it says of itself."""

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
    from nodes.commands.assembly import connect

    try:
        async with connect(home) as client:
            return Reached(home.running(), await client.status())
    except (NodeError, MeshError) as error:
        return Reached(home.running(), None, str(error))
