"""A child process that does not outlive its parent, even when the parent is killed with -9.

Linux has it built in (`PR_SET_PDEATHSIG`). Elsewhere a tiny second child holds the read end of a pipe: the kernel
closes the write end with the parent, however it went, and the watcher ends the first child.
"""

import asyncio
import ctypes
import os
import signal
import sys
import threading
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Callable
from typing import Literal

Tether = Literal["signal", "pipe"]

PR_SET_PDEATHSIG = 1  # prctl(2)

# Loaded before any fork: between fork and exec nothing may be looked up or locked.
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None

WATCHER = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
pid = int(sys.stdin.readline() or 0)
sys.stdin.read()
if pid:
    os.kill(pid, signal.SIGTERM)
"""


def best_tether() -> Tether:
    """`signal` where it works: Linux sends it when the *thread* that forked ends, so only in the main thread."""
    on_main = threading.current_thread() is threading.main_thread()
    return "signal" if _LIBC is not None and on_main else "pipe"


def die_with_parent() -> Callable[[], None]:
    """What the child must call between fork and exec: asks the kernel for SIGTERM when this process's thread ends."""
    if _LIBC is None:
        raise RuntimeError("only Linux sends a signal when the parent dies; use a Watcher")
    prctl, parent = _LIBC.prctl, os.getpid()

    def in_child() -> None:
        prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
        if os.getppid() != parent:  # it died before we asked
            os._exit(1)

    return in_child


class Watcher:
    """The process with the pipe. Start it before the child, `hold` the child's id, `release` when the child ended."""

    def __init__(self) -> None:
        self._process: Process | None = None

    async def start(self) -> None:
        """Start watching; nobody is held yet."""
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",
            "-S",
            "-c",
            WATCHER,
            stdin=PIPE,
            stdout=DEVNULL,
            stderr=DEVNULL,
            start_new_session=True,
        )

    async def hold(self, pid: int) -> None:
        """End the process `pid` when this process is gone."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.write(b"%d\n" % pid)
            await self._process.stdin.drain()

    async def release(self) -> None:
        """Stop watching, at once: the id may soon be somebody else's. Idempotent."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.returncode is None:
            process.kill()
        await process.wait()
        if process.stdin is not None:
            process.stdin.close()
