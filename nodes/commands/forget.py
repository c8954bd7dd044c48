"""`mesh forget --report`: who confirmed that they forgot what was taken back, and who holds it still."""

import argparse
from typing import Any, Final

from nodes.commands.common import add_home, add_json, home_of, print_json

HANG: Final = 4  # columns before what does not fit on a line


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.description = (
        "What you took back with mesh redact, or in a chat: which peers have confirmed, signed, that its words are"
        " erased there, who was sent it and has not, and who never had it."
    )
    parser.add_argument("--report", action="store_true", required=True, help="tell what is known")
    parser.add_argument("act", metavar="ACT", nargs="?", help="one act: its id, or the first digits of it (6 or more)")
    add_home(parser)
    add_json(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from mesh.words import plain
    from nodes.layout import lines
    from nodes.receipts.report import as_text, report
    from nodes.records import lookup, records

    told = list[dict[str, Any]]()
    with records(home_of(options)) as store:
        if store is not None:
            told = report(store, None if options.act is None else lookup(store, options.act))
    if options.json:
        print_json({"forgotten": told})
    elif not told:
        what = "That act was not taken back" if options.act else "Nothing was taken back yet"
        lines([f"{what}, as far as is known here. To take something back: mesh redact ACT"], 0)
    else:
        shown = (plain(line, 400) if not line.startswith("  ") else f"  {plain(line, 400)}" for line in as_text(told))
        lines(shown, HANG)
