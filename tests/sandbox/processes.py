"""Child processes that cannot outlive us, and waiting for what they do.

Servers started by a test run or by `make run` must be gone afterwards, even when that run is ended with `kill -9` and
no line of Python gets to clean up. So each child is tied to its parent before it executes the real program: on Linux by
the kernel (PR_SET_PDEATHSIG), elsewhere by a watcher process that holds the end of a pipe.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import inspect
import os
import random
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeVar, overload

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence

T = TypeVar("T")

POLL_SECONDS = 0.05
PATIENCE_SECONDS = 60
"""Far more than anything takes here, for a machine that is busy with other things."""

PR_SET_PDEATHSIG = 1

# Run by a bare interpreter (no site, no environment) that then becomes the program. It is not a preexec_fn, because
# Python 3.12 and later warn about a fork that runs Python code in a process with threads.
_TIE_BY_KERNEL = """
import ctypes, os, signal, sys
PR_SET_PDEATHSIG = 1
parent = int(sys.argv[1])
if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
    sys.exit("prctl(PR_SET_PDEATHSIG): " + os.strerror(ctypes.get_errno()))
if os.getppid() != parent:
    sys.exit("the parent process is gone")
"""
_TIE_BY_WATCHER = """
import os, select, signal, sys
program = os.getpid()
pipe = int(sys.argv[1])
if os.fork() == 0:
    while os.getppid() == program:
        if select.select([pipe], [], [], 0.2)[0]:
            os.kill(program, signal.SIGKILL)
            break
    os._exit(0)
os.close(pipe)
"""
_BECOME_THE_PROGRAM = """
try:
    os.execvp(sys.argv[2], sys.argv[2:])
except OSError as error:
    sys.exit(f"cannot execute {sys.argv[2]}: {error}")
"""

# PR_SET_PDEATHSIG watches the thread that made the child, not the process. A thread of asyncio.to_thread ends with its
# event loop, and would take the server with it; this one lives as long as the interpreter.
_spawner = ThreadPoolExecutor(max_workers=1, thread_name_prefix="spawner")


class Process:
    """A child made by `spawn`. It leads its own process group, so a Ctrl-C in the terminal does not reach it."""

    def __init__(self, popen: subprocess.Popen[bytes], argv: Sequence[str], log_path: Path, pipe: int | None) -> None:
        self._popen = popen
        self._pipe = pipe
        self._group_killed = False
        self.argv = list(argv)
        self.log_path = log_path

    @property
    def pid(self) -> int:
        """The program's process id."""
        return self._popen.pid

    @property
    def alive(self) -> bool:
        """Whether it still runs (a stopped one, after SIGSTOP, does)."""
        return self.returncode is None

    @property
    def returncode(self) -> int | None:
        """The exit code, negative for a signal, None while it runs."""
        return self._popen.poll()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the program alone; nothing happens when it has ended."""
        self._popen.send_signal(number)

    def wait(self, timeout_seconds: float) -> int:
        """Wait for its end and return the exit code. Raises TimeoutError, with the log's end, when it goes on."""
        try:
            return self._popen.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"{self} did not end within {timeout_seconds} s\n{self.log_tail()}") from None

    def stop(self, grace_seconds: float = 10) -> int:
        """End it: SIGTERM, SIGKILL when it still runs after `grace_seconds`. Returns the exit code; may be repeated."""
        self.signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(grace_seconds)
        return self.kill()

    def kill(self) -> int:
        """SIGKILL the program and whatever it started in its process group. Returns the exit code; may be repeated."""
        if not self._group_killed:
            # Also when the program is gone: its children may not be. But once only, for the id may get a new owner.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
            self._group_killed = True
        returncode = self._popen.wait()
        if self._pipe is not None:
            os.close(self._pipe)
            self._pipe = None
        return returncode

    def log_tail(self, lines: int = 20) -> str:
        """The last lines of its output, under a line that names the file."""
        text = self.log_path.read_text(errors="replace") if self.log_path.exists() else ""
        tail = "\n".join(text.splitlines()[-lines:]) or "(empty)"
        return f"--- end of {self.log_path}\n{tail}"

    def __str__(self) -> str:
        return f"{Path(self.argv[0]).name} (pid {self.pid})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def spawn(
    argv: Sequence[str | Path],
    *,
    log_path: Path,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    kernel_tie: bool = sys.platform == "linux",
) -> Process:
    """Start a program that ends when we do.

    Args:
        argv: the program (a path, or a name to find on PATH) and its arguments.
        log_path: stdout and stderr are appended here.
        env: the whole environment; ours when left out.
        cwd: working directory; ours when left out.
        kernel_tie: tie it to us by PR_SET_PDEATHSIG; otherwise by a watcher process.

    A program that cannot be executed shows as a Process that ends at once, with the reason in its log.
    """
    words = [str(word) for word in argv]
    log_path.parent.mkdir(parents=True, exist_ok=True)
    return _spawner.submit(_spawn, words, log_path, env, cwd, kernel_tie).result()


def _spawn(
    argv: list[str], log_path: Path, env: Mapping[str, str] | None, cwd: Path | None, kernel_tie: bool
) -> Process:
    read_end, write_end = (None, None) if kernel_tie else os.pipe()
    tie = _TIE_BY_KERNEL if kernel_tie else _TIE_BY_WATCHER
    told = os.getpid() if read_end is None else read_end
    try:
        with log_path.open("ab") as log:
            popen = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", tie + _BECOME_THE_PROGRAM, str(told), *argv],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=None if env is None else dict(env),
                cwd=cwd,
                pass_fds=() if read_end is None else (read_end,),
                start_new_session=True,
            )
    except BaseException:
        if write_end is not None:
            os.close(write_end)
        raise
    finally:
        if read_end is not None:
            os.close(read_end)
    return Process(popen, argv, log_path, write_end)


EPHEMERAL_PORTS = 32768
"""From here on (on Linux; elsewhere from 49152) the kernel gives ports to outgoing connections."""

# Not from that range: while a server is down for a restart, some client's outgoing connection could be given its port.
_PORTS = range(15000, 30000)


def free_port(below: int = _PORTS.stop) -> int:
    """A TCP port of 127.0.0.1 that nobody listens on now. Another process may take it first: be ready to try again."""
    for port in random.sample(range(_PORTS.start, below), k=100):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError(f"100 random ports between {_PORTS.start} and {below} are all taken")


def die_with_parent() -> None:
    """Have the kernel send us SIGTERM when our parent ends: killing `make` ends what it runs. Linux only."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")


@contextlib.contextmanager
def ended_by_signal() -> Iterator[None]:
    """Leave the block, in good order, on Ctrl-C, SIGTERM and SIGHUP (a closed terminal).

    The signal raises in the main thread, so whatever it is doing, the context managers inside clean up. While they do,
    further signals are ignored. For programs, not for tests.
    """

    class Told(BaseException):
        pass

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def end(_number: int, _frame: object) -> None:
        for each in signals:
            signal.signal(each, signal.SIG_IGN)
        raise Told

    for each in signals:
        signal.signal(each, end)
    with contextlib.suppress(Told):
        yield


def until(condition: Callable[[], T], timeout: float, what: str, *, retry_on: tuple[type[Exception], ...] = ()) -> T:
    """Wait until `condition()` is true, and return what it returned.

    Args:
        condition: called every 0.05 s. An exception ends the wait, unless it is named in `retry_on`.
        timeout: seconds.
        what: what the caller waits for, for the error: "lobby-2 to be Ready".
        retry_on: errors that mean "not yet".

    Raises:
        TimeoutError: says what the caller waited for, how long, and the last value or error.
    """
    deadline = _Deadline(timeout, what)
    while True:
        try:
            last = condition()
            if last:
                return last
            deadline.check(last)
        except retry_on as error:
            deadline.check(error)
        time.sleep(POLL_SECONDS)


@overload
async def until_async(
    condition: Callable[[], Awaitable[T]],
    timeout: float,  # noqa: ASYNC109 - its error says what was awaited
    what: str,
    *,
    retry_on: tuple[type[Exception], ...] = (),
) -> T: ...
@overload
async def until_async(
    condition: Callable[[], T],
    timeout: float,  # noqa: ASYNC109 - its error says what was awaited
    what: str,
    *,
    retry_on: tuple[type[Exception], ...] = (),
) -> T: ...
async def until_async(
    condition: Callable[[], Awaitable[T] | T],
    timeout: float,  # noqa: ASYNC109 - its error says what was awaited
    what: str,
    *,
    retry_on: tuple[type[Exception], ...] = (),
) -> T:
    """`until` for a coroutine function (or a plain one), without holding up the event loop."""
    deadline = _Deadline(timeout, what)
    while True:
        try:
            asked = condition()
            last = await asked if inspect.isawaitable(asked) else asked
            if last:
                return last
            deadline.check(last)
        except retry_on as error:
            deadline.check(error)
        await asyncio.sleep(POLL_SECONDS)


def eventually(read: Callable[[], T], expected: T, timeout: float = PATIENCE_SECONDS) -> None:
    """Wait until `read()` equals `expected`. The error shows both."""
    until(lambda: _Compared(read(), expected), timeout, repr(expected))


class _Deadline:
    """When a wait ends in vain."""

    def __init__(self, timeout: float, what: str) -> None:
        self._timeout = timeout
        self._what = what
        self._at = time.monotonic() + timeout
        self._passed = False

    def check(self, last: object) -> None:
        """Raise TimeoutError if the attempt that gave `last` was begun after the deadline.

        So a process that was stopped until after the deadline makes one more attempt.
        """
        if self._passed:
            raise TimeoutError(f"waited {self._timeout:g} s for {self._what}; last seen: {repr(last)[:2000]}")
        self._passed = time.monotonic() >= self._at


class _Compared:
    """A value that is true if it is the expected one."""

    def __init__(self, value: object, expected: object) -> None:
        self._value = value
        self._equal = value == expected

    def __bool__(self) -> bool:
        return self._equal

    def __repr__(self) -> str:
        return repr(self._value)
