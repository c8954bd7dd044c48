"""`mesh matrix login` and `logout`: accounts through which the node speaks in Matrix. Shows no secret."""

import argparse
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from nodes.commands.common import home_of, print_json
from nodes.commands.matrix import login_of
from nodes.errors import NodeError
from protocol.address import check_name

if TYPE_CHECKING:
    from mesh.bridges.matrix.account import Session
    from nodes.home import Home
    from nodes.matrix.login import Login

KEYS: Final = "matrix"  # in data/: the keys of encrypted rooms, where the bridge keeps them as well
MAX_SECRET: Final = 4_096  # bytes of a password's or token's file
USER: Final = re.compile(r"@[^\s:]{1,254}:[^\s:]\S{0,229}")


async def login(options: argparse.Namespace) -> None:
    """Log in with an account, and keep the session."""
    from mesh.clock import now_ms
    from mesh.words import plain
    from nodes.layout import lines
    from nodes.matrix import homeserver
    from nodes.matrix.login import Login, read_login, write_login

    home, owner = home_of(options), owner_of(options.owner)
    before = read_login(home.keys)
    _require_place(home, options.em, before)
    if options.user is None and options.token_file is None:
        raise NodeError("whose account? give USER as well, or an access token: --token-file FILE")
    if options.new_keys and options.token_file is not None:
        raise NodeError("new signing keys need the account's password, not a token")
    url = await homeserver.find(options.homeserver)
    await homeserver.look(url, now_ms)  # nothing secret goes to what is no homeserver
    password = None if options.token_file is not None else _password(options)
    session = await _log_in(url, options, password)
    login = replace(before or Login(url), owner=owner or (before.owner if before else None))
    problem = _taken(session, login, options.em)
    if problem is None and options.new_keys and password is not None:
        problem = await _new_keys(home, session, password)
    if problem is not None:
        if password is not None:
            await _log_out(session)
        raise NodeError(problem)
    if options.em is None:
        old, after = login.account, replace(login, homeserver=url, account=session)
    else:
        old, after = login.own.get(options.em), login.with_own(options.em, session)
    write_login(home.keys, after)
    if old is not None and old.token != session.token:
        await _log_out(old)
    if options.json:
        print_json({"user": session.user_id, "device": session.device_id, "homeserver": url, "em": options.em})
        return
    who = options.em or "The node"
    told = f"{who} is {plain(session.user_id)} at {url}. Start the node, or restart it, to use that: mesh up."
    lines([told, who_invites(after)], 0)


def _require_place(home: "Home", em: str | None, before: "Login | None") -> None:
    """Raise NodeError when an account would be of no use."""
    primary = before is not None and (before.registration is not None or before.account is not None)
    if em is None and before is not None and before.registration is not None:
        raise NodeError(
            "this home is registered as an appservice, and that is what the node uses; to use an account instead:"
            " mesh matrix logout --appservice; for an em's own account: --em EM"
        )
    if em is not None and not primary:
        raise NodeError("the node itself logs in first, without --em; then its ems may have accounts of their own")
    if em is not None and not (home.ems / check_name(em)).is_dir():
        raise NodeError(f"there is no em {em} in {home.ems}")


def _taken(session: "Session", login: "Login", em: str | None) -> str | None:
    """Why an account cannot be used here, or None."""
    if session.user_id == login.owner:
        return f"{session.user_id} is you; make an account for the node: what it says must not be yours"
    others = {name: held.user_id for name, held in login.own.items() if name != em}
    if em is not None and login.account is not None:
        others["the node"] = login.account.user_id
    holder = next((name for name, user in others.items() if user == session.user_id), None)
    return f"{session.user_id} is the account of {holder} already; use another" if holder else None


async def _new_keys(home: "Home", session: "Session", password: str) -> str | None:
    """Give an account signing keys that the node has; returns why that was not possible."""
    from mesh.bridges.matrix.account import sign_anew
    from mesh.bridges.matrix.errors import MatrixError

    try:
        await sign_anew(session, home.data / KEYS, password)
    except MatrixError as error:
        return f"{session.user_id} cannot have new signing keys: {error}"
    return None


async def _log_in(url: str, options: argparse.Namespace, password: str | None) -> "Session":
    """A session, by password or else by token. Raises NodeError, with what to do."""
    from mesh.bridges.matrix.account import check_token, log_in
    from mesh.bridges.matrix.errors import MatrixError, MatrixLoggedOut, MatrixRefused, MatrixUnavailable
    from mesh.words import plain

    try:
        if password is not None:
            return await log_in(url, options.user, password)
        session = await check_token(url, _secret(options.token_file))
    except MatrixLoggedOut:
        raise NodeError(
            f"{url} does not know this access token; copy it anew from a session that is logged in"
        ) from None
    except MatrixRefused as error:
        if error.code == "M_FORBIDDEN":
            raise NodeError(f"{url} does not let {plain(options.user, 80)} in with this password; check both") from None
        raise NodeError(f"{url} takes no password here: {error}; try --token-file FILE with an access token") from None
    except MatrixUnavailable as error:
        later = "later" if error.retry_after_s is None else f"in {error.retry_after_s:,.0f} s"
        raise NodeError(f"{url}: {error}; try again {later}") from None
    except MatrixError as error:
        raise NodeError(f"{url}: {error}; try again later") from None
    if options.user not in {None, session.user_id, session.user_id[1:].partition(":")[0]}:
        raise NodeError(f"the access token is that of {plain(session.user_id, 80)}, who is somebody else")
    return session


def _password(options: argparse.Namespace) -> str:
    if options.password_file is not None:
        return _secret(options.password_file)
    if not sys.stdin.isatty():
        raise NodeError("there is no terminal to ask for the password on; use --password-file FILE")
    return _asked(f"Password of {options.user}: ")


def _asked(question: str) -> str:
    """What a person types unseen. Ctrl-C ends it at once: the loop's own way waits for the line. Raises NodeError."""
    import signal
    from getpass import getpass

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return getpass(question)
    except KeyboardInterrupt:
        sys.stderr.write("\n")
        raise
    except EOFError:
        sys.stderr.write("\n")
        raise NodeError("no password was given, so nothing was done") from None
    finally:
        signal.signal(signal.SIGINT, before)


def _secret(path: Path) -> str:
    """The first line of a file. Raises NodeError."""
    from nodes.textfile import read_bytes

    try:
        lines = read_bytes(path, MAX_SECRET).decode("utf-8").splitlines()
    except UnicodeDecodeError:
        raise NodeError(f"{path} is not text") from None
    if not lines or not lines[0]:
        raise NodeError(f"{path} has nothing on its first line")
    return lines[0]


async def logout(options: argparse.Namespace) -> None:
    """End a session at its homeserver, or forget the registration."""
    from nodes.layout import lines
    from nodes.matrix.login import REGISTRATION_FILE, remove_login, write_login

    home = home_of(options)
    login = login_of(home)
    after, session = _without(login, options)
    if after.registration is None and after.account is None and after.own:
        raise NodeError(f"log out the ems that have accounts of their own first: {', '.join(sorted(after.own))}")
    problem = None if session is None else await _log_out(session)
    if after.registration is None and after.account is None:
        remove_login(home.keys)
    else:
        write_login(home.keys, after)
    if session is None:
        (home.path / REGISTRATION_FILE).unlink(missing_ok=True)
        told = [f"The registration is forgotten. Take {REGISTRATION_FILE} out of the homeserver's settings as well."]
    elif problem is None:
        told = [f"{session.user_id} is logged out, and its session forgotten here."]
    else:
        told = [f"The session of {session.user_id} is forgotten here, and not logged out: {problem}"]
    if options.json:
        print_json({"user": session.user_id if session else None, "problem": problem})
    else:
        lines([*told, "A node that runs must be restarted."], 0)


def _without(login: "Login", options: argparse.Namespace) -> "tuple[Login, Session | None]":
    """What is left of a login, and the session that is to end; None: the registration goes. Raises NodeError."""
    if options.appservice:
        if login.registration is None:
            raise NodeError("this home has no registration")
        return replace(login, registration=None, listening=None), None
    if options.em is None:
        if login.account is None:
            raise NodeError("the node has no account to log out; to forget its registration: --appservice")
        return replace(login, account=None), login.account
    if options.em not in login.own:
        raise NodeError(f"{check_name(options.em)} has no account of its own")
    return login.with_own(options.em, None), login.own[options.em]


async def _log_out(session: "Session") -> str | None:
    """End a session at its homeserver; returns why that was not possible."""
    import asyncio

    from mesh.bridges.matrix.api import Access, Api
    from mesh.bridges.matrix.errors import MatrixError, MatrixLoggedOut
    from nodes.matrix.homeserver import ASK_S

    api = Api(Access(session.homeserver, session.token))
    try:
        async with asyncio.timeout(2 * ASK_S):
            await api.call("POST", ("client", "v3", "logout"), {})
    except MatrixLoggedOut:
        return None  # it was over already
    except (MatrixError, TimeoutError) as error:
        return f"{error or 'the homeserver did not answer'}; end it in a client, in the account's list of sessions"
    finally:
        await api.close()
    return None


def owner_of(text: str | None) -> str | None:
    """A Matrix user as an option has it. Raises NodeError."""
    if text is not None and not (USER.fullmatch(text) and text.isprintable()):
        raise NodeError(f"{text[:80]!a} is no Matrix user; give one such as @mara:example.org")
    return text


def who_invites(login: "Login") -> str:
    """Who may bring ems into rooms, in a sentence."""
    if login.owner is None:
        return "Nobody may invite ems from a client yet: give --owner, or set matrix.inviters in mesh.yaml."
    return f"{login.owner} may invite ems from a client."
