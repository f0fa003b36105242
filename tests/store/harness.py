"""What the tests of the store share: names, a view of Redis from outside, and the rule that links and loads add up."""

from __future__ import annotations

import asyncio
import inspect
import traceback
from collections import Counter
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest

from podlink import RedisUnavailable
from podlink.domain import keys
from podlink.store.operations import scripts
from sandbox.processes import until_async
from sandbox.redis_binaries import Kind, binary
from sandbox.redis_cluster import ClusterSet
from sandbox.redis_sentinel import SentinelSet
from sandbox.redis_servers import RedisServer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    import redis

    from podlink import StatefulExecutor, sync

Topology: TypeAlias = RedisServer | SentinelSet | ClusterSet

ONE_SERVER = ("valkey", "redis")
ONE_PRIMARY = (*ONE_SERVER, "tls", "sentinel")
ALL_TOPOLOGIES = (*ONE_PRIMARY, "cluster")


def need(kind: Kind) -> None:
    """Skip the test where there is no server of that kind."""
    if binary(kind) is None:
        pytest.skip("no redis-server on PATH; `apt install redis-server` would un-skip it")


PATIENCE_SECONDS = 60

NS = "games"
SVC = "lobby"
UID = "player-42"

STATE = "sf:{games:state:lobby}"
LOAD = "sf:{games:state:lobby}load"
VERSIONS = "sf:{games:state:lobby}rv"
EXPIRY = "sf:{games:state:lobby}exp"
WORKLOAD = "sf:{games:workload:lobby}"
WORKLOAD_VERSION = "sf:{games:workload:lobby}rv"
LINKS = "sf:{games:lk:player-42}"
LINK = "sf:{games:lk:player-42}lobby"


class Awaited:
    """Either executor, with methods to await, so that one test serves both."""

    def __init__(self, executor: StatefulExecutor | sync.StatefulExecutor) -> None:
        self._executor = executor

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        method = getattr(self._executor, name)

        async def call(*args: Any, **kwargs: Any) -> Any:
            if inspect.iscoroutinefunction(method):
                return await method(*args, **kwargs)
            return await asyncio.to_thread(method, *args, **kwargs)

        return call


async def _computed(executor: Awaited, pod: int, seconds: int) -> None:
    await executor.set_service_state(NS, SVC, pod, "Ready")
    assert await executor.compute_linked_pod_if_absent(NS, UID, SVC, persist_seconds=seconds) == pod


WAYS_TO_LINK: dict[str, Callable[[Awaited, int, int], Awaitable[object]]] = {
    "set": lambda executor, pod, seconds: executor.set_linked_pod(NS, UID, SVC, pod, persist_seconds=seconds),
    "try_set": lambda executor, pod, seconds: executor.try_set_linked_pod(NS, UID, SVC, pod, persist_seconds=seconds),
    "if_absent": lambda executor, pod, seconds: executor.set_linked_pod_if_absent(
        NS, UID, SVC, pod, persist_seconds=seconds
    ),
    "compute": _computed,
}
"""Each links the uid, which has no link, to a pod."""


class Wire:
    """A client of another language: raw commands, nothing of podlink but the text of the scripts."""

    def __init__(self, client: redis.Redis) -> None:
        self.redis = client

    def __call__(self, name: str, script_keys: list[str], *args: str | int) -> Any:
        text = next(script.text for script in scripts.ALL if script.name == name)
        return self.redis.execute_command(
            "EVALSHA", self.redis.script_load(text), len(script_keys), *script_keys, *args
        )

    def milliseconds(self, key: str) -> int:
        """PTTL: -1 permanent, -2 no key."""
        return self.redis.execute_command("PTTL", key)

    def field_milliseconds(self, key: str, field: str) -> int:
        """HPTTL: -1 permanent, -2 no field."""
        return self.redis.execute_command("HPTTL", key, "FIELDS", 1, field)[0]

    def loads(self) -> dict[str, str]:
        """What the load hash of the one service holds."""
        return self.redis.hgetall(LOAD)

    def script_calls(self) -> int:
        """How many times the server was asked to run a script since the last `config_resetstat`."""
        return self.calls_of("eval") + self.calls_of("evalsha")

    def calls_of(self, command: str) -> int:
        """How many calls of a command the server counted since then; of a subcommand: `script|load`."""
        return self.redis.info("commandstats").get(f"cmdstat_{command}", {"calls": 0})["calls"]


def whole_text(error: BaseException) -> str:
    """All that a user may see of an error: its text, its attributes, its causes, its traceback."""
    words = traceback.format_exception(error)
    cause: BaseException | None = error
    while cause:
        words += [repr(cause), repr(cause.args), repr(vars(cause))]
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return "".join(words)


def link_key(number: int) -> str:
    """Where the link of the uid `u<number>` is kept: uids of many slots."""
    return keys.link_key(NS, f"u{number}", SVC)


async def goes_on(call: Callable[[], Awaitable[Any]]) -> Any:
    """What a call returns once it succeeds; until then it may fail for no other reason than an outage."""

    async def done() -> tuple[Any]:
        return (await call(),)

    (result,) = await until_async(done, PATIENCE_SECONDS, "a call to succeed", retry_on=(RedisUnavailable,))
    return result


def fill(client: redis.Redis, values: Mapping[str, str]) -> None:
    """Set many strings, which a Cluster's MSET could not."""
    with client.pipeline(transaction=False) as pipe:
        for key, value in values.items():
            pipe.set(key, value)
        pipe.execute()


def orphans(client: redis.Redis, executor: sync.StatefulExecutor, *, prune: bool) -> list[str]:
    """Fields without a string and loads without links, in words; empty when everything adds up."""
    found, listed = [], Counter[tuple[str, str, int]]()
    services = set()
    for key in client.scan_iter("sf:*"):
        if service := keys.service_of_key(key):
            services.add(service)
        if not (uid := keys.uid_of_key(key)):
            continue
        if prune:
            executor.get_linked_services(*uid)
        for service, pod in client.hgetall(key).items():
            if client.get(key + service) == pod:
                listed[uid.namespace, service, int(pod)] += 1
            else:
                found.append(f"field {service} of {key} says {pod}, its string {client.get(key + service)}")
    for namespace, service in services:
        loads = {pod: load for pod, load in executor.get_service(namespace, service).loads.items() if load}
        counted = {pod: n for (ns, svc, pod), n in listed.items() if (ns, svc) == (namespace, service)}
        if loads != counted:
            found.append(f"loads of {namespace}/{service} are {loads}, its links are {counted}")
    return found
