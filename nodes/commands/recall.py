"""`mesh recall`: ask a peer's memory, and see who asked what. `mesh peer grant` and `ungrant`: who may ask yours."""

import argparse
from collections.abc import Callable
from typing import Any

from nodes.commands.asking import ask
from nodes.commands.common import add_home, add_json, home_of, print_json

Action = Callable[[str, str, Any], argparse.ArgumentParser]


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.description = (
        "Ask a peer what was said about something, where they have granted it. The answer is what was said, signed by"
        " whoever said it, and a receipt; both of you keep that it was asked."
    )
    parser.add_argument("peer", metavar="PEER", nargs="?", help="its name here; see: mesh peer list")
    parser.add_argument(
        "question", metavar="QUESTION", nargs="?", help="in your words; what shares most words is found"
    )
    parser.add_argument("--basin", metavar="BASIN", help="about this one alone (default: all that is granted)")
    parser.add_argument("--receipts", action="store_true", help="what you asked, what was asked of you, who may ask")
    add_home(parser)
    add_json(parser)
    parser.set_defaults(run=_run)


def actions(action: Action) -> None:
    """Add what `mesh peer` has about memory to its parser."""
    for name, text, count in (
        ("grant", "let a peer ask your node's memory about basins", "+"),
        ("ungrant", "let it ask no more, about these basins or about any", "*"),
    ):
        parser = action(name, text, _change(name))
        parser.add_argument("peer", metavar="PEER", help="its name here; see: mesh peer list")
        parser.add_argument("what", metavar="recall", choices=["recall"], help="the one thing that is granted yet")
        parser.add_argument("basins", metavar="BASIN", nargs=count)


def _change(operation: str) -> Any:  # noqa: ANN401 - a command
    async def run(options: argparse.Namespace) -> None:
        from mesh.words import plain
        from nodes.layout import lines

        told = await ask(home_of(options), f"recall_{operation}", {"peer": options.peer, "basins": options.basins})
        if options.json:
            print_json(told)
        else:
            lines([plain(f"{told['peer']} may ask about: {', '.join(told['granted']) or 'nothing'}.")])

    return run


async def _run(options: argparse.Namespace) -> None:
    from nodes.errors import ConfigError
    from nodes.layout import lines

    if options.receipts:
        told = await ask(home_of(options), "recall_receipts", {})
    elif options.peer is None or options.question is None:
        raise ConfigError(['say whom you ask, and what: mesh recall PEER "QUESTION"; or --receipts'])
    else:
        given = {"peer": options.peer, "question": options.question, "basin": options.basin}
        told = await ask(home_of(options), "recall", given)
    if options.json:
        print_json(told)
    elif options.receipts:
        lines(_receipts(told), hang=2)
    else:
        lines(_found(told), hang=2)


def _found(told: dict[str, Any]) -> list[str]:
    """Who said what, when and where."""
    from mesh.words import plain
    from nodes.layout import when

    if not told["found"]:
        return [plain(f"{told['peer']} has nothing about it where you may ask.")]
    return [
        plain(f"{when(one['at_ms'])}  {one['basin']}  {one['author']}~{one['fingerprint']}: {one['text']}", 1_000)
        for one in told["found"]
    ]


def _receipts(told: dict[str, Any]) -> list[str]:
    from nodes.layout import table, when

    rows = [
        [
            when(one["at_ms"]),
            f"{one['peer'] or one['fingerprint']} asked you" if one["here"] else f"you asked {one['peer'] or '?'}",
            " ".join(one["basins"]) or "-",
            f"{one['acts']} acts, receipt kept" if one["receipt"] else one["outcome"],
            one["question"],
        ]
        for one in told["questions"]
    ]
    granted = [f"{name} may ask about: {', '.join(basins)}" for name, basins in sorted(told["granted"].items())]
    return [
        *(table(["WHEN", "WHO", "ABOUT", "OUTCOME", "QUESTION"], rows) if rows else ["Nothing was asked yet."]),
        *(granted or ["Nobody may ask you. To let a peer: mesh peer grant PEER recall BASIN"]),
    ]
