"""`mesh why`: from an act to everything that made it. Reads the node's database, whether or not the node runs."""

import argparse

from nodes.commands.common import add_home, add_json, home_of, mesh_of, print_json


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.description = (
        "Show why an act was said: the rule, the model, the exact prompt and where every piece of it came from; and who"
        " answered it, or why nobody did."
    )
    parser.add_argument("act", metavar="ACT", help="an act's id, its first digits (6 or more), or last")
    parser.add_argument("--prompt", action="store_true", help="show all of the prompt")
    add_home(parser)
    add_json(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from nodes.errors import NodeError
    from nodes.explain import HANG, as_json, as_text, why
    from nodes.home import at_home
    from nodes.layout import lines
    from nodes.records import lookup, records

    home = home_of(options)
    with records(home) as store:
        identity = lookup(store, options.act)
        if store is None:
            raise NodeError("nothing was said here yet")
        known = why(store, identity)
    if options.json:
        print_json(as_json(known))
    else:
        told = as_text(known, mesh_of(home), whole=options.prompt, there=at_home(home.path))
        lines(told, None if options.prompt else HANG)  # a prompt is shown as it is
