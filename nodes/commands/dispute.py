"""`mesh dispute`: what went wrong between this mesh and another, talked through and followed."""

import argparse
import re
from typing import TYPE_CHECKING, Any, Final

from nodes.commands.asking import action, ask, span
from nodes.commands.common import home_of, print_json

if TYPE_CHECKING:
    pass

MAX_SHOWN: Final = 2_000  # characters of one text on a terminal; --json has all of it
MAX_LINE: Final = 100  # of what it is about, in a list
HANG: Final = 4  # columns by which long lines go on
_DID: Final = {
    "raise": "raised it",
    "respond": "responded",
    "remedy": "is ready to do",
    "report": "reported",
    "settle": "settled",
    "withdraw": "withdrew it",
    "say": "said",
    "ask": "asked",
    "answer": "answered",
    "edit": "changed it to",
}
_HOW: Final = {"left": "the link has ended", "paused": "the link is paused", "linked": ""}


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    _beginning(actions)
    _going_on(actions)
    _ending(actions)


def _beginning(actions: Any) -> None:  # noqa: ANN401 - argparse keeps the type to itself
    begin = action(actions, "raise", "tell a peer what went wrong; only the two of you hear it", _raise)
    begin.add_argument("peer", metavar="PEER", help="its name here; see: mesh peer list")
    begin.add_argument("text", metavar="TEXT", help="what went wrong")
    begin.add_argument("--about", action="append", default=[], metavar="ACT", help="the id of an act that it is about")
    begin.add_argument("--wish", default="", metavar="TEXT", help="what you would like")
    _named(action(actions, "show", "all that was said in a dispute, and what became of it", _show))
    action(actions, "list", "the disputes that you are in, one a line", _list)


def _going_on(actions: Any) -> None:  # noqa: ANN401 - argparse keeps the type to itself
    respond = _named(action(actions, "respond", "say something about it", _said("respond")))
    respond.add_argument("text", metavar="TEXT")
    remedy = _named(action(actions, "remedy", "say what you are ready to do about it", _said("remedy")))
    remedy.add_argument("text", metavar="TEXT")
    remedy.add_argument("--by", dest="due_s", type=span(3_660), metavar="TIME", help="until when: 30m, 12h, 3d")
    report = action(actions, "report", "say that you have done what you were ready to do", _said("report"))
    release = action(actions, "release", "ask no more for what the other side was ready to do", _said("release"))
    for parser in (report, release):
        parser.add_argument("commitment", metavar="COMMITMENT", help="its letters; mesh dispute show has them")
        _text(parser)
    mediator = _named(action(actions, "mediator", "name somebody who may mediate; both sides must", _said("mediator")))
    mediator.add_argument("mesh", metavar="PEER", help="a peer's name, a mesh's id, or the key of one that was named")
    mediator.add_argument("--no", dest="consent", action="store_false", help="have them mediate no longer")
    _text(mediator)
    _named(action(actions, "mediate", "agree to mediate in a dispute of others, and hear it", _mediate))


def _ending(actions: Any) -> None:  # noqa: ANN401 - argparse keeps the type to itself
    settle = _named(action(actions, "settle", "it is over for you; it is settled when both say so", _said("settle")))
    withdraw = _named(action(actions, "withdraw", "drop what you raised", _said("withdraw")))
    for parser in (settle, withdraw):
        _text(parser)


def _named(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("dispute", metavar="ID", help="its eight letters, or the first of them; see: mesh dispute list")
    return parser


def _text(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("text", metavar="TEXT", nargs="?", default="")


async def _raise(options: argparse.Namespace) -> None:
    from mesh.words import plain
    from nodes.errors import ConfigError
    from nodes.layout import lines

    for act in options.about:
        if not re.fullmatch("[0-9a-fA-F]{32}", act, re.ASCII):
            raise ConfigError([f"--about: {act[:40]!a} is no id of an act: give its 32 hex digits"])
    given = {"peer": options.peer, "text": options.text, "about": options.about, "wish": options.wish}
    told = await ask(home_of(options), "dispute_raise", given)
    if options.json:
        print_json(told)
    else:
        lines(
            [
                plain(f"Raised with {told['with']['name']}: {told['id']}"),
                f"It is in {told['basin']}",
                f"To see what they say: mesh dispute show {told['id']}",
            ]
        )


def _said(operation: str) -> Any:  # noqa: ANN401 - a command
    """A command that says something in a dispute."""

    async def run(options: argparse.Namespace) -> None:
        from nodes.layout import lines

        names = ("dispute", "commitment", "text", "due_s", "mesh", "consent")
        given = {name: getattr(options, name) for name in names if hasattr(options, name)}
        told = await ask(home_of(options), f"dispute_{operation}", given)
        if options.json:
            print_json(told)
        else:
            begun = f"{told['said']} is your commitment." if operation == "remedy" else "Said."
            lines([f"{begun} {_line(told)}"], 0)

    return run


async def _mediate(options: argparse.Namespace) -> None:
    from nodes.layout import lines

    told = await ask(home_of(options), "dispute_mediate", {"dispute": options.dispute})
    if options.json:
        print_json(told)
    else:
        lines([f"You mediate in {told['id']} and hear it from its beginning: mesh dispute show {told['id']}"])


async def _list(options: argparse.Namespace) -> None:
    from mesh.words import plain
    from nodes.layout import lines, table

    told = await ask(home_of(options), "dispute_list", {})
    if options.json:
        print_json(told)
        return
    rows = [
        [one["id"], one["state"], _between(one), _notes(one) or "-", plain(one["line"], MAX_LINE)]
        for one in told["disputes"]
    ]
    shown = table(["DISPUTE", "IS", "BETWEEN", "SO FAR", "ABOUT"], rows) if rows else []
    for one in told["offered"]:
        by, name = one["by"]["name"], one["id"]
        if one["mediate"]:
            shown.append(plain(f"{name} {by} asks you to mediate; to agree: mesh dispute mediate {name}"))
        else:
            shown.append(plain(f"{name} is not heard; to hear it: mesh peer take {by} {one['basin']} --write"))
    lines(shown or ["No disputes."], HANG)


def _between(told: dict[str, Any]) -> str:
    return f"{_name(told['raised_by'])} with {_name(told['with'])}"


def _notes(told: dict[str, Any]) -> str:
    """Who has settled, how the commitments stand, and whether the link still does."""
    counts = [f"{number} {standing}" for standing, number in told["counts"].items()]
    settled = [f"settled by {_name(one)}" for one in told["willing"]] if told["state"] == "open" else []
    return ", ".join([*settled, *counts, *filter(None, [_HOW.get(told["link"] or "linked", told["link"])])])


def _line(told: dict[str, Any]) -> str:
    """A dispute in one line."""
    from mesh.words import plain

    notes = _notes(told)
    return plain(f"{told['id']} is {told['state']}, {_between(told)}{f': {notes}' if notes else ''}.")


async def _show(options: argparse.Namespace) -> None:
    from nodes.layout import lines

    told = await ask(home_of(options), "dispute_show", {"dispute": options.dispute})
    if options.json:
        print_json(told)
    else:
        lines(shown(told), HANG)


def shown(told: dict[str, Any]) -> list[str]:
    """A dispute as lines for a terminal."""
    from nodes.layout import when

    link = _HOW.get(told["link"] or "linked", told["link"])
    found = [
        _row("dispute", f"{told['id']}, {told['state']}{f'; {link}' if link else ''}"),
        _row("raised", f"{when(told['at_ms'])} by {_key(told['raised_by'])}, with {_key(told['with'])}"),
        _row("basin", told["basin"]),
        *(_row("about", _quoted(act)) for act in told["about"]),
        *([_row("wish", told["wish"])] if told["wish"] else []),
        *(_row("settled", f"by {_name(one)}") for one in told["willing"]),
        *(_row("mediator", _mediator(one, told)) for one in told["named"]),
    ]
    if told["commitments"]:
        found += ["", "commitments", *(_commitment(one) for one in told["commitments"])]
    found += ["", *([f"({told['left_out']} earlier words are not shown)"] if told["left_out"] else [])]
    return [*found, *(_word(one) for one in told["words"])]


def _row(label: str, text: str) -> str:
    from mesh.words import plain

    return f"{label:<8} {plain(text, MAX_SHOWN)}"


def _word(word: dict[str, Any]) -> str:
    from mesh.words import plain
    from nodes.layout import when

    about = f" ({', '.join(word['about'])})" if word["about"] else ""
    did = "released" if word["kind"] == "settle" and word["about"] else _DID[word["kind"]]
    who = _name(word["who"]) if word["kind"] != "say" else f"{word['author']} of {_name(word['who'])}"
    text = "(taken back)" if word["taken_back"] else plain(word["text"], MAX_SHOWN)
    return f"{when(word['at_ms'])}  {plain(f'{who} {did}{about}')}: {text}"


def _commitment(one: dict[str, Any]) -> str:
    from mesh.words import plain
    from nodes.layout import when

    due = f", by {when(one['due_ms'])}" if one["due_ms"] is not None else ""
    return f"  {one['id']}  {one['standing']}{due}  {plain(_name(one['who']))}: {plain(one['text'], MAX_SHOWN)}"


def _mediator(one: dict[str, Any], told: dict[str, Any]) -> str:
    if one["mesh"] in [mediator["mesh"] for mediator in told["mediators"]]:
        return f"{_key(one)}, whom both would have"
    by, how = " and ".join(_name(who) for who in one["by"]), f"mesh dispute mediator {told['id']} {one['mesh']}"
    return f"{_key(one)}, named by {by}; if the other side agrees: {how}"


def _quoted(act: dict[str, Any]) -> str:
    from nodes.layout import when

    if not act["known"]:
        return f"{act['id']}, which is not known here"
    return f"{when(act['at_ms'])} {act['author']} of {_name(act['who'])} in {act['basin']}: {act['text']}"


def _name(who: dict[str, Any]) -> str:
    return "you" if who["me"] else str(who["name"])


def _key(who: dict[str, Any]) -> str:
    return f"{_name(who)} ({who['fingerprint']})"
