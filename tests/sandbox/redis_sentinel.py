"""A primary, two replicas and three Sentinels, for tests of what a failover looks like to a client."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlencode

import redis

from sandbox.processes import until
from sandbox.redis_binaries import Kind, stand_in
from sandbox.redis_servers import UNREACHABLE, RedisServer, Startable, credentials, start_all, tls_options

if TYPE_CHECKING:
    from sandbox.certificates import RedisCertificates

SERVICE = "main"
"""The name the Sentinels know the primary by."""

REPLICAS = 2
SENTINELS = 3
QUORUM = 2
SETTLE_SECONDS = 60

# How often Sentinels look and talk, in milliseconds. Theirs would have a test wait ten seconds where nothing is to be
# learned from waiting: until a replica is known, until a primary that comes back is demoted.
_PERIODS = {"INFO-PERIOD": 500, "PUBLISH-PERIOD": 250, "TILT-PERIOD": 2000}


class _Sentinel(RedisServer):
    """A Sentinel; it keeps what it learns in its configuration file, so a restart goes on from there."""

    def __init__(self, kind: Kind, *, password: str | None, tls: RedisCertificates | None, lines: list[str]) -> None:
        super().__init__(kind, password=password, tls=tls)
        self._lines = lines
        self._path = Path(self._scratch.name) / "sentinel.conf"

    def _argv(self) -> list[str]:
        program, *_ = super()._argv()
        first_line = f"# sentinel of port {self.port}"
        if not self._path.exists() or not self._path.read_text().startswith(first_line):
            options = {name: value for name, value in self._options().items() if name not in {"save", "appendonly"}}
            lines = [f'{name} "{value}"' for name, value in options.items()]
            self._path.write_text("\n".join([first_line, *lines, *self._lines, ""]))
        return [program, str(self._path), "--sentinel"]


class SentinelSet(Startable):
    """A primary and two replicas, watched by three Sentinels, all on 127.0.0.1. Blocking.

    Args:
        kind: of all of them.
        down_after_seconds: without an answer the primary counts as lost. A busy machine may be slow to answer, so where
            no failover is wanted this has to be long.
        password: of the primary and its replicas.
        sentinel_password: of the Sentinels.
        tls: all of them serve TLS alone, to each other and to clients with a certificate.

    Attributes:
        servers: the primary, to begin with, and the replicas.
        sentinels: the Sentinels.
    """

    def __init__(
        self,
        kind: Kind = "valkey",
        *,
        down_after_seconds: float = 1,
        password: str | None = None,
        sentinel_password: str | None = None,
        tls: RedisCertificates | None = None,
    ) -> None:
        self.kind = stand_in(kind)
        self.servers = [
            RedisServer(kind, password=password, tls=tls, settings=_replication_settings(password, tls=bool(tls)))
            for _ in range(1 + REPLICAS)
        ]
        self.sentinels: list[_Sentinel] = []
        self._down_after_milliseconds = int(down_after_seconds * 1000)
        self._password = password
        self._sentinel_password = sentinel_password
        self._tls = tls

    @property
    def expires_fields(self) -> bool:
        """Whether its servers can expire single fields of a hash."""
        return self.servers[0].expires_fields

    @property
    def url(self) -> str:
        """With the passwords and the paths of the certificates, where there are any."""
        scheme = "rediss+sentinel" if self._tls else "redis+sentinel"
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        options = {"sentinel_password": self._sentinel_password} if self._sentinel_password else {}
        query = urlencode(options | tls_options(self._tls))
        return f"{scheme}://{credentials('', self._password)}{hosts}/{SERVICE}/0{f'?{query}' if query else ''}"

    def start(self) -> Self:
        """Start all, and wait until the replicas are in sync and the Sentinels know each other and all of them."""
        first, *replicas = self.servers
        first.start()
        for replica in replicas:
            replica.settings["replicaof"] = f"127.0.0.1 {first.port}"
        self.sentinels = [
            _Sentinel(self.kind, password=self._sentinel_password, tls=self._tls, lines=self._watch(first))
            for _ in range(SENTINELS)
        ]
        start_all([*replicas, *self.sentinels])
        for sentinel in self.sentinels:
            _quicken(sentinel)
        self._await_health()
        return self

    def primary(self) -> RedisServer:
        """The server the Sentinels send clients to.

        Raises:
            RuntimeError: no Sentinel answers.
        """
        for sentinel in self.sentinels:
            try:
                return self._named_by(sentinel)
            except UNREACHABLE:
                continue
        raise RuntimeError("no Sentinel answers")

    def primaries(self) -> list[RedisServer]:
        """The servers that take writes: `primary()`."""
        return [self.primary()]

    def replicas(self) -> list[RedisServer]:
        """The other two, whatever they do just now."""
        primary = self.primary()
        return [server for server in self.servers if server is not primary]

    def await_failover(self, lost: RedisServer) -> RedisServer:
        """Wait until all Sentinels send clients to another server than the lost one, and return that."""

        def promoted() -> RedisServer | None:
            named = {self._named_by(sentinel).port for sentinel in self.sentinels}
            primary = self.primary()
            return primary if named == {primary.port} != {lost.port} and _role(primary) == "master" else None

        primary = until(promoted, SETTLE_SECONDS, f"another primary than port {lost.port}", retry_on=UNREACHABLE)
        assert primary is not None
        return primary

    def heal(self) -> None:
        """Have everything up again: the lost server as a replica, both replicas in sync, no Sentinel in doubt."""
        for server in (*self.servers, *self.sentinels):
            if server.process.alive:
                server.thaw()
        for sentinel in self.sentinels:
            if not sentinel.process.alive:
                sentinel.start()
                _quicken(sentinel)
        until(lambda: self.primary().process.alive, SETTLE_SECONDS, "a primary that runs")
        for server in self.replicas():
            if not server.process.alive:
                # It comes back empty. As a primary it would take writes until a Sentinel sees it.
                server.settings["replicaof"] = f"127.0.0.1 {self.primary().port}"
                server.start()
        self._await_health()

    def client(self) -> redis.Redis:
        """A plain redis-py client of the primary of this moment."""
        return self.primary().client()

    def close(self) -> None:
        """End all of them."""
        for server in (*self.sentinels, *self.servers):
            server.close()

    def _watch(self, primary: RedisServer) -> list[str]:
        lines = [
            f"sentinel monitor {SERVICE} 127.0.0.1 {primary.port} {QUORUM}",
            f"sentinel down-after-milliseconds {SERVICE} {self._down_after_milliseconds}",
            f"sentinel failover-timeout {SERVICE} 5000",
            f"sentinel parallel-syncs {SERVICE} {REPLICAS}",
        ]
        if self._password:
            lines.append(f'sentinel auth-pass {SERVICE} "{self._password}"')
        if self._sentinel_password:
            lines.append(f'sentinel sentinel-pass "{self._sentinel_password}"')
        if self._tls:
            lines.append("tls-replication yes")
        return lines

    def _named_by(self, sentinel: RedisServer) -> RedisServer:
        _, port = sentinel.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)
        return next(server for server in self.servers if server.port == int(port))

    def _await_health(self) -> None:
        until(self._healthy, SETTLE_SECONDS, "a primary with two replicas in sync", retry_on=UNREACHABLE)

    def _healthy(self) -> bool:
        primary = self.primary()
        replication = primary.ask("INFO", "replication")
        if replication["role"] != "master" or replication["connected_slaves"] != REPLICAS:
            return False
        offsets = {replica.ask("INFO", "replication").get("master_link_status") for replica in self.replicas()}
        return offsets == {"up"} and all(self._content(sentinel, primary) for sentinel in self.sentinels)

    def _content(self, sentinel: RedisServer, primary: RedisServer) -> bool:
        """Whether a Sentinel could begin a failover at once."""
        (watched,) = sentinel.ask("SENTINEL", "MASTERS")
        replicas = sentinel.ask("SENTINEL", "REPLICAS", SERVICE)
        others = sentinel.ask("SENTINEL", "SENTINELS", SERVICE)
        return (
            self._named_by(sentinel) is primary
            and _pairs(watched)["flags"] == "master"
            and [_in_doubt(_pairs(other)) for other in others] == [False] * (SENTINELS - 1)
            and {int(_pairs(replica)["port"]) for replica in replicas} == {server.port for server in self.replicas()}
            and all(_follows(_pairs(replica), primary) for replica in replicas)
        )


def _replication_settings(password: str | None, *, tls: bool) -> dict[str, str]:
    settings = {"repl-diskless-sync": "yes", "repl-diskless-sync-delay": "0", "repl-ping-replica-period": "1"}
    if password:
        settings["masterauth"] = shlex.quote(password)
    if tls:
        settings["tls-replication"] = "yes"
    return settings


def _quicken(sentinel: RedisServer) -> None:
    try:
        for name, milliseconds in _PERIODS.items():
            sentinel.ask("SENTINEL", "DEBUG", name, milliseconds)
    except redis.ResponseError as error:
        # Before Redis 7.0 a Sentinel keeps its own periods; tests take longer there.
        if "nknown" not in str(error):
            raise


def _role(server: RedisServer) -> str:
    return str(server.ask("ROLE")[0])


def _follows(replica: dict[str, str], primary: RedisServer) -> bool:
    return (
        replica["flags"] == "slave"
        and replica["master-link-status"] == "ok"
        and replica["role-reported"] == "slave"
        and int(replica["master-port"]) == primary.port
    )


def _in_doubt(sentinel: dict[str, str]) -> bool:
    # "master_down" is what it said when it was last asked, which may have been in the last failover.
    return bool({"s_down", "o_down", "disconnected"} & set(sentinel["flags"].split(",")))


def _pairs(answer: Any) -> dict[str, str]:
    """A Sentinel's answer, which is a flat list or, to some clients, a mapping."""
    return dict(answer) if isinstance(answer, dict) else dict(zip(answer[::2], answer[1::2], strict=True))
