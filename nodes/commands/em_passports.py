"""`mesh em show|fork|lend|take|return`: where ems come from, and how they go from one person to another."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from nodes.commands.asking import action, span
from nodes.commands.common import home_of, print_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nodes.em import Em
    from nodes.home import Home
    from nodes.proofs import Known
    from protocol.keys import MeshId
    from protocol.passport import Passport, Stamped

DECLINED: Final = 1
HANG: Final = 10  # columns before what is told
ENDING: Final = ".em"  # of files with an em in them


def add(actions: Any) -> None:  # noqa: ANN401 - argparse keeps the type to itself
    """Add the actions to `mesh em`."""
    show = action(actions, "show", "one em: its settings, where it comes from, until when it is lent", _show)
    show.add_argument("name", metavar="NAME")
    fork = action(actions, "fork", "make a second em out of one of yours, with its lineage", _fork)
    fork.add_argument("name", metavar="NAME")
    fork.add_argument("new", metavar="NEW", help="what to call the new one")
    lend = action(actions, "lend", "write an em into a file for somebody else", _lend)
    lend.add_argument("name", metavar="NAME")
    lend.add_argument("to", metavar="PEER|FILE", help="a peer, who alone can take it then; or the file, for anybody")
    lend.add_argument(
        "--until", type=span(3_660), metavar="TIME", help="12h, 30d: when it is to come back (default: never)"
    )
    take = action(actions, "take", "take an em that somebody lent or gave back, if you say yes", _take)
    take.add_argument("file", type=Path, metavar="FILE")
    take.add_argument("--as", dest="name", metavar="NAME", help="what to call it here (default: as there)")
    take.add_argument("--yes", action="store_true", help="ask nothing: for scripts")
    back = action(actions, "return", "give a lent em back: write what it became, and move its folder aside", _return)
    back.add_argument("name", metavar="NAME")
    back.add_argument("file", nargs="?", type=Path, metavar="FILE", help="(default: NAME.em, here)")


def origin(home: "Home", em: "Em") -> dict[str, Any]:
    """Where an em comes from, for scripts: `lent` by whom until when, `lineage`, and what is wrong with it."""
    from nodes.errors import HomeError, NodeError
    from nodes.passports import contents, lineage, loan
    from protocol.passport import digest_of_contents

    try:
        line = lineage(em.folder)
        digest = digest_of_contents(contents(em))
    except NodeError as error:
        return {"digest": None, "lent": None, "changed": None, "lineage": [], "problem": str(error)}
    try:
        lent = loan(line, home.mesh_id())
    except HomeError:
        lent = None
    return {
        "digest": digest,
        "lent": None if lent is None else {"by": lent.lender, "until_ms": lent.until_ms},
        "changed": None if not line else line[0].passport.digest != digest,
        "lineage": [_told(one) for one in line],
        "problem": None,
    }


def _told(stamped: "Stamped") -> dict[str, Any]:
    said = stamped.passport
    return {
        "event": said.event,
        "name": said.name,
        "mesh": said.mesh,
        "made_ms": said.made_ms,
        "digest": said.digest,
        "until_ms": said.until_ms,
        "to": said.to,
    }


def origin_in_short(home: "Home", em: "Em", there: "Known") -> str:
    """The same in one cell of a table."""
    from nodes.errors import HomeError, NodeError
    from nodes.passports import lineage, loan
    from nodes.proofs import utc

    try:
        line = lineage(em.folder)
        lent = loan(line, home.mesh_id())
    except HomeError:
        return "-"
    except NodeError:
        return "?"
    if lent is None:
        return line[0].passport.event if line else "-"
    return f"lent by {_who(lent.lender, there)}" + (f" until {utc(lent.until_ms)}" if lent.until_ms else "")


def _who(mesh: str, there: "Known") -> str:
    from protocol.keys import fingerprint

    name = "you" if mesh == there.me else there.petnames.get(mesh)
    return fingerprint(mesh) if name is None else f"{name} ({fingerprint(mesh)})"


def known_here(home: "Home") -> "Known":
    """Who is who in a home."""
    import contextlib

    from mesh.errors import StoreFailed
    from nodes.proofs import known
    from nodes.records import records

    with contextlib.suppress(StoreFailed), records(home) as store:
        return known(home, store)
    return known(home, None)


def _show(options: argparse.Namespace) -> None:
    from mesh.words import plain
    from nodes.layout import lines
    from nodes.lending import find_em

    home = home_of(options)
    em, there = find_em(home, options.name), known_here(home)
    seen = origin(home, em)
    if options.json:
        print_json({"name": em.name, "folder": str(em.folder), "called": em.settings.name, **seen})
        return
    changed = {None: "", False: ", as its passport says", True: ", changed since its passport was signed"}
    lines(
        [
            f"{em.name}  {em.folder}",
            f"called    {plain(em.settings.name)}",
            f"listens   {' '.join(em.settings.basins)}",
            f"digest    {seen['digest'] or '-'}{changed[seen['changed']]}",
            f"from      {plain(origin_in_short(home, em, there))}",
            *_lineage(em, there),
            *([f"problem   {plain(seen['problem'])}"] if seen["problem"] else []),
        ],
        HANG,
    )


def _lineage(em: "Em", there: "Known") -> list[str]:
    from nodes.errors import NodeError
    from nodes.passports import lineage

    try:
        return _steps(lineage(em.folder), there)
    except NodeError:
        return []


def _steps(line: "Sequence[Stamped]", there: "Known") -> list[str]:
    """A lineage, newest first, for a person."""
    from mesh.words import plain

    return [f"lineage   {plain(_step(one.passport, there))}" for one in line]


def _step(said: "Passport", there: "Known") -> str:
    from nodes.proofs import utc

    words = {"made": "made by", "fork": "forked by", "lend": "lent by", "return": "given back by"}
    to = f" to {_who(said.to, there)}" if said.to else ""
    until = f" until {utc(said.until_ms)}" if said.until_ms else ""
    return f"{said.name}: {words[said.event]} {_who(said.mesh, there)}{to}, {utc(said.made_ms)}{until}"


def _fork(options: argparse.Namespace) -> None:
    from mesh.clock import now_ms
    from mesh.words import plain
    from nodes.layout import lines
    from nodes.lending import fork

    folder, notes = fork(home_of(options), options.name, options.new, now_ms)
    if options.json:
        print_json({"name": options.new, "folder": str(folder), "notes": notes})
        return
    lines([f"{folder} is ready: a fork of {options.name}.", *(plain(f"note: {note}") for note in notes)])


def _lend(options: argparse.Namespace) -> None:
    from mesh.clock import now_ms
    from nodes.layout import lines
    from nodes.lending import Terms, lend
    from nodes.proofs import utc

    home = home_of(options)
    there = known_here(home)
    peer = _peer(options.to, there)
    target = Path(f"{options.name}{ENDING}" if peer else options.to)
    until = None if options.until is None else now_ms() + 1_000 * options.until
    given = lend(home, options.name, Terms(peer, until), target, now_ms)
    if options.json:
        print_json({"file": str(target), **_told(given)})
        return
    who = _who(peer, there) if peer else "whoever has this file"
    lines(
        [
            f"{target} holds {options.name}, lent to {who}" + (f" until {utc(until)}." if until else " for good."),
            "It holds all text and settings of the em. Give it to them by a way that you trust.",
            f"They run: mesh em take {target.name}",
        ],
        0,
    )


def _peer(name: str, there: "Known") -> "MeshId | None":
    """The peer that is meant; None for a file. Raises NodeError: a slip in a name must not lend to everybody."""
    from nodes.errors import NodeError
    from protocol.keys import MeshId

    found = next((MeshId(mesh) for mesh, petname in there.petnames.items() if name in (petname, mesh)), None)
    if found is None and not name.endswith(ENDING):
        raise NodeError(f"there is no peer {name[:80]!a}; to lend to whoever has the file, name one that ends in .em")
    return found


def _take(options: argparse.Namespace) -> int:
    from mesh.clock import now_ms
    from mesh.words import plain
    from nodes.errors import NodeError
    from nodes.layout import lines
    from nodes.lending import check_terms, free_name, open_parcel, take

    home = home_of(options)
    there, parcel = known_here(home), open_parcel(options.file)
    check_terms(parcel, home.mesh_id(), now_ms())
    top = parcel.lineage[0]
    revoked = there.revocation(top.passport.mesh)
    if revoked is not None and top.node in revoked.nodes:
        raise NodeError("the node that signed this passport has been revoked by its mesh; ask them for a new file")
    name = options.name or free_name(home, top.passport.name)
    if not options.json:
        lines(
            [
                plain(_step(top.passport, there)),
                *_steps(parcel.lineage[1:], there),
                f"files     {len(parcel.files):,}, {parcel.size:,} bytes",
                f"here      {home.ems / name}",
            ],
            HANG,
        )
    if not options.yes:
        if options.json or not sys.stdin.isatty():
            raise NodeError("a person decides this: run it in a terminal, or with --yes")
        sys.stdout.write("Take it? [y/N] ")
        sys.stdout.flush()
        if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
            lines(["Nothing was taken."])
            return DECLINED
    folder, notes = take(home, parcel, name, now_ms)
    if options.json:
        print_json({"name": name, "folder": str(folder), "notes": notes, **_told(top)})
        return 0
    lines([f"{folder} is ready; a running node takes it up by itself.", *(plain(f"note: {note}") for note in notes)])
    return 0


def _return(options: argparse.Namespace) -> None:
    from mesh.clock import now_ms
    from nodes.layout import lines
    from nodes.lending import give_back

    home = home_of(options)
    target = options.file or Path(f"{options.name}{ENDING}")
    back, aside = give_back(home, options.name, target, now_ms)
    if options.json:
        print_json({"file": str(target), "aside": str(aside), **_told(back)})
        return
    owner = _who(back.passport.to or "", known_here(home))
    lines(
        [
            f"{target} holds what {back.passport.name} became. Give it to {owner}.",
            f"Its folder is in {aside} now, where no node hosts it; delete that when they have it.",
        ],
        0,
    )
