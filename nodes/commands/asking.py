"""What commands with actions share: an action of its own, spans of time, and a question to the running node."""

import argparse
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from nodes.commands.common import add_home, add_json

if TYPE_CHECKING:
    from nodes.home import Home

DAY_S: Final = 86_400
_UNITS: Final = {"m": 60, "h": 3_600, "d": DAY_S}
_SPAN: Final = re.compile(r"([1-9]\d{0,5})([mhd])", re.ASCII)


def action(actions: Any, name: str, text: str, run: Any) -> argparse.ArgumentParser:  # noqa: ANN401 - argparse's own
    """One action of a command, such as the `list` of `mesh peer list`."""
    parser: argparse.ArgumentParser = actions.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    add_home(parser)
    add_json(parser)
    parser.set_defaults(run=run)
    return parser


def span(most_days: int) -> Callable[[str], int]:
    """A type for an option that is a time, such as 30m, 12h or 7d; in seconds."""

    def read(text: str) -> int:
        match = _SPAN.fullmatch(text)
        seconds = int(match[1]) * _UNITS[match[2]] if match else 0
        if not 0 < seconds <= most_days * DAY_S:
            raise argparse.ArgumentTypeError(f"must be a time of at most {most_days:,} days, such as 30m, 12h or 7d")
        return seconds

    return read


async def ask(home: "Home", operation: str, given: dict[str, Any], timeout_s: float | None = None) -> dict[str, Any]:
    """Have the running node do something; None is the usual time limit. Raises NodeError, NotRunning."""
    from nodes.client import REQUEST_S
    from nodes.commands.assembly import connect

    async with connect(home) as client:
        return await client.request(operation, given, timeout_s or REQUEST_S)
