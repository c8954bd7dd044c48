"""`mesh peer`: links to other people's meshes."""

import argparse
import re
from functools import partial
from typing import Any, Final

from nodes.commands.asking import action, ask
from nodes.commands.common import home_of, print_json
from nodes.commands.introductions import actions as introductions
from nodes.commands.invitations import TRUST
from nodes.commands.invitations import actions as invitations
from nodes.commands.recall import actions as memory
from nodes.commands.who import introduced

TRUSTS: Final = ("close", "known", "guest", "silent")  # protocol.statement.Trust, which help does without
HANG: Final = 9  # columns before what `show` tells
LIST_HANG: Final = 4  # and before what does not fit on a line of `list`
_BASIN: Final = re.compile(r"([a-z0-9][a-z0-9_-]{0,63})(?::(read|write))?", re.ASCII)
_QUOTA: Final = {"acts_a_minute": "acts a minute", "chains_a_day": "chains a day", "tokens_a_day": "tokens a day"}
_WISHES: Final = "An em changes nothing: you do, with mesh peer, or take it off the list with: mesh peer dismiss ID"
_NEXT: Final = {
    "share": ["They hear it once they take it: mesh peer take YOU BASIN"],
    "take": ["You hear it once they share it: mesh peer share YOU BASIN"],
    "leave": ["Only a new invitation begins again."],
}


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    _meeting(actions)
    _sharing(actions)
    _terms(actions)


def _meeting(actions: Any) -> None:  # noqa: ANN401 - argparse keeps the type to itself
    invitations(partial(action, actions), _basin, TRUSTS)
    action(actions, "list", "who this mesh is linked with", _list)
    address = _of(action(actions, "address", "say where a peer is dialled, when it has moved", _address))
    address.add_argument("addresses", metavar="HOST:PORT", nargs="*", help="its new addresses (none: it dials you)")
    rename = _of(action(actions, "rename", "call a peer something else", _rename))
    rename.add_argument("name", metavar="NAME", help="the new name, for you alone")
    room = _of(action(actions, "room", "meet a peer in a Matrix room when there is no better way", _room))
    room.add_argument("room", metavar="ROOM", nargs="?", help="its id or alias; both of you say it; none: in no room")
    action(actions, "wishes", "changes that your ems ask for; only you can make them", _wishes)
    dismiss = action(actions, "dismiss", "take an em's wish off the list", _dismiss)
    dismiss.add_argument("wish", metavar="ID", help="the beginning of its id; see: mesh peer wishes")
    introductions(partial(action, actions), _basin, TRUSTS)
    memory(partial(action, actions))
    _of(action(actions, "show", "all about one peer: what is shared, what it used today, what was refused", _show))


def _sharing(actions: Any) -> None:  # noqa: ANN401 - argparse keeps the type to itself
    share = _of(action(actions, "share", "let a peer read a basin; it comes to those who take it", _change("share")))
    take = _of(action(actions, "take", "hear a basin that a peer shares", _change("take")))
    for parser, what in (
        (share, "they may speak there as well"),
        (take, "what is said here in it goes to them as well"),
    ):
        parser.add_argument("basin", metavar="BASIN")
        parser.add_argument("--write", action="store_true", help=what)
    unshare = _of(action(actions, "unshare", "neither share nor take a basin any more", _change("unshare")))
    unshare.add_argument("basin", metavar="BASIN")


def _terms(actions: Any) -> None:  # noqa: ANN401 - argparse keeps the type to itself
    _of(action(actions, "pause", "let nothing flow for now", _change("pause")))
    _of(action(actions, "resume", "let it flow again, also what was said meanwhile", _change("resume")))
    _of(action(actions, "leave", "end the link, for good and at once", _change("leave")))
    trust = _of(action(actions, "trust", "say how far you trust a peer", _change("trust")))
    trust.add_argument("trust", choices=TRUSTS, help=TRUST)
    quota = _of(action(actions, "quota", "say what a peer may use of this node", _change("quota")))
    quota.add_argument("--acts", type=_number, metavar="N", help="acts a minute; more of them wait")
    quota.add_argument("--chains", type=_number, metavar="N", help="talks a day that they begin and your ems answer")
    quota.add_argument("--tokens", type=_number, metavar="N", help="model tokens a day that these may cost you")


def _of(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("peer", metavar="PEER", help="its name here; see: mesh peer list")
    return parser


def _basin(text: str) -> tuple[str, str]:
    match = _BASIN.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text[:80]!a} is no basin, nor a basin and :write")
    return match[1], match[2] or "read"


def _number(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or int(text[:20]) > 2**53 - 1:
        raise argparse.ArgumentTypeError("must be a whole number from 0 on")
    return int(text)


async def _list(options: argparse.Namespace) -> None:
    from nodes.layout import lines, table

    told = await ask(home_of(options), "peer_list", {})
    told |= await ask(home_of(options), "peer_introduced", {})
    if options.json:
        print_json(told)
        return
    if not told["peers"]:
        lines(["No peers yet. To invite somebody: mesh peer invite --give BASIN:write"])
        lines(introduced(told["introduced"]))
        return
    rows = [
        [
            one["name"],
            one["fingerprint"],
            one["state"],
            one["trust"],
            "yes" if one["connected"] else "no",
            " ".join(one["basins"]) or "-",
        ]
        for one in told["peers"]
    ]
    lines(table(["PEER", "KEY", "STATE", "TRUST", "HERE NOW", "BASINS"], rows), LIST_HANG)
    lines(introduced(told["introduced"]), 0)


async def _show(options: argparse.Namespace) -> None:
    from mesh.words import plain
    from nodes.layout import lines, when

    told = await ask(home_of(options), "peer_show", {"peer": options.peer})
    if options.json:
        print_json(told)
        return
    today, quota = told["today"], told["quota"]
    paused = " and ".join(
        who for who, is_so in (("you", told["paused"]["here"]), ("them", told["paused"]["there"])) if is_so
    )
    refused = ", ".join(f"{reason} {times}" for reason, times in told["refused"].items()) or "nothing"
    used = _used(today)
    room = plain(f", or in {told['room']}") if told["room"] else ""
    state = f"{told['state']}{f' by {paused}' if told['state'] == 'paused' else ''}"
    lines(
        [
            f"{told['name']}  {told['fingerprint']}  {told['mesh']}",
            f"state    {state}; {'connected now' if told['connected'] else 'not connected'}",
            f"trust    {told['trust']} from you, {told['their_trust']} from them",
            f"address  {' '.join(told['addresses']) or 'they dial us'}{room}",
            f"you      give {_listed(told['gives'])}; take {_listed(told['takes'])}",
            f"they     give {_listed(told['their_gives'])}; take {_listed(told['their_takes'])}",
            f"quota    {_counted(quota, _QUOTA)}",
            f"today    {used}{_price(today)}{_barred(today)}",
            f"refused  {plain(refused)}",
            *(f"said     {when(note['at_ms'])}: {plain(note['text'])}" for note in told["notes"]),
        ],
        HANG,
    )


def _used(today: dict[str, Any]) -> str:
    from nodes.layout import counted

    counts = [counted(today[f"{one}s"], one) for one in ("act", "chain", "token")]
    replies = f"{today['replies']:,} {'reply' if today['replies'] == 1 else 'replies'}"
    return ", ".join([*counts[:2], replies, counts[2]])


def _barred(today: dict[str, Any]) -> str:
    """What was not answered since the quota of a day was used up."""
    return f"; {today['barred']} not answered, the quota being used up" if today["barred"] else ""


def _price(today: dict[str, Any]) -> str:
    """What the replies of today cost, as far as the settings know prices."""
    unknown = f"; {today['unpriced']} of the replies at a price unknown" if today["unpriced"] else ""
    if not today["price"] and not unknown:
        return ""
    return f", {today['price']:.4f} at the vendors' prices{unknown}"


async def _address(options: argparse.Namespace) -> None:
    from mesh.words import plain
    from nodes.layout import lines

    told = await ask(home_of(options), "peer_address", {"peer": options.peer, "addresses": options.addresses})
    if options.json:
        print_json(told)
    else:
        lines([plain(f"{told['name']} is dialled at {' '.join(told['addresses']) or 'no address; it dials you'}.")])


async def _rename(options: argparse.Namespace) -> None:
    from mesh.words import plain
    from nodes.layout import lines

    told = await ask(home_of(options), "peer_rename", {"peer": options.peer, "name": options.name})
    if options.json:
        print_json(told)
    else:
        lines([plain(f"You call them {told['name']} now.")])


async def _room(options: argparse.Namespace) -> None:
    from mesh.words import plain
    from nodes.commands.matrix import ROOM_S, room_of
    from nodes.layout import lines

    given = {"peer": options.peer, "room": room_of(options.room) if options.room else None}
    told = await ask(home_of(options), "peer_room", given, ROOM_S)
    if options.json:
        print_json(told)
    elif told["room"]:
        lines([plain(f"Without a better way, {told['name']} is met in {told['room']}; they say the same of you.")])
    else:
        lines([plain(f"{told['name']} is met in no room.")])


async def _wishes(options: argparse.Namespace) -> None:
    from nodes.layout import lines, table, when

    told = await ask(home_of(options), "peer_wishes", {})
    if options.json:
        print_json(told)
    elif not told["wishes"]:
        lines(["No em asks for anything."])
    else:
        rows = [[one["id"][:12], one["em"], one["kind"], when(one["at_ms"]), one["text"]] for one in told["wishes"]]
        lines([*table(["ID", "EM", "ASKS FOR", "SINCE", "WORDS"], rows), "", _WISHES])


async def _dismiss(options: argparse.Namespace) -> None:
    from nodes.layout import lines

    told = await ask(home_of(options), "peer_dismiss", {"wish": options.wish})
    if options.json:
        print_json(told)
    else:
        lines([f"{told['dismissed'][:12]} is off the list."])


def _counted(numbers: dict[str, int], names: dict[str, str]) -> str:
    return ", ".join(f"{numbers[key]:,} {name}" for key, name in names.items())


def _listed(basins: dict[str, str]) -> str:
    return " ".join(basin if may == "read" else f"{basin}:{may}" for basin, may in basins.items()) or "nothing"


def _change(operation: str) -> Any:  # noqa: ANN401 - a command
    """A command that says a statement."""

    async def run(options: argparse.Namespace) -> None:
        from mesh.words import plain
        from nodes.errors import ConfigError
        from nodes.layout import lines

        names = ("peer", "basin", "write", "trust", "acts", "chains", "tokens")
        given = {name: getattr(options, name) for name in names if hasattr(options, name)}
        if operation == "quota" and given["acts"] is given["chains"] is given["tokens"] is None:
            raise ConfigError(["say what changes: --acts N, --chains N or --tokens N; mesh peer show has the rest"])
        told = await ask(home_of(options), f"peer_{operation}", given)
        if options.json:
            print_json(told)
        else:
            basins = ", ".join(told["basins"]) or "no basins"
            lines([plain(f"{told['name']}: {told['state']}, {told['trust']}, {basins}."), *_NEXT.get(operation, [])], 0)

    return run
