"""`mesh peer invite|accept`: a code by which two meshes link, and what whoever got one agrees to."""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final

from nodes.commands.asking import DAY_S, ask, span
from nodes.commands.common import home_of, print_json
from nodes.commands.matrix import ROOM_S, room_of

DECLINED: Final = 1
TRUST: Final = "what they see and may use: close, known, guest (what is said from now on), silent (not listened to)"


def actions(action: Callable[..., argparse.ArgumentParser], basin: Callable[[str], Any], trusts: Sequence[str]) -> None:
    """What the command takes; `basin` reads a share."""
    invite = action("invite", "make a code by which one other mesh may link with this one", _invite)
    invite.add_argument("--give", type=basin, action="append", default=[], metavar="BASIN[:write]", help="they read it")
    invite.add_argument("--take", type=basin, action="append", default=[], metavar="BASIN[:write]", help="you read it")
    invite.add_argument(
        "--expires", type=span(366), default=7 * DAY_S, metavar="TIME", help="30m, 12h, 7d (the default)"
    )
    invite.add_argument("--trust", choices=trusts, default="guest", help=f"{TRUST} (default: guest)")
    invite.add_argument(
        "--as", dest="name", metavar="NAME", help="what you call them (default: what they call themselves)"
    )
    invite.add_argument("--room", metavar="ROOM", help="a Matrix room where they are waited for as well")
    accept = action("accept", "read an invitation, and link if you say yes", _accept)
    accept.add_argument("code", metavar="CODE", nargs="+", help="the code or link that you were given")
    accept.add_argument("--trust", choices=trusts, default="guest", help=f"{TRUST} (default: guest)")
    accept.add_argument(
        "--as", dest="name", metavar="NAME", help="what you call them (default: what they call themselves)"
    )
    accept.add_argument("--room", metavar="ROOM", help="the Matrix room where they wait, if they have told you one")
    accept.add_argument("--yes", action="store_true", help="ask nothing: for scripts")


async def _invite(options: argparse.Namespace) -> None:
    from mesh.words import plain
    from nodes.layout import lines, when

    given: dict[str, Any] = {
        "gives": dict(options.give),
        "takes": dict(options.take),
        "expires_s": options.expires,
        "trust": options.trust,
        "name": options.name,
        "room": room_of(options.room) if options.room else None,
    }
    told = await ask(home_of(options), "peer_invite", given, ROOM_S if options.room else None)
    if options.json:
        print_json(told)
        return
    lines([told["code"], "", told["link"]])
    _show_code(told["link"])
    room = f" --room '{told['room']}'" if told["room"] else ""
    shared = _shares("they would hear", given["gives"], "and speak in") + _shares(
        "you would hear", given["takes"], "and speak in"
    )
    lines(
        [
            "",
            "Give it to one person, by a way that you trust; it is for one mesh.",
            f"It holds until {when(told['expires_s'] * 1000)}.",
            *shared,
            plain(f"They run: mesh peer accept CODE{room}"),
        ]
    )


def _show_code(link: str) -> None:
    """Draw the link where a telephone can see it."""
    if not sys.stdout.isatty():
        return
    from nodes.qr import MAX_CHARS, drawn, encode

    if len(link) <= MAX_CHARS:
        sys.stdout.write("\n" + "".join(f"{line}\n" for line in drawn(encode(link.upper()))))


async def _accept(options: argparse.Namespace) -> int:
    from mesh.words import plain
    from nodes.errors import NodeError
    from nodes.layout import lines, when

    home, code = home_of(options), " ".join(options.code)
    room, timeout_s = (room_of(options.room), ROOM_S) if options.room else (None, None)
    offer = await ask(home, "peer_look", {"code": code, "room": room}, timeout_s)
    if not options.json:
        lines(
            [
                plain(f"{offer['name']} invites you to link your meshes."),
                f"  theirs   {offer['fingerprint']}  {offer['mesh']}",
                f"  yours    {offer['own_fingerprint']}  {offer['own']}",
                *_shares("you would hear", offer["gives"], "and speak in"),
                *_shares("they would hear", offer["takes"], "and speak in"),
                f"  trust    {options.trust} (--trust close, known, guest or silent)",
                f"  until    {when(offer['expires_s'] * 1000)}",
            ]
        )
    if not options.yes:
        if options.json or not sys.stdin.isatty():
            raise NodeError("a person decides this: run it in a terminal, or with --yes")
        sys.stdout.write("Link with them? [y/N] ")
        sys.stdout.flush()
        if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
            lines(["Nothing was agreed on; the invitation can still be used."])
            return DECLINED
    given = {"code": code, "offer": offer["offer"], "trust": options.trust, "name": options.name, "room": room}
    told = await ask(home, "peer_accept", given, timeout_s)
    if options.json:
        print_json(told)
    elif told["state"] == "linked":
        lines([plain(f"You are linked with {told['name']}.")])
    else:
        soon = f"Accepted. You will be linked with {told['name']} as soon as both nodes have said so: mesh peer list"
        lines([plain(soon)], 0)
    return 0


def _shares(who: str, basins: dict[str, str], also: str) -> list[str]:
    """Lines that say what is shared."""
    return [f"  {who} {'' if may == 'read' else also + ' '}{basin}" for basin, may in sorted(basins.items())]
