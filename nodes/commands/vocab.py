"""`mesh vocab`: words that meshes make for themselves, asked of and said by the running node."""

import argparse
from typing import TYPE_CHECKING, Any

from nodes.commands.asking import action, ask
from nodes.commands.common import home_of, print_json

if TYPE_CHECKING:
    from collections.abc import Iterable


HANG = 12  # columns before what does not fit on a line of `show`
SHORT = 15  # characters of a digest: enough to name a reading
LONG = 60  # characters of a definition in a list


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    action(actions, "list", "all words that were put forward here, and who uses them", _list)
    show = action(actions, "show", "one word: its readings, who uses which, and who reads it otherwise", _show)
    show.add_argument("word", metavar="NAME")
    propose = action(actions, "propose", "put a word forward; each mesh adopts it or not", _propose)
    propose.add_argument("name", metavar="NAME")
    propose.add_argument("definition", metavar="DEFINITION", help="what it means, in one sentence")
    propose.add_argument("--act", action="store_true", help="it names a kind of act, such as lumen")
    propose.add_argument("--example", default="", metavar="TEXT", help="how it is used")
    propose.add_argument("--obliges", default="", metavar="TEXT", help="what the listener may then expect")
    propose.add_argument("--basin", default="words", metavar="BASIN", help="where to say so (default: words)")
    adopt = action(actions, "adopt", "use a word, in this reading", _say("adopt"))
    contest = action(
        actions, "contest", "read a word otherwise: both readings stand, and you use yours", _say("contest")
    )
    retire = action(actions, "retire", "use a word no more", _say("retire"))
    for parser_of in (adopt, contest, retire):
        parser_of.add_argument("word", metavar="NAME", help="the word, or the digest of one of its readings")
        parser_of.add_argument(
            "--basin", default=None, metavar="BASIN", help="where to say so (default: where it was put forward)"
        )
    contest.add_argument("definition", metavar="DEFINITION", help="what it means to you")
    diff = action(actions, "diff", "which words only you use, only a peer uses, and both", _diff)
    diff.add_argument("peer", metavar="PEER", help="its name here; see: mesh peer list")


async def _list(options: argparse.Namespace) -> None:
    from nodes.layout import lines, table

    told = await ask(home_of(options), "vocab_list", {})
    if options.json:
        print_json(told)
    elif not told["readings"]:
        lines(['No words yet. To put one forward: mesh vocab propose NAME "what it means"'])
    else:
        rows = [[*_row(one), _called(one["used"]) or "nobody"] for one in told["readings"]]
        shown = table(["WORD", "READING", "DEFINITION", "USED BY"], rows)
        if told["left_out"]:
            shown.append(f"({told['left_out']} more are not shown; to see one: mesh vocab show NAME)")
        lines(shown)


async def _show(options: argparse.Namespace) -> None:
    from mesh.words import plain
    from nodes.layout import lines

    told = await ask(home_of(options), "vocab_show", {"word": options.word})
    if options.json:
        print_json(told)
        return
    if told["core"]:
        core = told["core"]
        lines([f"{core['name']}, an act of version 1: {core['definition']}", *_more(core)], HANG)
        return
    contested = ", read in more than one way" if told["contested"] else ""
    shown = [plain(f"{told['name']}{contested}")]
    for one in told["readings"]:
        shown += ["", *_reading(one)]
    lines(shown, HANG)


def _reading(one: dict[str, Any]) -> list[str]:
    """A reading, line by line."""
    told = [
        _labelled("act" if one["kind"] == "act" else "word", f"{one['name']}: {one['definition']}"),
        *_more(one),
        _labelled("used by", _called(one["used"]) or "nobody known here"),
    ]
    named = (("proposed by", one["proposed"]), ("contested by", one["contested"]), ("ems for it", one["ems"]))
    told += [_labelled(label, _authors(who)) for label, who in named if who]
    return [*told, _labelled("digest", one["digest"])]


def _labelled(label: str, text: str) -> str:
    from mesh.words import plain

    return f"{label:<11} {plain(text, 1_200)}"


def _more(one: dict[str, Any]) -> list[str]:
    told = (("obliges", one["obliges"]), ("example", one["example"]))
    return [_labelled(label, text) for label, text in told if text]


async def _propose(options: argparse.Namespace) -> None:
    given = {name: getattr(options, name) for name in ("name", "definition", "example", "obliges", "basin")}
    told = await ask(home_of(options), "vocab_propose", given | {"kind": "act" if options.act else "word"})
    _said(
        options, told, f"{told['name']} is put forward in {told['basin']}. To use it: mesh vocab adopt {told['name']}"
    )


def _say(operation: str) -> Any:  # noqa: ANN401 - a command
    """A command that says something about a known word."""
    done = {
        "adopt": "you use {name} now: {definition}",
        "contest": "you read {name} otherwise now: {definition}",
        "retire": "you use {name} no more",
    }

    async def run(options: argparse.Namespace) -> None:
        names = ("word", "definition", "basin")
        given = {name: getattr(options, name) for name in names if hasattr(options, name)}
        told = await ask(home_of(options), f"vocab_{operation}", given)
        text = done[operation].format(**told)
        _said(options, told, f"{text[0].upper()}{text[1:]}")

    return run


def _said(options: argparse.Namespace, told: dict[str, Any], text: str) -> None:
    from mesh.words import plain
    from nodes.layout import lines

    if options.json:
        print_json(told)
    else:
        lines([plain(text, 1_200)])


async def _diff(options: argparse.Namespace) -> None:
    from mesh.words import plain
    from nodes.layout import lines, table

    told = await ask(home_of(options), "vocab_diff", {"peer": options.peer})
    if options.json:
        print_json(told)
        return
    parts = (("both", "both"), ("only you", "only_here"), (f"only {told['peer']}", "only_there"))
    rows = [[label, *_row(one)] for label, key in parts for one in told[key]]
    shown = table(["USED BY", "WORD", "READING", "DEFINITION"], rows) if rows else ["Neither of you uses any words."]
    if told["contested"]:
        shown += ["", plain(f"Read in more than one way: {', '.join(told['contested'])}; see: mesh vocab show NAME")]
    if not told["told"]:
        shown += ["", plain(f"{told['peer']}'s node has not said yet what it uses; this is from what was heard.")]
    lines(shown)


def _row(one: dict[str, Any]) -> list[str]:
    from mesh.words import plain

    name = one["name"] or "(not known yet)"
    return [
        f"{name} (act)" if one["kind"] == "act" else name,
        one["digest"][:SHORT],
        plain(one["definition"] or "", LONG),
    ]


def _called(meshes: "Iterable[dict[str, str]]") -> str:
    return ", ".join(one["called"] for one in meshes)


def _authors(authors: "Iterable[dict[str, str]]") -> str:
    return ", ".join(f"{one['author']}@{one['called']}" for one in authors)
