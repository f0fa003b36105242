"""A Redis Cluster of three primaries with a replica each, for tests of what its clients go through."""

from __future__ import annotations

import shlex
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple, Self
from urllib.parse import urlencode

import redis
from redis.cluster import ClusterNode
from redis.crc import key_slot

from sandbox.processes import EPHEMERAL_PORTS, free_port, until
from sandbox.redis_binaries import Kind, stand_in
from sandbox.redis_servers import (
    UNREACHABLE,
    RedisServer,
    Startable,
    client_options,
    credentials,
    start_all,
    tls_options,
)

if TYPE_CHECKING:
    from sandbox.certificates import RedisCertificates

SLOTS = 16384
PRIMARIES = 3
BUS_PORT_OFFSET = 10_000
SETTLE_SECONDS = 60

_KEYS_A_STEP = 10


class ClusterClient(redis.RedisCluster):
    """redis-py's, with KEYS asked of every primary instead of one."""

    def keys(self, pattern: str = "*", **_options: Any) -> list[str]:  # type: ignore[override]
        """Every key of the Cluster, each once."""
        return list(self.scan_iter(pattern, count=1000))


class _Node(RedisServer):
    """One server of a Cluster. Its second port, to the others, is chosen like the first where the server lets us."""

    bus_port = 0

    def _take_ports(self) -> None:
        if self.port:
            return
        if self._chooses_bus_port():
            self.port, self.bus_port = free_port(), free_port()
        else:
            # Before Redis 7.0 the second port is always this one.
            self.port = free_port(below=EPHEMERAL_PORTS - BUS_PORT_OFFSET)
            self.bus_port = self.port + BUS_PORT_OFFSET

    def _options(self) -> dict[str, str]:
        chosen = {"cluster-port": str(self.bus_port)} if self._chooses_bus_port() else {}
        return super()._options() | {"cluster-enabled": "yes"} | chosen

    def _chooses_bus_port(self) -> bool:
        return self._knows("cluster-port", "0")


class _Line(NamedTuple):
    """What a node says of one node of its Cluster, itself included."""

    port: int
    flags: frozenset[str]
    connected: bool
    slots: tuple[str, ...]

    @property
    def in_order(self) -> bool:
        doubts = {"fail", "fail?", "handshake", "noaddr"}
        return self.connected and not doubts & self.flags and ("master" in self.flags) == bool(self.slots)


class ClusterSet(Startable):
    """Three primaries that share the slots evenly, and a replica of each, all on 127.0.0.1. Blocking.

    Args:
        kind: of all of them.
        node_timeout_seconds: without an answer a node counts as lost. A busy machine may be slow to answer, so where no
            failover is wanted this has to be long.
        password: of all of them.
        tls: all of them serve TLS alone, to each other and to clients with a certificate.

    Attributes:
        servers: the primaries, to begin with, and their replicas.
    """

    def __init__(
        self,
        kind: Kind = "valkey",
        *,
        node_timeout_seconds: float = 1,
        password: str | None = None,
        tls: RedisCertificates | None = None,
    ) -> None:
        settings = {
            "cluster-node-timeout": str(int(node_timeout_seconds * 1000)),
            "repl-diskless-sync": "yes",
            "repl-diskless-sync-delay": "0",
            "repl-ping-replica-period": "1",
        }
        if password:
            settings["masterauth"] = shlex.quote(password)
        if tls:
            settings |= {"tls-cluster": "yes", "tls-replication": "yes"}
        self.kind = stand_in(kind)
        self.servers = [_Node(kind, password=password, tls=tls, settings=settings) for _ in range(2 * PRIMARIES)]
        self._password = password
        self._tls = tls

    @property
    def expires_fields(self) -> bool:
        """Whether its servers can expire single fields of a hash."""
        return self.servers[0].expires_fields

    @property
    def url(self) -> str:
        """With the password and the paths of the certificates, where there are any."""
        scheme, query = (
            ("rediss+cluster", f"?{urlencode(tls_options(self._tls))}") if self._tls else ("redis+cluster", "")
        )
        hosts = ",".join(f"127.0.0.1:{server.port}" for server in self.servers)
        return f"{scheme}://{credentials('', self._password)}{hosts}{query}"

    def start(self) -> Self:
        """Start all, make them a Cluster, and wait until all agree that it is whole."""
        start_all(self.servers)
        primaries, replicas = self.servers[:PRIMARIES], self.servers[PRIMARIES:]
        for number, primary in enumerate(primaries):
            first, end = (SLOTS * part // PRIMARIES for part in (number, number + 1))
            primary.ask("CLUSTER", "ADDSLOTS", *range(first, end))
            primary.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for number, server in enumerate(self.servers):
            for other in self.servers[:number]:
                server.ask("CLUSTER", "MEET", "127.0.0.1", other.port, other.bus_port)
        until(self._acquainted, SETTLE_SECONDS, "six nodes that know each other")
        for primary, replica in zip(primaries, replicas, strict=True):
            replica.ask("CLUSTER", "REPLICATE", _id(primary))
        self._await_health()
        return self

    def primaries(self) -> list[RedisServer]:
        """The servers that hold slots, as a majority of those that answer sees it.

        Raises:
            RuntimeError: no server answers.
        """
        ports = {port for port, *_ in self._ranges()}
        return [server for server in self.servers if server.port in ports]

    def primary_of(self, key: str) -> RedisServer:
        """The server that holds a key's slot."""
        return self.primary_of_slot(slot_of(key))

    def primary_of_slot(self, slot: int) -> RedisServer:
        """The server that holds a slot."""
        port = next(port for port, first, last in self._ranges() if first <= slot <= last)
        return next(server for server in self.servers if server.port == port)

    def await_failover(self, lost: RedisServer) -> None:
        """Wait until every slot is held by a server other than the lost one, and all others agree that all is well."""
        others = [server for server in self.servers if server is not lost]

        def taken_over() -> bool:
            return all(_state(server) == "ok" and not _holds_slots(server, lost) for server in others)

        until(taken_over, SETTLE_SECONDS, f"the slots of port {lost.port} to be taken over", retry_on=UNREACHABLE)

    def heal(self) -> None:
        """Have everything up again: six servers in agreement, a replica in sync for every primary.

        A primary that was killed has lost its data: wait for its failover first.
        """
        for server in self.servers:
            if server.process.alive:
                server.thaw()
            else:
                server.start()
        self._close_slots()
        self._await_health()

    def move_slot(self, slot: int, target: RedisServer) -> None:
        """Move a slot and its keys, a few at a time, as resharding tools do; clients are served meanwhile."""
        if self.primary_of_slot(slot) is target:
            return
        self.open_slot(slot, target)
        while self.carry_keys(slot, target):
            pass
        self.close_slot(slot, target)

    def open_slot(self, slot: int, target: RedisServer) -> None:
        """Begin to move a slot: from now on its holder sends clients on (ASK) for keys it does not have."""
        source = self.primary_of_slot(slot)
        target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", _id(source))
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", _id(target))

    def carry_keys(self, slot: int, target: RedisServer, count: int = _KEYS_A_STEP) -> int:
        """Carry some keys of an opened slot over, and return how many they were."""
        source = self.primary_of_slot(slot)
        found: list[str] = source.ask("CLUSTER", "GETKEYSINSLOT", slot, count)
        if found:
            login = ["AUTH", self._password] if self._password else []
            source.ask("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, *login, "KEYS", *found)
        return len(found)

    def close_slot(self, slot: int, target: RedisServer) -> None:
        """End the move of a slot: from now on its old holder sends clients away (MOVED)."""
        for server in (target, self.primary_of_slot(slot), *self.primaries()):
            server.ask("CLUSTER", "SETSLOT", slot, "NODE", _id(target))

    def client(self) -> ClusterClient:
        """A plain redis-py client that returns str; for tests that look at the keys themselves."""
        nodes = [ClusterNode("127.0.0.1", server.port) for server in self.servers]  # type: ignore[no-untyped-call]
        return ClusterClient(startup_nodes=nodes, socket_timeout=10, **client_options(self._password, self._tls))

    def close(self) -> None:
        """End all of them."""
        for server in self.servers:
            server.close()

    def _ranges(self) -> list[tuple[int, int, int]]:
        """Who holds what: (port, first slot, last slot)."""
        seen: list[tuple[tuple[int, int, int], ...]] = []
        for server in self.servers:
            try:
                ranges = tuple((holder[1], first, last) for first, last, holder, *_ in server.ask("CLUSTER", "SLOTS"))
            except UNREACHABLE:
                continue
            seen.append(ranges)
        if not seen:
            raise RuntimeError("no server of the Cluster answers")
        return list(Counter(seen).most_common(1)[0][0])

    def _acquainted(self) -> bool:
        return all(len(_lines(server)) == len(self.servers) for server in self.servers)

    def _close_slots(self) -> None:
        """Leave slots where they are, whose move a test began and did not end."""
        for server in self.primaries():  # a replica lists what its primary has begun, and may not end it
            opened = [slot for line in _lines(server) for slot in line.slots if slot.startswith("[")]
            for slot in opened:
                server.ask("CLUSTER", "SETSLOT", slot[1:].split("-")[0], "STABLE")

    def _await_health(self) -> None:
        until(self._healthy, SETTLE_SECONDS, "a Cluster whose servers agree", retry_on=UNREACHABLE)

    def _healthy(self) -> bool:
        views = [_lines(server) for server in self.servers]
        return (
            all(_state(server) == "ok" for server in self.servers)
            and len({frozenset((line.port, line.slots) for line in view) for view in views}) == 1
            and all(line.in_order for view in views for line in view)
            and sum(bool(line.slots) for line in views[0]) == PRIMARIES
            and all(map(_in_sync, self.servers))
        )


def slot_of(key: str) -> int:
    """The hash slot of a key."""
    return int(key_slot(key.encode()))


def _id(server: RedisServer) -> str:
    return str(server.ask("CLUSTER", "MYID"))


def _state(server: RedisServer) -> str:
    lines = dict(line.split(":", 1) for line in server.ask("CLUSTER", "INFO").splitlines() if line)
    return str(lines["cluster_state"])


def _in_sync(server: RedisServer) -> bool:
    replication = server.ask("INFO", "replication")
    if replication["role"] == "master":
        return bool(replication["connected_slaves"] == 1)
    return bool(replication["master_link_status"] == "up")


def _holds_slots(asked: RedisServer, holder: RedisServer) -> bool:
    return any(line.port == holder.port and line.slots for line in _lines(asked))


def _lines(server: RedisServer) -> list[_Line]:
    return [_line(text) for text in server.ask("CLUSTER", "NODES").splitlines() if text]


def _line(text: str) -> _Line:
    _, address, flags, _, _, _, _, link, *slots = text.split()
    port = int(address.partition("@")[0].rpartition(":")[2])
    return _Line(port, frozenset(flags.split(",")), link == "connected", tuple(slots))
