"""`mesh em`: the folders ems are made from."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nodes.commands import em_passports
from nodes.commands.common import add_home, add_json, home_of, print_json

if TYPE_CHECKING:
    from nodes.em import Em
    from nodes.home import Home

MISTAKES = 2  # the exit code of ConfigError, which `check` has collected instead of raising


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    new = actions.add_parser("new", help="make a folder for a new em", description="Make a folder for a new em.")
    new.add_argument("name", metavar="NAME", help="1 to 32 of a-z, 0-9, _ and -")
    new.set_defaults(run=_new)
    text = "which ems there are, and whether the node hosts them now"
    every = actions.add_parser("list", help=text, description=f"Show {text}.")
    every.set_defaults(run=_list)
    text = "what is wrong in em folders; the exit code is 2 for errors, 0 for notes alone"
    check = actions.add_parser("check", help="what is wrong in em folders", description=f"Show {text}.")
    check.add_argument("em", nargs="?", metavar="NAME|PATH", help="one em (default: all of the home)")
    check.set_defaults(run=_check)
    for action in (new, every, check):
        add_home(action)
        add_json(action)
    em_passports.add(actions)


def _new(options: argparse.Namespace) -> None:
    from nodes.layout import lines
    from nodes.new_em import create_em

    folder = create_em(home_of(options).ems, options.name)
    if options.json:
        print_json({"name": options.name, "folder": str(folder)})
        return
    lines(
        [
            f"{folder} is ready: write chat.txt, and look through config.yaml.",
            "A running node takes it up by itself, and every change of it.",
            f"Next:  mesh em check {options.name}",
        ]
    )


async def _list(options: argparse.Namespace) -> None:
    from nodes.commands.reach import reach
    from nodes.em import load_ems
    from nodes.layout import counted, lines, table

    home = home_of(options)
    ems, problems = load_ems(home.ems)
    status = (await reach(home)).status
    default = home.config().models.default
    there = em_passports.known_here(home)
    rows = [_row(em, default, status) for em in ems]
    for row, em in zip(rows, ems, strict=True):
        row["from"] = em_passports.origin_in_short(home, em, there)
    if options.json:
        print_json({"ems": rows, "problems": problems})
        return
    hosted = {True: "yes", False: "no", None: "-"}
    shown = [
        [em["name"], em["model"], " ".join(em["basins"]), f"{em['lines']:,}", hosted[em["hosted"]], em["from"]]
        for em in rows
    ]
    head = ["NAME", "MODEL", "BASINS", "LINES", "HOSTED", "FROM"]
    if all(em["from"] == "-" for em in rows):
        head, shown = head[:-1], [row[:-1] for row in shown]
    lines(table(head, shown))
    if problems:
        lines([f"{counted(len(problems), 'problem')} in em folders; see: mesh em check"])


def _row(em: "Em", default: str, status: dict[str, Any] | None) -> dict[str, Any]:
    """An em as scripts see it. `hosted` is None when no node runs."""
    return {
        "name": em.name,
        "model": em.settings.model or default,
        "basins": list(em.settings.basins),
        "lines": sum(len(scene.lines) for scene in (*em.voice.chat, *em.voice.memory)),
        "hosted": None if status is None else em.name in status["ems"],
    }


def _check(options: argparse.Namespace) -> int:
    from nodes.em import load_em, load_ems
    from nodes.errors import ConfigError
    from nodes.inspection import shared_names
    from nodes.layout import counted, lines

    errors: list[str] = []
    ems: list[Em] = []
    notes: list[str] = []
    if options.em is None:
        home = home_of(options)
        ems, errors = load_ems(home.ems)
        notes = shared_names(ems, _human(home))
    else:
        try:
            ems = [load_em(_folder(options))]
        except ConfigError as error:
            errors = error.problems
    notes = [*(note for em in ems for note in em.notes), *notes]
    if options.json:
        print_json({"ems": [em.name for em in ems], "errors": errors, "notes": notes})
    else:
        lines([*(f"error: {error}" for error in errors), *(f"note: {note}" for note in notes)])
        found = [counted(len(told), what) for told, what in ((errors, "error"), (notes, "note")) if told]
        lines([f"{counted(len(ems), 'em')} read: {', '.join(found) or 'nothing wrong'}"])
    return MISTAKES if errors else 0


def _human(home: "Home") -> str | None:
    """What the person is called; None when the settings cannot be read, which is not this command's business."""
    from nodes.errors import ConfigError

    try:
        return home.config().human
    except ConfigError:
        return None


def _folder(options: argparse.Namespace) -> Path:
    """The folder that is meant: a path when it looks like one, else an em of the home."""
    from nodes.errors import ConfigError

    if os.sep in options.em or "/" in options.em or options.em in {"", ".", ".."}:
        return Path(options.em)
    ems = home_of(options).ems
    if not (ems / options.em).is_dir():
        raise ConfigError([f"there is no em {options.em[:80]!a} in {ems}; for a folder elsewhere give a path with a /"])
    return ems / options.em
