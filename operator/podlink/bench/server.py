"""What concerns the server itself: who it is, the links that are filled in and removed again, its time and its memory.

Nothing is flushed and no setting is changed, since the server may be somebody's: every key is removed by its name, and
what the server tells of itself is read before and after.
"""

import math
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, Final

import msgspec
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from podlink.bench.plan import POD, PODS, SERVICE, Plan, link_request, uid
from podlink.domain import keys
from podlink.domain.errors import PodLinkError
from podlink.store import operations
from podlink.store.batching.exchange import Request, pack
from podlink.store.batching.merging import BATCH_SIZE
from podlink.store.blocking.executor import StatefulExecutor
from podlink.store.operations import scripts
from podlink.store.operations.base import PICK_WEIGHT

TTL_SECONDS: Final = 86_400
"""Of temporary links: longer than any run."""

_CHUNK: Final = 1000
_TIMEOUT_SECONDS: Final = 30
_BYTES_A_LINK: Final = 700
"""More than a temporary link takes on any server known."""

_SETTLED_BYTES: Final = 4096
_SETTLE_SECONDS: Final = 10
_SETTLE_PAUSE_SECONDS: Final = 0.2
_USERS: Final = 4 * math.lcm(BATCH_SIZE, BATCH_SIZE // PICK_WEIGHT)
"""Of a bulk call whose batches are measured: they fill every one of them, be it of links or of computed links. More
would be sent in several goes, each of which ends with a batch that is not full."""


class BenchError(PodLinkError):
    """Nothing can be measured; the text says why."""


class Server(msgspec.Struct, frozen=True):
    """Who was measured."""

    name: str
    version: str


@contextmanager
def connected(plan: Plan) -> Iterator[redis.Redis]:
    """A plain client of the server."""
    client = redis.Redis.from_url(
        plan.url, socket_timeout=_TIMEOUT_SECONDS, retry=Retry(NoBackoff(), 0), protocol=2, decode_responses=True
    )
    with client:
        yield client


def look(plan: Plan) -> Server:
    """Find out who the server is, and that it has room.

    Raises:
        PodLinkError: it cannot be reached or used, it is a node of a Redis Cluster, or its memory limit is too near: a
            server at its limit refuses writes, or evicts keys that are not ours.
        redis.RedisError: the connection was lost meanwhile.
    """
    with StatefulExecutor.from_url(plan.url) as executor, connected(plan) as client:
        # Through the executor where it can be, whose errors say what to mend.
        executor.run(operations.ping())
        with _refusals_told():
            told = client.info()
        if told.get("cluster_enabled"):
            raise BenchError(
                "the bench measures one server, and this is a node of a Redis Cluster:"
                " give the URL of a server with cluster-enabled no"
            )
        # Removing nothing is refused where a write, or a removal, is.
        executor.set_service_state(plan.namespace, SERVICE, 0, "")
        with _refusals_told():
            client.unlink(keys.state_key(plan.namespace, SERVICE))
    needed = plan.users * _BYTES_A_LINK
    limit = told.get("maxmemory", 0)
    if limit and told["used_memory"] + needed > limit:
        raise BenchError(
            f"the server may use {limit:,} bytes of memory and has no room for {needed:,} more:"
            " raise its maxmemory, or lower --links and --memory-links"
        )
    if "valkey_version" in told:
        return Server("Valkey", told["valkey_version"])
    return Server("Redis", told["redis_version"])


@contextmanager
def _refusals_told() -> Iterator[None]:
    try:
        yield
    except redis.ResponseError as error:
        raise BenchError(
            f"the server refuses what the bench needs: {error}; give one, and a user,"
            " that allow every command on keys sf:{podlink-bench-*"
        ) from error


def fill(plan: Plan) -> None:
    """Write the service and every link, as all contenders expect them."""
    states = keys.state_key(plan.namespace, SERVICE)
    with connected(plan) as client:
        _load(client)
        _send(client, [("HSET", states, pod, "Ready") for pod in range(PODS)])
        _send(client, (link_request(plan, uid(number)) for number in range(plan.links)))


def clear(plan: Plan) -> None:
    """Remove every key that a contender can have written.

    One that was ended in the middle may have left requests that the server has yet to run, so it is done again until
    there was nothing left to remove.
    """
    names = [build(plan.namespace, SERVICE) for build in (keys.state_key, keys.load_key, keys.expiry_key)]
    with connected(plan) as client:
        while _remove(client, plan, plan.users + 1) + client.unlink(*names):
            pass


def memory(plan: Plan) -> dict[str, float]:
    """Bytes that each link takes, beside what its string and its hash take without anything of ours."""
    # Both are held against the same empty state, and end with the same number of keys and so of hash table slots.
    with connected(plan) as client:
        _load(client)
        empty = _used_memory(client)

        def taken(requests: Iterable[Request]) -> float:
            _send(client, requests)
            used = _used_memory(client)
            _remove(client, plan, plan.memory_links)
            client.unlink(keys.load_key(plan.namespace, SERVICE), keys.expiry_key(plan.namespace, SERVICE))
            return (used - empty) / plan.memory_links

        users = [uid(number) for number in range(plan.memory_links)]
        return {
            "memory-minimum": taken(each for user in users for each in _string_and_hash(plan, user)),
            "memory-podlink": taken(link_request(plan, user) for user in users),
            "memory-minimum-ttl": taken(
                each for user in users for each in _string_and_hash(plan, user, "EX", TTL_SECONDS)
            ),
            "memory-podlink-ttl": taken(link_request(plan, user, persist_seconds=TTL_SECONDS) for user in users),
        }


def blocked(plan: Plan) -> dict[str, float]:
    """Microseconds the server spends on one script call of ours with a full batch in it: of links, of computed links.

    By its own account of how often it ran scripts and how long: the mean. Other clients that run scripts meanwhile
    would count.
    """
    users = [uid(number) for number in range(_USERS)]
    pods = dict.fromkeys(users, POD)
    links, computes = _Account(), _Account()
    ends = time.perf_counter() + plan.seconds
    with connected(plan) as client, StatefulExecutor.from_url(plan.url) as executor:
        executor.set_linked_pods(plan.namespace, pods, SERVICE)
        executor.compute_linked_pods_if_absent(plan.namespace, users, SERVICE)
        while not links.calls or time.perf_counter() < ends:
            executor.remove_linked_pods(plan.namespace, users, SERVICE)
            with computes.of(client):
                executor.compute_linked_pods_if_absent(plan.namespace, users, SERVICE)
            # All links are to this pod again afterwards, as the other contenders expect them.
            with links.of(client):
                executor.set_linked_pods(plan.namespace, pods, SERVICE)
    return {"blocked-links": links.mean, "blocked-computes": computes.mean}


class _Account:
    """Scripts run, and microseconds they took, by the server's account."""

    def __init__(self) -> None:
        self.calls = 0
        self._microseconds = 0

    @property
    def mean(self) -> float:
        return self._microseconds / self.calls

    @contextmanager
    def of(self, client: redis.Redis) -> Iterator[None]:
        calls, microseconds = self._read(client)
        yield
        calls_after, microseconds_after = self._read(client)
        self.calls += calls_after - calls
        self._microseconds += microseconds_after - microseconds

    def _read(self, client: redis.Redis) -> tuple[int, int]:
        told = client.info("commandstats")
        rows = [told[name] for name in ("cmdstat_evalsha", "cmdstat_eval") if name in told]
        return sum(row["calls"] for row in rows), sum(row["usec"] for row in rows)


def _string_and_hash(plan: Plan, user: str, *ttl: str | int) -> tuple[Request, Request]:
    return (
        ("SET", keys.link_key(plan.namespace, user, SERVICE), POD, *ttl),
        ("HSET", keys.link_hash_key(plan.namespace, user), SERVICE, POD),
    )


def _used_memory(client: redis.Redis) -> int:
    """What the data takes, once the server has tidied up."""
    before, ends = -1, time.monotonic() + _SETTLE_SECONDS
    while True:
        told = client.info("memory")
        now: int = told["used_memory"] - told.get("mem_clients_normal", 0)
        if abs(now - before) <= _SETTLED_BYTES or time.monotonic() > ends:
            return now
        before = now
        time.sleep(_SETTLE_PAUSE_SECONDS)


def _load(client: redis.Redis) -> None:
    client.script_load(scripts.SET_LINK.text)


def _remove(client: redis.Redis, plan: Plan, links: int) -> int:
    names = (
        name
        for user in map(uid, range(links))
        for name in (keys.link_key(plan.namespace, user, SERVICE), keys.link_hash_key(plan.namespace, user))
    )
    return sum(client.unlink(*chunk) for chunk in _chunks(names))


def _send(client: redis.Redis, requests: Iterable[Request]) -> None:
    """Send many requests in pipelines; redis-py's own would take longer than the server does."""
    pool = client.connection_pool
    connection = pool.get_connection()
    try:
        for chunk in _chunks(requests):
            connection.send_packed_command([pack(chunk)])  # type: ignore[no-untyped-call]
            answers = [_answer(connection) for _ in chunk]
            refused = next((answer for answer in answers if isinstance(answer, redis.ResponseError)), None)
            if refused is not None:
                raise refused
    finally:
        pool.release(connection)


def _answer(connection: Any) -> object:
    try:
        return connection.read_response()
    except redis.ResponseError as error:
        return error


def _chunks(items: Iterable[Any]) -> Iterator[list[Any]]:
    remaining = iter(items)
    while chunk := list(islice(remaining, _CHUNK)):
        yield chunk
