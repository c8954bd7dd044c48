"""The account: an ordinary user of any homeserver speaks for all ems, with their names before their words.

Our own sync loop: the place moves in the transaction that keeps the events, what a limited timeline leaves out is
fetched, and every failure waits before the next attempt.
"""

import asyncio
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NoReturn

import structlog

from mesh.bridges.matrix.api import TIMEOUT_S, Access, Api, As
from mesh.bridges.matrix.common import CLIENT, Own, Speaking
from mesh.bridges.matrix.content import prefixed
from mesh.bridges.matrix.errors import MatrixAsks, MatrixFull, MatrixRefused, MatrixUnavailable
from mesh.bridges.matrix.inbox import Inbound, is_user, parse_event
from mesh.bridges.matrix.outbox import Done
from mesh.bridges.matrix.port import Caps, Speaker
from mesh.bridges.matrix.rooms import since_joining
from mesh.bridges.matrix.shape import as_dict, as_dicts
from mesh.bridges.matrix.sync import FILTER, encrypts, events_of, invitations, rooms_of
from mesh.bridges.matrix.vault import Vault
from mesh.clock import Clock
from mesh.store import Store
from mesh.words import plain

POLL_MS: Final = 30_000  # how long the homeserver waits for something new
GAP_PAGE: Final = 100  # events a request when filling a gap
GAP_PAGES: Final = 50  # requests a gap; beyond it the oldest stay unread, as after a long holiday
BACKOFF_S: Final = (1.0, 15.0)  # first and longest wait after a failure, doubling between: people wait when it is back
EARLY_S: Final = 1.0  # between two answers with nothing new, when the homeserver does not wait as asked
LOST_PLACE: Final = frozenset({"M_UNKNOWN_POS", "M_INVALID_PARAM"})  # the homeserver does not know our cursor

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Session:
    """A login that lasts. `token` is never shown."""

    homeserver: str
    user_id: str
    device_id: str
    token: str = field(repr=False)


async def log_in(homeserver: str, user: str, password: str) -> Session:
    """Log in by password, once; keep the session. Raises MatrixRefused, MatrixUnavailable."""
    body = {
        "type": "m.login.password",
        "identifier": {"type": "m.id.user", "user": user},
        "password": password,
        "initial_device_display_name": "ampmesh",
    }
    answer = await _once(Access(homeserver, ""), "POST", "login", body)
    return _session(homeserver, answer, answer.get("access_token"))


async def check_token(homeserver: str, token: str) -> Session:
    """The session of an access token that a person brought. Raises MatrixLoggedOut when it is void."""
    return _session(homeserver, await _once(Access(homeserver, token), "GET", "account/whoami"), token)


async def sign_anew(session: Session, keys: Path, password: str) -> None:
    """Give an account new signing keys, since the old ones are lost; its device is signed at the next start.

    `keys` is the folder for the keys of encrypted rooms. Whoever verified the account by its old keys is told by their
    client that they changed. Raises MatrixRefused when the password is wrong, MatrixUnavailable, also while a node
    uses the folder.
    """
    from mesh.bridges.matrix.crosssigning import SIGNING, SigningKeys

    new = SigningKeys.new()
    body, path = new.upload(session.user_id), "keys/device_signing/upload"
    access, vault = Access(session.homeserver, session.token), Vault(keys, session.user_id)
    try:
        vault.set(**{SIGNING: new.dump()})  # before they are known, since others then depend on them
        try:
            await _once(access, "POST", path, body)
        except MatrixAsks as error:
            who = {"type": "m.id.user", "user": session.user_id}
            auth = {"type": "m.login.password", "identifier": who, "password": password, "session": error.session}
            await _once(access, "POST", path, body | {"auth": auth})
    finally:
        vault.close()


async def _once(access: Access, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
    api = Api(access)
    try:
        return await api.call(method, (*CLIENT, *path.split("/")), body)
    finally:
        await api.close()


def _session(homeserver: str, answer: Mapping[str, Any], token: object) -> Session:
    user_id, device_id = answer.get("user_id"), answer.get("device_id")
    if not (is_user(user_id) and isinstance(device_id, str) and device_id.isprintable() and isinstance(token, str)):
        raise MatrixUnavailable("the homeserver's answer to the login names no user, device or token")
    return Session(homeserver, user_id, device_id, token)


class Account(Speaking):
    """A MatrixPort through an ordinary account; with `own`, of one speaker beside another port: see `Several`."""

    def __init__(
        self, session: Session, store: Store, clock: Clock, on_done: Done | None = None, *, own: Own | None = None
    ) -> None:
        api = Api(Access(session.homeserver, session.token))
        caps = Caps("account", separate_identities=own is not None)
        super().__init__(api, store, clock, caps, on_done, own=own)
        self._me, self._device = session.user_id, session.device_id
        self.ready = asyncio.Event()
        self.reached = False

    async def run(self) -> None:
        """Receive and send until cancelled. Raises MatrixLoggedOut (in an ExceptionGroup) when the token is void."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._listen(), name="matrix sync")
                if not self.own:  # else the port beside it sends for both
                    group.create_task(self.outbox.run(), name="matrix outbox")
        finally:
            self.ready.clear()
            self.crypto.close()
            await self._api.close()

    def user_id(self, speaker: str) -> str:  # noqa: ARG002 - one user speaks for all
        """The account."""
        return self._me

    def owns(self, user_id: str) -> bool:
        """Whether a user is the account."""
        return user_id == self._me

    @property
    def replaces(self) -> bool:
        """Whether lost keys are replaced: not without the person whose account it is."""
        return False

    async def device_of(self, user: str, known: str | None) -> tuple[str, As | None]:  # noqa: ARG002 - it has one
        """The device of the login."""
        return self._device, None

    async def seated(self, room: str) -> list[str]:  # noqa: ARG002 - what it hears of, it sits in
        """The account."""
        return [self._me]

    async def _acting(self, speaker: str) -> None:  # noqa: ARG002 - the token says who we are
        return None

    async def ensure(self, speaker: Speaker) -> str:
        """Returns the account's user id. A shared account's names travel with each message."""
        if self.own:
            try:
                await self._show(speaker, self._me, None)
            except MatrixRefused as error:  # some homeservers let nobody change their name
                log.warning("an account's name or picture cannot be set", user=self._me, code=error.code)
        return self._me

    def _dress(self, speaker: Speaker, content: Mapping[str, Any]) -> Mapping[str, Any]:
        return content if self.own else prefixed(content, speaker.key, speaker.name, speaker.avatar)

    async def _listen(self) -> NoReturn:
        """Sync for ever. Why nothing is heard is told once: a homeserver that is away all night fills no log."""
        wait_s, told = BACKOFF_S[0], ""
        while True:
            try:
                await self._sync()
            except MatrixRefused as error:
                if error.code in LOST_PLACE and self.inbox.cursor(self._me):
                    log.warning(
                        "the homeserver does not know our place any more; listening begins anew", code=error.code
                    )
                    self.inbox.forget_cursor(self._me)
                reason = plain(str(error))
            except (MatrixUnavailable, MatrixFull) as error:
                reason = plain(str(error))
            else:
                if told:
                    log.info("Matrix is heard again", user=self._me)
                wait_s, told = BACKOFF_S[0], ""
                self.ready.set()
                self.reached = True
                continue
            self.reached = False
            if reason != told:
                log.info("nothing can be heard from Matrix just now; it is tried again", reason=reason)
            told = reason
            await asyncio.sleep(wait_s * random.uniform(0.75, 1.0))
            wait_s = min(2 * wait_s, BACKOFF_S[1])

    async def _sync(self) -> None:
        """Ask once and keep what came, at once in a run's first time.

        The first time ever, without a place, only open invitations count: what was said before is not for us.
        """
        await self.crypto.fleet.resume(self._me)
        since = self.inbox.cursor(self._me)
        query = {"filter": FILTER, "timeout": str(POLL_MS if self.ready.is_set() else 0)} | (
            {"since": since} if since else {}
        )
        begun = asyncio.get_running_loop().time()
        answer = await self._api.call("GET", (*CLIENT, "sync"), query=query, timeout_s=TIMEOUT_S + POLL_MS / 1000)
        place = answer.get("next_batch")
        if not isinstance(place, str):
            raise MatrixUnavailable("the homeserver's answer to a sync has no next_batch")
        await self.crypto.hear(self._me, answer)
        found = list(invitations(answer, self._me, since))
        self.inbox.note_encrypted([room for room, part in rooms_of(answer, "invite") if encrypts(part, "invite_state")])
        for section in ("join", "leave"):
            for room, part in rooms_of(answer, section):
                if encrypts(part, "state"):
                    self.inbox.note_encrypted([room])
                    if section == "join":
                        await self.crypto.equip(room)
                if since:
                    found += await self._heard(room, part, since)
        await self.crypto.notice(found)
        self.crypto.open_heard(self._me)  # before what is new, and not what this sync takes back
        heard = [event for event in found if event.sender != self._me]
        new = self.inbox.take(await self.crypto.opened(heard, catch_up=False), (self._me, place))
        if not new and place == since and asyncio.get_running_loop().time() - begun < EARLY_S:
            await asyncio.sleep(EARLY_S)

    async def _heard(self, room: str, part: Mapping[str, Any], since: str) -> list[Inbound]:
        """What a room said since, oldest first, from our joining on."""
        raw = events_of(part, "timeline")
        timeline = as_dict(part.get("timeline"))
        kept, joined = since_joining(raw, self._me)
        if timeline.get("limited") is True:
            self.crypto.forget_people(room)
        start = timeline.get("prev_batch")
        if timeline.get("limited") is True and isinstance(start, str) and not joined:
            kept = await self._gap(room, start, since) + kept
        events = [parse_event(one, "account", room) for one in kept]
        return [event for event in events if event]

    async def _gap(self, room: str, start: str, since: str) -> list[dict[str, Any]]:
        """What a limited timeline left out, oldest first."""
        missed = list[dict[str, Any]]()
        for _ in range(GAP_PAGES):
            query = {"dir": "b", "from": start, "to": since, "limit": str(GAP_PAGE)}
            try:
                answer = await self._api.call("GET", (*CLIENT, "rooms", room, "messages"), query=query)
            except MatrixRefused as error:
                log.warning("a gap in a room cannot be read", code=error.code)
                return missed
            page, joined = since_joining(as_dicts(answer.get("chunk"))[::-1], self._me)
            missed = page + missed
            end = answer.get("end")
            if joined or not isinstance(end, str) or end == start:
                return missed
            start = end
        log.warning("a gap in a room is too long; its oldest events stay unread", events=len(missed))
        return missed
