"""`mesh peer introduce`, `meet` and `decline`: one peer tells two others of each other, and each decides alone."""

import argparse
from collections.abc import Callable
from typing import Any, Final

from nodes.commands.asking import ask
from nodes.commands.common import home_of, print_json

_NOBODY: Final = "Nobody is told whether you did."

Action = Callable[[str, str, Any], argparse.ArgumentParser]


def actions(action: Action, basin: Callable[[str], tuple[str, str]], trusts: tuple[str, ...]) -> None:
    """Add the three to the parser of `mesh peer`."""
    introduce = action("introduce", "tell two of your peers of each other; each of them decides", _introduce)
    introduce.add_argument("one", metavar="PEER", help="its name here; see: mesh peer list")
    introduce.add_argument("other", metavar="PEER", help="the other one's")
    introduce.add_argument("--say", default="", metavar="TEXT", help="a few words for both")
    meet = action("meet", "agree to link with somebody whom a peer has introduced", _meet)
    decline = action("decline", "forget an introduction", _decline)
    for parser in (meet, decline):
        parser.add_argument("name", metavar="NAME", help="as the introducer calls them, or their key's first letters")
    for option, what in (("--give", "they read it"), ("--take", "you read it")):
        meet.add_argument(option, type=basin, action="append", default=[], metavar="BASIN[:write]", help=what)
    meet.add_argument("--trust", choices=trusts, default="guest", help="as with invite (default: guest)")
    meet.add_argument(
        "--as", dest="called", metavar="NAME", help="what you call them (default: as they are introduced)"
    )


async def _asked(options: argparse.Namespace, operation: str, given: dict[str, Any]) -> dict[str, Any] | None:
    """Ask the node; None when the answer was printed as JSON."""
    told = await ask(home_of(options), operation, given)
    if not options.json:
        return told
    print_json(told)
    return None


async def _introduce(options: argparse.Namespace) -> None:
    from nodes.layout import lines

    given = {"one": options.one, "other": options.other, "text": options.say}
    if await _asked(options, "peer_introduce", given):
        lines([f"Both are told. They have a week, and link if both agree. {_NOBODY.replace('you did', 'they do')}"], 0)


async def _meet(options: argparse.Namespace) -> None:
    from nodes.layout import lines

    given = {
        "name": options.name,
        "gives": dict(options.give),
        "takes": dict(options.take),
        "trust": options.trust,
        "called": options.called,
    }
    if told := await _asked(options, "peer_meet", given):
        if told["state"] == "linked":
            lines([f"You are linked with {told['name']}."])
        else:
            lines([f"You will be linked with {told['name']} as soon as they agree too. {_NOBODY}"], 0)


async def _decline(options: argparse.Namespace) -> None:
    from nodes.layout import lines

    if told := await _asked(options, "peer_decline", {"name": options.name}):
        lines([f"{told['declined']} is forgotten. {_NOBODY}"])
