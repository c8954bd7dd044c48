"""`mesh matrix`: the ems in Matrix rooms. Others: matrix_register, matrix_login, matrix_rooms, matrix_doctor."""

import argparse
import importlib
import re
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from nodes.commands.common import add_home, add_json, home_of, print_json

if TYPE_CHECKING:
    from nodes.home import Home
    from nodes.matrix.login import Login

Run = Callable[[argparse.Namespace], Coroutine[Any, Any, int | None]]

LISTEN: Final = "127.0.0.1:29318"  # reached from this machine alone; 29318 is free in the lists of usual ports
NO_LOGIN: Final = (
    "this home has no way into Matrix yet; if you run the homeserver: mesh matrix register URL --server-name NAME;"
    " with an account on any: mesh matrix login URL USER"
)
UNKNOWN: Final = "there is no operation 'matrix_"  # how nodes.control answers when its node has no bridge
ROOM_S: Final = 200.0  # for what is done in a room: joining it from afar takes minutes, and words in it may be limited
FORBIDDEN: Final = "M_FORBIDDEN"  # Matrix's word for: not invited, not allowed
HANG: Final = len("Problem:  ")
MATRIX_TO: Final = "https://matrix.to/#/"  # what clients copy as a room's link
ROOM: Final = "its alias (lounge:example.org, or '#lounge:example.org' in quotes), id ('!…') or link"
GIVEN: Final = re.compile(r"#[^\s/:]+:[^\s/]+|![^\s/]+")  # a room as a homeserver knows it
OURS: Final = f"{ROOM}, or its name in `mesh matrix rooms`"


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    _ways(actions)
    _rooms(actions)
    _questions(actions)


def _ways(actions: Any) -> None:  # noqa: ANN401 - argparse keeps the type to itself
    register = _action(actions, "register", "make the file by which your homeserver takes this node as an appservice")
    register.set_defaults(run=_late("matrix_register", "register"))
    register.add_argument("homeserver", metavar="URL", help="where the homeserver is: http://127.0.0.1:8008")
    register.add_argument("--server-name", metavar="NAME", help="what stands after the colon in its users' ids")
    register.add_argument("--owner", metavar="USER", help="your own Matrix user, who may invite ems: @mara:example.org")
    register.add_argument("--url", metavar="URL", help="where the homeserver reaches this node (default: as --listen)")
    register.add_argument("--listen", metavar="HOST:PORT", default=LISTEN, help=f"(default: {LISTEN})")
    register.add_argument(
        "--prefix", metavar="_NAME_", help="of the ems' users (default: _mesh_), where another has it"
    )
    register.add_argument("--force", action="store_true", help="replace a registration: the homeserver must read it")
    login = _action(actions, "login", "log in with an ordinary account; the node asks for its password")
    login.set_defaults(run=_late("matrix_login", "login"))
    login.add_argument("homeserver", metavar="URL", help="where the homeserver is, or a server's name: example.org")
    login.add_argument("user", metavar="USER", nargs="?", help="@ampmesh:example.org; not needed with --token-file")
    secret = login.add_mutually_exclusive_group()
    secret.add_argument("--password-file", type=Path, metavar="FILE", help="holds the password")
    secret.add_argument("--token-file", type=Path, metavar="FILE", help="holds an access token in place of a password")
    login.add_argument("--em", metavar="EM", help="the account is this em's own, beside the node's")
    login.add_argument("--new-keys", action="store_true", help="for encrypted rooms, where others signed the account")
    login.add_argument("--owner", metavar="USER", help="your own Matrix user, who may invite ems: @mara:example.org")
    logout = _action(actions, "logout", "log an account out at its homeserver, and forget it")
    logout.set_defaults(run=_late("matrix_login", "logout"))
    which = logout.add_mutually_exclusive_group()
    which.add_argument("--em", metavar="EM", help="this em's own account")
    which.add_argument("--appservice", action="store_true", help="forget the registration instead")


def _rooms(actions: Any) -> None:  # noqa: ANN401 - argparse keeps the type to itself
    join = _action(actions, "join", "bring a basin and its ems into a room")
    join.set_defaults(run=_join)
    join.add_argument("room", metavar="ROOM", help=ROOM)
    join.add_argument("--basin", metavar="BASIN", required=True, help="what is said in one is said in the other")
    join.add_argument("--ems", metavar="EM,EM", help="who joins (default: every em that listens in the basin)")
    leave = _action(actions, "leave", "leave a room")
    leave.set_defaults(run=_leave)
    leave.add_argument("room", metavar="ROOM", help=OURS)
    leave.add_argument("--em", metavar="EM", help="this em alone (default: all, and the room is forgotten)")
    invite = _action(actions, "invite", "bring one more em into a room")
    invite.set_defaults(run=_invite)
    invite.add_argument("em", metavar="EM")
    invite.add_argument("room", metavar="ROOM", help=OURS)
    space = _action(actions, "space", "make, or bring up to date, the space that lists this mesh's rooms")
    space.set_defaults(run=_space)
    space.add_argument("--name", metavar="NAME", help="what a new space is called (default: as the mesh)")


def _questions(actions: Any) -> None:  # noqa: ANN401 - argparse keeps the type to itself
    _action(actions, "rooms", "which rooms there are, and who sits there").set_defaults(
        run=_late("matrix_rooms", "rooms")
    )
    _action(actions, "status", "how the bridge to Matrix is").set_defaults(run=_status)
    doctor = _action(actions, "doctor", "what is wrong between here and the homeserver, and what to do")
    doctor.set_defaults(run=_late("matrix_doctor", "doctor"))


def _action(actions: Any, name: str, text: str) -> argparse.ArgumentParser:  # noqa: ANN401 - argparse's own
    parser: argparse.ArgumentParser = actions.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    add_home(parser)
    add_json(parser)
    return parser


def _late(module: str, name: str) -> Run:
    """A command that is imported when it is run."""

    def run(options: argparse.Namespace) -> Coroutine[Any, Any, int | None]:
        return getattr(importlib.import_module(f"nodes.commands.{module}"), name)(options)

    return run


def login_of(home: "Home") -> "Login":
    """How a home logs in. Raises NodeError when it does not."""
    from nodes.errors import NodeError
    from nodes.matrix.login import read_login

    login = read_login(home.keys)
    if login is None:
        raise NodeError(NO_LOGIN)
    return login


async def ask(home: "Home", operation: str, given: dict[str, Any]) -> dict[str, Any]:
    """Have the running node do something in Matrix. Raises NodeError, NotRunning."""
    from nodes.commands.assembly import connect
    from nodes.errors import NodeError
    from nodes.home import at_home

    login_of(home)
    async with connect(home) as client:
        try:
            return await client.request(f"matrix_{operation}", given)
        except NodeError as error:
            if str(error).startswith(UNKNOWN):
                raise NodeError(
                    "the node was started before it had a way into Matrix; stop it and start it again:"
                    f" mesh up{at_home(home.path)}"
                ) from None
            raise


async def _entering(home: "Home", operation: str, given: dict[str, Any]) -> dict[str, Any]:
    """Ask for what needs leave to be in a room; where that is missing, the error says who must be let in."""
    from nodes.errors import NodeError

    try:
        return await ask(home, operation, given)
    except NodeError as error:
        if FORBIDDEN not in str(error):
            raise
        told = str(error).removesuffix(".")  # the homeserver's own
        raise NodeError(f"{told}; invite {user_of(login_of(home))} to it in your client, then try again") from None


def user_of(login: "Login") -> str:
    """The node's own Matrix user."""
    made = login.registration
    if made is not None:
        return f"@{made.bot}:{made.server_name}"
    return login.account.user_id if login.account else "the node"


def room_of(text: str) -> str:
    """A room as the homeserver knows it: an id, or an alias, whose `#` may be left out. Raises NodeError."""
    from urllib.parse import unquote

    from mesh.words import plain
    from nodes.errors import NodeError

    room = unquote(text.removeprefix(MATRIX_TO).partition("?")[0]) if text.startswith(MATRIX_TO) else text
    if ":" in room and room[0] not in "#!@":
        room = f"#{room}"
    if not GIVEN.fullmatch(room) or not room.isprintable():
        raise NodeError(f"{plain(text, 80)!a} is no room; give {ROOM}")
    return room


def _known_as(text: str) -> str:
    """A room that the node knows: by id, alias or link, or else by the name that people see."""
    from nodes.errors import NodeError

    try:
        return room_of(text)
    except NodeError:
        return text


async def _join(options: argparse.Namespace) -> int:
    from mesh.words import plain
    from nodes.layout import lines
    from protocol.address import check_name

    home = home_of(options)
    ems = None if options.ems is None else [check_name(em.strip()) for em in options.ems.split(",")]
    given = {"room": room_of(options.room), "basin": check_name(options.basin), "ems": ems}
    told = await _entering(home, "join", given)
    if options.json:
        print_json(told)
    else:
        who = ", ".join(told["joined"])
        joined = f"{who} joined" if who else "Nobody joined"
        lines([plain(f"{joined} {options.room}, which is the basin {told['basin']}.")], 0)
        lines([plain(problem) for problem in told["problems"]], 0)
    return 0 if told["joined"] or not told["problems"] else 1


async def _leave(options: argparse.Namespace) -> None:
    from mesh.words import plain
    from nodes.layout import lines
    from protocol.address import check_name

    em = None if options.em is None else check_name(options.em)
    told = await ask(home_of(options), "leave", {"room": _known_as(options.room), "em": em})
    if options.json:
        print_json(told)
    else:
        lines([plain(f"{', '.join(told['left']) or 'Nobody'} left {options.room}.")], 0)


async def _invite(options: argparse.Namespace) -> None:
    from mesh.words import plain
    from nodes.layout import lines
    from protocol.address import check_name

    given = {"em": check_name(options.em), "room": _known_as(options.room)}
    told = await _entering(home_of(options), "invite", given)
    if options.json:
        print_json(told)
    else:
        who = f"{options.em} is in {options.room} as {told['user']}"
        lines([plain(f"{who}; the room is the basin {told['basin']}.")], 0)


async def _space(options: argparse.Namespace) -> None:
    from mesh.words import plain
    from nodes.layout import counted, lines

    home = home_of(options)
    told = await ask(home, "space", {"name": options.name or home.config().name})
    if options.json:
        print_json(told)
    else:
        owner = login_of(home).owner
        invited = f" {owner} was invited into it when it was made." if owner else ""
        lines([plain(f"The space {told['room']} lists {counted(told['rooms'], 'room')}.{invited}")], 0)


async def _status(options: argparse.Namespace) -> None:
    from mesh.words import plain
    from nodes.layout import lines, when

    told = await ask(home_of(options), "status", {})
    if options.json:
        print_json(told)
        return
    ready = "ready" if told["ready"] else "not ready: nothing is heard from the homeserver just now"
    lines([plain(f"The {told['way']} {told['user']} at {told['homeserver']} is {ready}.")], 0)
    lines([f"Waiting:  {told['waiting_in']:,} in, {told['waiting_out']:,} out"])
    problems = zip(told["problems_ms"], told["problems"], strict=True)
    lines([f"Problem:  {when(at_ms)}  {plain(problem)}" for at_ms, problem in problems], HANG)
