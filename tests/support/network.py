"""A network of our own: machines with addresses, and cables between them that can be cut, slow or lossy.

A machine is a network namespace. What its one device sends is carried by a switch in this process, which does to every
packet what the cable says: dice with a seed, and no need of queueing disciplines that the kernel may lack. Where
namespaces may not be made, machines are addresses of the loopback device, whose cables cannot be changed.
"""

import asyncio
import contextlib
import ctypes
import fcntl
import heapq
import ipaddress
import os
import random
import selectors
import shutil
import struct
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

T = TypeVar("T")

NEW_NETWORK = 0x40000000  # CLONE_NEWNET of <sched.h>
SET_INTERFACE = 0x400454CA  # TUNSETIFF of <linux/if_tun.h>
PLAIN_PACKETS = 0x1001  # IFF_TUN | IFF_NO_PI
DEVICE = "cable0"
PACKET = 65_536
NEEDED = "NETWORK NAMESPACES are not allowed here: cut and lossy links are NOT tested"


@dataclass
class Cable:
    """What happens to packets on their way from one machine to another."""

    cut: bool = False
    loss: float = 0.0
    delay_s: float = 0.0


class Machine:
    """An address, and a thread whose sockets are there. `argv` is what a program begins with to live there."""

    def __init__(self, address: str, *, apart: bool) -> None:
        self.address, self.apart = address, apart
        self.argv: tuple[str, ...] = ()
        self.device = -1
        self._space = -1
        self._begun = threading.Event()
        self._stop: Callable[[], None] = lambda: None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._live, name=address, daemon=True)
        self._thread.start()
        self._begun.wait()

    async def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on this machine."""
        assert self._loop is not None
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    def close(self) -> None:
        """Switch it off; its programs must have ended."""
        self._stop()
        self._thread.join()
        for one in (self.device, self._space):
            if one >= 0:
                os.close(one)

    def _live(self) -> None:
        try:
            if self.apart:
                self._settle()
            asyncio.run(self._wait())
        finally:
            self._begun.set()  # also where it came to nothing, and the thread's exception says why

    async def _wait(self) -> None:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        self._stop = lambda: loop.call_soon_threadsafe(stop.set)
        self._loop = loop
        self._begun.set()
        await stop.wait()

    def _settle(self) -> None:
        """Move this thread into a namespace of its own, with one device."""
        separate()
        self._space = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        self.argv = ("nsenter", f"--net=/proc/{os.getpid()}/fd/{self._space}")
        device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(device, SET_INTERFACE, struct.pack("16sH22x", DEVICE.encode(), PLAIN_PACKETS))
        for command in (f"address add {self.address}/16 dev {DEVICE}", f"link set {DEVICE} up", "link set lo up"):
            subprocess.run(["ip", *command.split()], check=True)
        self.device = device


def separate() -> None:
    """Give this thread a network namespace of its own. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(NEW_NETWORK):
        raise OSError(ctypes.get_errno(), "no network namespace")


@cache
def allowed() -> bool:
    """Whether this machine lets us make namespaces and devices; tried out."""
    if shutil.which("ip") is None or shutil.which("nsenter") is None:
        return False
    try:
        device = os.open("/dev/net/tun", os.O_RDWR)
    except OSError:
        return False
    os.close(device)
    tried = subprocess.run(["unshare", "--net", "ip", "link", "set", "lo", "up"], capture_output=True, check=False)
    return tried.returncode == 0


class Network:
    """Some machines, and the cables between them."""

    def __init__(self, *, seed: int = 0) -> None:
        self.apart = allowed()
        self.machines: list[Machine] = []
        self.cables: dict[tuple[str, str], Cable] = {}
        self.carried = 0
        self._dice = random.Random(seed)
        self._fds: dict[str, int] = {}
        self._selector = selectors.DefaultSelector()
        self._late: list[tuple[float, int, bytes]] = []
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._carry, name="switch", daemon=True)
        # loopback: runs at the same time must not meet
        self._first = 0x0A4D0000 if self.apart else 0x7F000000 + (os.getpid() % 0xFFFD + 1 << 8)
        if self.apart:
            self._thread.start()

    def machine(self) -> Machine:
        """One more machine."""
        address = str(ipaddress.IPv4Address(self._first + len(self.machines) + 1))
        one = Machine(address, apart=self.apart)
        self.machines.append(one)
        if self.apart:
            assert one.device >= 0
            self._fds[address] = one.device
            self._selector.register(one.device, selectors.EVENT_READ, address)
        return one

    def lay(self, one: Machine, other: Machine, cable: Cable) -> None:
        """Change what happens between two machines, in both directions."""
        assert self.apart, NEEDED
        self.cables[one.address, other.address] = self.cables[other.address, one.address] = cable

    def close(self) -> None:
        """End it."""
        self._closing.set()
        if self.apart:
            self._thread.join()
        self._selector.close()
        for machine in self.machines:
            machine.close()

    def _carry(self) -> None:
        """The switch: every packet goes where its header says, or nowhere."""
        while not self._closing.is_set():
            for key, _ in self._selector.select(0.001 if self._late else 0.05):
                with contextlib.suppress(BlockingIOError):
                    for _ in range(64):
                        self._forward(key.data, os.read(key.fd, PACKET))
            now = time.monotonic()
            while self._late and self._late[0][0] <= now:
                _, fd, packet = heapq.heappop(self._late)
                _put(fd, packet)

    def _forward(self, source: str, packet: bytes) -> None:
        target = str(ipaddress.IPv4Address(packet[16:20])) if packet[0] >> 4 == 4 else ""
        fd = self._fds.get(target)
        cable = self.cables.get((source, target), Cable())
        if fd is None or cable.cut or (cable.loss and self._dice.random() < cable.loss):
            return
        self.carried += 1
        if cable.delay_s:
            heapq.heappush(self._late, (time.monotonic() + cable.delay_s, fd, packet))
        else:
            _put(fd, packet)


def _put(fd: int, packet: bytes) -> None:
    with contextlib.suppress(OSError):  # its queue is full, or it is going: packets are lost
        os.write(fd, packet)


@asynccontextmanager
async def network(*, seed: int = 0) -> AsyncIterator[Network]:
    """A network for the length of a test."""
    one = Network(seed=seed)
    try:
        yield one
    finally:
        await asyncio.to_thread(one.close)
