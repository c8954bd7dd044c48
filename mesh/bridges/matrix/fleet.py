"""Devices for encrypted rooms: those of our users who need one, made, listened to and replaced.

Devices exist only for users who sit in encrypted rooms, and nio is loaded with the first of them.
"""

import asyncio
import importlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn, Protocol

import structlog

from mesh.bridges.matrix.api import Api, As
from mesh.bridges.matrix.errors import MatrixError, MatrixRefused, MatrixUnavailable
from mesh.bridges.matrix.vault import Vault, has_vault, users
from mesh.errors import StoreFailed
from mesh.words import plain

if TYPE_CHECKING:
    from mesh.bridges.matrix.device import Device

POLL_MS: Final = 30_000  # how long the homeserver waits for messages to a device
BACKOFF_S: Final = (1.0, 60.0)  # first and longest wait after a failure, doubling between
BEGIN_S: Final = 20.0  # for all devices to hear what they missed, before anything else is heard

log = structlog.get_logger(__name__)


class Owner(Protocol):
    """Who has devices: one of the ways in."""

    @property
    def replaces(self) -> bool:
        """Whether a device or signing key that is lost may be replaced by a new one without anybody's password."""
        ...

    async def device_of(self, user: str, known: str | None) -> tuple[str, As | None]:
        """The known device of a user if it still exists, or else another, and whom its requests are made for.

        Raises MatrixUnavailable, MatrixRefused.
        """
        ...

    async def seated(self, room: str) -> list[str]:
        """Which of our users are in a room, as far as it can be found out."""
        ...

    def owns(self, user_id: str) -> bool:
        """Whether a user is one of ours."""
        ...


@dataclass(frozen=True, slots=True)
class Tidings:
    """What a fleet asks and tells. A key is named by its room and session.

    `wanted`: whether something waits for a key; `waiting`: all such keys. `came`: a device has these keys, or may
    have; `gone`: a device is there no more.
    """

    wanted: Callable[[str, str], bool]
    waiting: Callable[[], list[tuple[str, str]]]
    came: Callable[["Device", Iterable[tuple[str, str]]], None]
    gone: Callable[[], None]


class Fleet:
    """The devices of one way in. `close` it."""

    def __init__(self, api: Api, base: Path, owner: Owner, tidings: Tidings) -> None:
        self._api, self._base, self._owner, self._tidings = api, base, owner, tidings
        self._devices: dict[str, Device] = {}
        self._vaults = dict[str, Vault]()
        self._lost = dict[str, MatrixError]()  # users whose keys cannot be had in this run, and why
        self._making = asyncio.Lock()
        self._listening = set[str]()
        self._more = asyncio.Event()

    def __iter__(self) -> Iterator["Device"]:
        return iter(list(self._devices.values()))

    def get(self, user: str) -> "Device | None":
        """A user's device, if it has been started."""
        return self._devices.get(user)

    async def resume(self, user: str) -> None:
        """Start the device that a user had in an earlier run, before anything is heard that may be meant for it.

        Raises MatrixUnavailable, MatrixLoggedOut.
        """
        if user in self._devices or user in self._lost or not has_vault(self._base, user):
            return
        try:
            await self.device(user)
        except MatrixRefused as error:
            log.warning("encrypted rooms cannot be read", user=user, reason=plain(str(error)))

    def close(self) -> None:
        """Close everything and let the folders go. Idempotent."""
        for device in self._devices.values():
            device.close()
        for vault in self._vaults.values():
            vault.close()
        self._devices.clear()
        self._vaults.clear()

    async def device(self, user: str) -> "Device":
        """A user's device, started. Raises MatrixRefused, MatrixUnavailable (also for its folder)."""
        async with self._making:
            if user in self._lost:
                raise self._lost[user]
            if user not in self._devices:
                try:
                    self._devices[user] = await self._make(user)
                except (StoreFailed, OSError) as error:
                    raise MatrixUnavailable(f"the keys of {user} cannot be used: {plain(str(error))}") from error
                self._more.set()
            return self._devices[user]

    async def _make(self, user: str) -> "Device":
        await asyncio.to_thread(_load)
        from mesh.bridges.matrix.device import Device, KeysLost

        vault = self._vaults.get(user) or Vault(self._base, user)
        self._vaults[user] = vault
        known = vault.get("device")
        while True:
            device_id, acting = await self._owner.device_of(user, known)
            if device_id != vault.get("device"):
                vault.unset("since")
                vault.set(user=user, device=device_id)
            device = Device(self._api, user, device_id, acting=acting, vault=vault, wanted=self._tidings.wanted)
            try:
                await device.start(replace=self._owner.replaces)
            except KeysLost as error:
                device.close()
                if self._owner.replaces and known is not None:
                    known = None
                    continue
                self._lost[user] = _lost(error)
                raise self._lost[user] from error
            except BaseException:
                device.close()
                raise
            log.info("a device for encrypted rooms is ready", user=user, device=device_id)
            self._tidings.came(device, self._tidings.waiting())  # whose keys came, and then the process ended
            return device

    async def begin(self) -> None:
        """Have the users that had devices before hear what was sent to these meanwhile; failures are left to `run`."""
        try:
            async with asyncio.timeout(BEGIN_S):
                for user in users(self._base):
                    if self._owner.owns(user) and await self.has(user):
                        await self._poll(self._devices[user], 0)
        except (TimeoutError, MatrixError) as error:
            log.warning("not all devices are ready; they will be when they are needed", reason=plain(str(error)))

    async def run(self) -> NoReturn:
        """Listen for each device until cancelled."""
        self._listening.clear()
        async with asyncio.TaskGroup() as group:
            while True:
                self._more.clear()
                for user in self._devices.keys() - self._listening:
                    self._listening.add(user)
                    group.create_task(self._listen(self._devices[user]), name=f"matrix device of {user}")
                await self._more.wait()

    async def _listen(self, device: "Device") -> None:
        """Listen until the homeserver refuses the device: somebody has logged it out, and another takes its place."""
        wait_s, told = BACKOFF_S[0], ""
        while True:
            try:
                await self._poll(device, POLL_MS)
            except MatrixUnavailable as error:
                if (reason := plain(str(error))) != told:
                    log.info("nothing comes to a device just now", user=device.user, reason=reason)
                told = reason
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, BACKOFF_S[1])
            except MatrixRefused as error:
                log.warning("a device is refused; it is made anew", user=device.user, reason=plain(str(error)))
                await asyncio.sleep(BACKOFF_S[0])
                break
            else:
                wait_s, told = BACKOFF_S[0], ""
        self._devices.pop(device.user).close()
        self._listening.discard(device.user)
        self._tidings.gone()
        await self.has(device.user)

    async def _poll(self, device: "Device", timeout_ms: int) -> None:
        while (keys := await device.poll(timeout_ms)) is None:
            pass  # another poll took what came; what came since is not heard yet
        self._tidings.came(device, keys)
        await device.mend()

    async def has(self, user: str) -> bool:
        """Have a device for a user, if it can be; whether there is one."""
        if user in self._lost:
            return False
        try:
            await self.device(user)
        except MatrixError as error:
            log.warning("a user has no device for encrypted rooms just now", user=user, reason=plain(str(error)))
            return False
        return True

    async def catch_up(self, ours: Iterable[str]) -> None:
        """Have users' devices hear what was sent to them until now."""
        try:
            async with asyncio.TaskGroup() as group:
                for user in self._devices.keys() & set(ours):
                    group.create_task(self._poll(self._devices[user], 0), name=f"matrix device of {user}")
        except* (MatrixUnavailable, MatrixRefused) as errors:
            log.info("devices cannot be asked for keys just now", failures=len(errors.exceptions))


def _load() -> None:
    """Load nio, which takes a second, away from the loop."""
    importlib.import_module("mesh.bridges.matrix.device")


def _lost(error: Exception) -> MatrixRefused:
    told = f"{error}: log this account in again (mesh matrix login), which gives it a new device"
    return MatrixRefused(told, "KEYS_LOST", 0)
