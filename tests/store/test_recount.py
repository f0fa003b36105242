"""The recount: wrong loads become right, right ones stay right, and the server hardly notices."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest
import redis

from podlink import InvalidArgument, RedisUnavailable, ScriptError, StatefulExecutor, sync
from podlink.domain import keys
from podlink.store import operations
from podlink.store.counting import Recount, Repair, recount
from podlink.store.counting.loads import SLICE_KEYS
from sandbox.processes import until, until_async
from store.harness import (
    ALL_TOPOLOGIES,
    EXPIRY,
    LINK,
    LINKS,
    LOAD,
    NS,
    ONE_SERVER,
    STATE,
    SVC,
    UID,
    Topology,
    Wire,
    fill,
    orphans,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from podlink.store.operations import Operation
    from sandbox.redis_servers import RedisServer

    Step: TypeAlias = Callable[[Wire, sync.StatefulExecutor], object]

# Each starts from loads that are wrong, and says itself that they are right afterwards.
pytestmark = [
    pytest.mark.usefixtures("leaves_orphans"),
    pytest.mark.only_on(
        *ONE_SERVER, "cluster", reason="TLS and Sentinels change how one connects, not what is counted"
    ),
]

one_server = pytest.mark.only_on(*ONE_SERVER, reason="each server of a Cluster has statistics of its own")
one_step = pytest.mark.only_on(*ONE_SERVER, reason="in a Cluster moves of one link may cross, which makes loads wrong")

PAUSE_SECONDS = 0.01
BOTH = [LINK, LINKS]


class Spent:
    """Lets everything pass at once, and remembers how much that was."""

    def __init__(self) -> None:
        self.slices: list[int] = []

    async def __call__(self, count: int) -> None:
        self.slices.append(count)
        await asyncio.sleep(0)


async def recounted(executor: StatefulExecutor, namespaces: Sequence[str] = ()) -> Recount:
    return await recount(executor, namespaces, spend=Spent(), pause_seconds=PAUSE_SECONDS)


def members(raw: redis.Redis) -> dict[str, dict[str, float]]:
    """Every expiry set."""
    return {key: dict(raw.zrange(key, 0, -1, withscores=True)) for key in raw.scan_iter("sf:{*}exp")}


def temporary_links(raw: redis.Redis) -> dict[str, dict[str, float]]:
    """The expiry sets as they must be: a member for each temporary link that is listed, at its end."""
    wanted: dict[str, dict[str, float]] = {}
    for key in raw.scan_iter("sf:{*:lk:*}"):
        if uid := keys.uid_of_key(key):
            for service in raw.hkeys(key):
                if (ends := raw.execute_command("PEXPIRETIME", key + service)) > 0:
                    expiry = keys.expiry_key(uid.namespace, service)
                    wanted.setdefault(expiry, {})[f"{raw.get(key + service)} {key}{service}"] = ends
    return wanted


def wrong(server: Topology) -> list[str]:
    """What does not add up, in words."""
    with server.client() as raw, sync.StatefulExecutor.from_url(server.url) as executor:
        problems = orphans(raw, executor, prune=not server.expires_fields)
        found, wanted = members(raw), temporary_links(raw)
    for key in found.keys() | wanted.keys():
        differ = found.get(key, {}).items() ^ wanted.get(key, {}).items()
        problems += [f"{key}: {member} with end {ends} is but one of member and link" for member, ends in differ]
    return problems


@contextlib.asynccontextmanager
async def busy(*clients: Awaitable[object]) -> AsyncIterator[None]:
    """Clients that go on for ever, until the end of the block."""
    tasks = [asyncio.ensure_future(client) for client in clients]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        for ended in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(ended, asyncio.CancelledError), ended


async def link_at_random(
    executor: StatefulExecutor, rng: random.Random, uids: Sequence[str], pods: int, seconds: Sequence[int]
) -> None:
    """One call of ours."""
    uid, pod, service = rng.choice(uids), rng.randrange(pods), rng.choice([SVC, "arena"])
    match rng.randrange(5):
        case 0:
            await executor.remove_linked_pod(NS, uid, service, persist_seconds=rng.choice([0, 0, 300]))
        case 1:
            await executor.remove_linked_pod_with_id(NS, uid, service, pod)
        case 2:
            await executor.compute_linked_pod_if_absent(NS, uid, service, persist_seconds=rng.choice(seconds))
        case 3:
            await executor.try_set_linked_pod(NS, uid, service, pod, persist_seconds=rng.choice(seconds))
        case _:
            await executor.set_linked_pod(NS, uid, service, pod, persist_seconds=rng.choice(seconds))


class Others:
    """Clients that know the first four keys only, and clients that die half way."""

    def __init__(self, raw: redis.Redis, rng: random.Random, uids: Sequence[str], pods: int) -> None:
        self._raw, self._wire, self._rng, self._uids, self._pods = raw, Wire(raw), rng, uids, pods

    def act(self) -> None:
        """Do one of the things they do."""
        rng = self._rng
        uid, pod, service = rng.choice(self._uids), rng.randrange(self._pods), rng.choice([SVC, "arena"])
        both = [keys.link_key(NS, uid, service), keys.link_hash_key(NS, uid)]
        seconds = rng.choice([-1, 1, 300])
        match rng.randrange(7):
            case 0:
                self._wire("statefulSetLink", both, service, pod, seconds)
            case 1:
                self._wire("statefulTrySetLink", both, service, pod, seconds)
            case 2:
                self._wire("statefulRemoveLink", both, service, rng.choice([0, 0, 300]))
            case 3:
                self._wire("statefulRemoveLinkWithId", both, service, pod, 0)
            case 4:  # the original gives the time to live to the string alone
                self._raw.hset(both[1], service, str(pod))
                self._raw.set(both[0], str(pod), ex=seconds if seconds > 0 else None)
            case 5:  # reserved, and died before the link was made
                self._raw.hincrby(keys.load_key(NS, service), str(pod), 1)
            case _:  # made or removed a link, and died before its load was booked
                self._raw.zrem(keys.expiry_key(NS, service), f"{pod} {both[0]}")


@pytest.fixture
def uids() -> list[str]:
    return [f"player-{number}" for number in range(60)]


@pytest.fixture
def ready(raw: redis.Redis) -> None:
    for service in (SVC, "arena"):
        raw.hset(keys.state_key(NS, service), mapping=dict.fromkeys(["0", "1", "2"], "Ready"))


def go(name: str, *args: str | int) -> Step:
    """What a client does that sends two keys."""
    return lambda wire, _: wire(name, BOTH, SVC, *args)


def ours(pod: int, seconds: int = -1) -> Step:
    """What our clients do."""
    return lambda _, executor: executor.set_linked_pod(NS, UID, SVC, pod, persist_seconds=seconds)


MEMBER = f"1 {LINK}"
LATER = 4_000_000_000_000


@pytest.mark.only_on("valkey", reason="a link at a time; what differs elsewhere is in the mixes below")
@pytest.mark.parametrize(
    ("steps", "load"),
    [
        ([go("statefulSetLink", 1, -1)], {"1": "1"}),
        ([go("statefulSetLink", 1, 60)], {"1": "1"}),
        (
            [lambda wire, _: wire.redis.hset(LINKS, SVC, "1"), lambda wire, _: wire.redis.set(LINK, "1", ex=60)],
            {"1": "1"},
        ),
        ([ours(1), go("statefulSetLink", 2, -1)], {"2": "1"}),
        ([ours(1), go("statefulSetLink", 2, 60)], {"2": "1"}),
        ([ours(1), go("statefulSetLink", 1, 60)], {"1": "1"}),
        ([ours(1, 60), go("statefulSetLink", 2, -1)], {"2": "1"}),
        ([ours(1, 60), go("statefulSetLink", 2, 60)], {"2": "1"}),
        ([ours(1, 60), go("statefulSetLink", 1, -1)], {"1": "1"}),
        ([ours(1, 60), go("statefulSetLink", 1, 900)], {"1": "1"}),
        ([ours(1, 900), go("statefulSetLink", 1, 60)], {"1": "1"}),
        ([ours(1), go("statefulRemoveLink", 0)], {}),
        ([ours(1), go("statefulRemoveLink", 60)], {}),
        ([ours(1, 60), go("statefulRemoveLink", 0)], {}),
        ([ours(1, 60), go("statefulRemoveLink", 60)], {}),
        ([ours(1, 60), go("statefulSetLink", 2, 60), ours(1, 60)], {"1": "1"}),
        ([ours(1, 60), go("statefulSetLink", 2, 60), ours(3)], {"3": "1"}),
        ([ours(1), lambda wire, _: wire.redis.hincrby(LOAD, "0", 3)], {"1": "1"}),
        ([ours(1), lambda wire, _: wire.redis.hincrby(LOAD, "1", 3)], {"1": "1"}),
        ([ours(1), lambda wire, _: wire.redis.hset(LOAD, "1", -3)], {"1": "1"}),
        ([ours(1), lambda wire, _: wire.redis.delete(LOAD)], {"1": "1"}),
        ([ours(1, 60), lambda wire, _: wire.redis.delete(LOAD)], {"1": "1"}),
        ([ours(1, 60), lambda wire, _: wire.redis.delete(EXPIRY)], {"1": "1"}),
        ([ours(1, 60), lambda wire, _: wire.redis.delete(LOAD, EXPIRY)], {"1": "1"}),
        ([lambda wire, _: wire.redis.hset(LOAD, "5", "2")], {}),
        (
            [lambda wire, _: wire.redis.zadd(EXPIRY, {MEMBER: LATER}), lambda wire, _: wire.redis.hset(LOAD, "1", "1")],
            {},
        ),
        ([lambda wire, _: wire.redis.zadd(EXPIRY, {MEMBER: LATER})], {}),
    ],
)
async def test_one_link_that_others_had_a_hand_in(
    aexecutor: StatefulExecutor,
    server: Topology,
    wire: Wire,
    steps: list[Step],
    load: dict[str, str],
) -> None:
    await aexecutor.set_linked_pod(NS, "bystander", SVC, 7, persist_seconds=90)
    with sync.StatefulExecutor.from_url(server.url) as blocking:
        for step in steps:
            step(wire, blocking)
    await recounted(aexecutor)
    assert wire.loads() == {"7": "1", **load}
    assert wrong(server) == []
    again = await recounted(aexecutor)
    assert (again.loads, again.members, again.walks) == ((), 0, 1)

    # The units are whole: they go with their links.
    await aexecutor.remove_linked_pod(NS, UID, SVC)
    await aexecutor.remove_linked_pod(NS, "bystander", SVC)
    assert wire.redis.keys("sf:{games:state:*") == []


async def test_a_unit_passes_to_the_link_that_became_permanent(aexecutor: StatefulExecutor, wire: Wire) -> None:
    await aexecutor.set_linked_pod(NS, UID, SVC, 1, persist_seconds=60)
    wire("statefulSetLink", BOTH, SVC, 1, -1)
    done = await recounted(aexecutor)
    assert (done.loads, done.members, done.walks) == ((), 1, 1)
    assert wire.loads() == {"1": "1"}


async def test_what_it_did_is_told(aexecutor: StatefulExecutor, raw: redis.Redis, wire: Wire) -> None:
    for number in range(4):
        await aexecutor.set_linked_pod(NS, f"player-{number}", SVC, number % 2)
    wire("statefulSetLink", BOTH, SVC, 1, 60)
    raw.hset("sf:{other:state:left}load", "3", "2")
    raw.hincrby(LOAD, "0", 5)
    done = await recounted(aexecutor)
    assert (done.links, done.services, done.members, done.left_out, done.reason) == (5, 2, 1, 0, None)
    assert sorted(done.loads) == [Repair(NS, SVC, 0, 7, 2), Repair("other", "left", 3, 2, 0)]


@pytest.mark.only_on(*ALL_TOPOLOGIES, reason="this is what the recount promises, wherever the loads are")
@pytest.mark.usefixtures("ready")
@pytest.mark.parametrize("seed", range(2))
async def test_any_mix_of_calls_and_mishaps(
    aexecutor: StatefulExecutor, server: Topology, raw: redis.Redis, uids: list[str], seed: int
) -> None:
    rng = random.Random(seed)
    others = Others(raw, rng, uids, 3)
    for _ in range(400):
        if rng.random() < 0.5:
            others.act()
        else:
            await link_at_random(aexecutor, rng, uids, 3, [-1, 1, 300])
    assert wrong(server) != []
    # What ends while it is counted is for the next recount.
    until(lambda: not short_lived(raw), 5, "the short links to end")

    done = await recounted(aexecutor)
    assert wrong(server) == []
    assert done.loads
    assert done.members
    again = await recounted(aexecutor)
    assert (again.loads, again.members) == ((), 0)


def short_lived(raw: redis.Redis) -> list[str]:
    """The links that end within seconds."""
    return [key for key in raw.scan_iter("sf:{*:lk:*}*") if 0 <= raw.pttl(key) < 20_000]


@one_step
@pytest.mark.usefixtures("ready")
async def test_right_loads_are_left_alone_whatever_goes_on(
    aexecutor: StatefulExecutor, server: Topology, uids: list[str]
) -> None:
    async def churn(number: int) -> None:
        rng = random.Random(number)
        while True:
            await link_at_random(aexecutor, rng, uids, 3, [-1, -1, 1, 300])

    async with StatefulExecutor.from_url(server.url) as operators, busy(*map(churn, range(100))):
        done = [await recounted(operators) for _ in range(4)]
    assert [(each.loads, each.members) for each in done] == [((), 0)] * 4
    assert max(each.walks for each in done) > 1
    until(lambda: wrong(server) == [], 5, "the links that end to be settled")


@one_step
@pytest.mark.usefixtures("ready")
async def test_right_loads_are_left_alone_where_few_links_come_and_go(
    aexecutor: StatefulExecutor, server: Topology
) -> None:
    rng = random.Random(1)

    async def churn() -> None:
        while True:
            await link_at_random(aexecutor, rng, ["a", "b"], 2, [-1, 1])
            await asyncio.sleep(rng.random() / 100)

    async with StatefulExecutor.from_url(server.url) as operators, busy(churn(), churn()):
        done = [await recounted(operators) for _ in range(15)]
    assert [(each.loads, each.members) for each in done] == [((), 0)] * 15
    until(lambda: wrong(server) == [], 5, "the links that end to be settled")


@pytest.mark.only_on("cluster", reason="elsewhere a link and its load are written in one step")
@pytest.mark.usefixtures("ready")
async def test_loads_that_are_booked_a_moment_later_are_left_alone(
    aexecutor: StatefulExecutor, server: Topology
) -> None:
    async def churn(number: int) -> None:
        rng = random.Random(number)
        while True:
            await link_at_random(aexecutor, rng, [f"player-{number}"], 3, [-1, 1, 300])

    # The pause must be longer than what lies between a link and its booking.
    async with StatefulExecutor.from_url(server.url) as operators, busy(*map(churn, range(30))):
        done = [await recount(operators, spend=Spent(), pause_seconds=0.3) for _ in range(2)]
    assert [(each.loads, each.members) for each in done] == [((), 0)] * 2


@pytest.mark.usefixtures("ready")
async def test_a_busy_service_gets_better_and_a_quiet_one_right(
    aexecutor: StatefulExecutor, server: Topology, raw: redis.Redis, uids: list[str]
) -> None:
    others = Wire(raw)
    for number in range(150):
        both = [keys.link_key(NS, f"theirs-{number}", SVC), keys.link_hash_key(NS, f"theirs-{number}")]
        others("statefulSetLink", both, SVC, 0, -1)
    raw.hincrby(LOAD, "1", 500)

    async def churn(number: int) -> None:
        rng = random.Random(number)
        while True:
            await link_at_random(aexecutor, rng, uids, 2, [-1, -1, 300])

    async with StatefulExecutor.from_url(server.url) as operators, busy(*map(churn, range(20))):
        done = await recounted(operators)
    changed = {(each.service, each.pod): each.after - each.before for each in done.loads}
    # 60 uids come and go; that many it may leave, and not one too many may it take.
    assert set(changed) == {(SVC, 0), (SVC, 1)}
    assert 90 <= changed[SVC, 0] <= 150
    assert -500 <= changed[SVC, 1] <= -440

    await recounted(aexecutor)
    assert wrong(server) == []


@pytest.mark.usefixtures("ready")
async def test_after_a_recount_amid_clients_of_all_kinds_the_next_one_makes_it_right(
    aexecutor: StatefulExecutor, server: Topology, raw: redis.Redis, uids: list[str]
) -> None:
    others = Others(raw, random.Random(5), uids, 3)

    async def churn(number: int) -> None:
        rng = random.Random(number)
        while True:
            await link_at_random(aexecutor, rng, uids, 3, [-1, 1, 300])
            if number % 10 == 0:
                others.act()

    async with StatefulExecutor.from_url(server.url) as operators, busy(*map(churn, range(30))):
        await recounted(operators)
    until(lambda: not short_lived(raw), 5, "the short links to end")
    await recounted(aexecutor)
    assert wrong(server) == []


@pytest.mark.usefixtures("ready")
async def test_two_recounts_at_a_time(aexecutor: StatefulExecutor, server: Topology, raw: redis.Redis) -> None:
    others = Others(raw, random.Random(2), [f"player-{number}" for number in range(200)], 3)
    for _ in range(300):
        others.act()
    until(lambda: not short_lived(raw), 5, "the short links to end")
    async with StatefulExecutor.from_url(server.url) as second:
        await asyncio.gather(recounted(aexecutor), recounted(second))
    assert wrong(server) == []


class Meddled(StatefulExecutor):
    """An executor behind whose back something happens, once, just before an operation of this name is sent."""

    before = ""
    happens: Callable[[], object] = staticmethod(lambda: None)

    async def run_many(self, many: Sequence[Operation[Any]]) -> list[Any]:
        if self.before and any(operation.name == self.before for operation in many):
            self.before = ""
            self.happens()
        return await super().run_many(many)


@pytest.fixture
async def meddled(server: Topology, raw: redis.Redis) -> AsyncIterator[Meddled]:
    async with Meddled.from_url(server.url) as executor:
        yield executor


async def test_a_load_that_changes_just_before_its_repair(meddled: Meddled, server: Topology, wire: Wire) -> None:
    with sync.StatefulExecutor.from_url(server.url) as executor:
        executor.set_linked_pod(NS, "a", SVC, 1)
        wire.redis.hincrby(LOAD, "1", 5)
        meddled.before, meddled.happens = "mend_load", lambda: executor.remove_linked_pod(NS, "a", SVC)
        await recounted(meddled)
        assert meddled.before == ""
        # Every walk saw the link, so its unit is left; the next recount sees that it is one too many.
        assert wire.loads() == {"1": "1"}
        await recounted(meddled)
    assert wire.loads() == {}


@pytest.mark.parametrize("again", [None, 1, 2])
async def test_a_link_that_goes_just_before_it_gets_its_unit(
    meddled: Meddled, server: Topology, wire: Wire, again: int | None
) -> None:
    wire("statefulSetLink", BOTH, SVC, 1, 60)
    with sync.StatefulExecutor.from_url(server.url) as executor:

        def happens() -> None:
            executor.remove_linked_pod(NS, UID, SVC)
            if again is not None:
                executor.set_linked_pod(NS, UID, SVC, again, persist_seconds=90)

        meddled.before, meddled.happens = "mend_member", happens
        done = await recounted(meddled)
    assert meddled.before == ""
    assert wrong(server) == []
    assert (done.loads, done.members) == ((), 0)


async def test_a_link_that_is_replaced_just_before_its_stray_member_goes(
    meddled: Meddled, server: Topology, wire: Wire
) -> None:
    wire.redis.zadd(EXPIRY, {MEMBER: LATER})
    wire.redis.hset(LOAD, "1", "1")
    with sync.StatefulExecutor.from_url(server.url) as executor:
        meddled.before = "mend_member"
        meddled.happens = lambda: executor.set_linked_pod(NS, UID, SVC, 1, persist_seconds=90)
        done = await recounted(meddled)
    assert meddled.before == ""
    assert (done.loads, done.members) == ((), 0)
    assert wrong(server) == []


async def test_a_link_that_came_and_ended_unseen_is_not_taken_off_twice(meddled: Meddled, wire: Wire) -> None:
    await meddled.set_linked_pod(NS, UID, SVC, 1)

    def happens() -> None:
        wire.redis.zadd(EXPIRY, {f"1 {keys.link_key(NS, 'short', SVC)}": 1})
        wire.redis.hincrby(LOAD, "1", 1)

    meddled.before, meddled.happens = "read_loads", happens
    done = await recounted(meddled)
    assert meddled.before == ""
    assert (done.loads, done.members) == ((), 0)
    assert wire.loads() == {"1": "1"}


async def test_many_links_that_ended_are_no_error(aexecutor: StatefulExecutor, raw: redis.Redis) -> None:
    raw.hset(LOAD, "0", "2501")
    raw.zadd(EXPIRY, {f"0 sf:{{games:lk:u{number}}}lobby": 1 for number in range(2500)})
    await aexecutor.set_linked_pod(NS, UID, SVC, 0)
    raw.hincrby(LOAD, "0", -1)
    done = await recounted(aexecutor)
    assert (done.loads, done.members, done.walks) == ((), 0, 1)
    assert raw.hgetall(LOAD) == {"0": "1"}


async def test_only_the_given_namespaces(aexecutor: StatefulExecutor, raw: redis.Redis) -> None:
    def damage() -> None:
        for namespace in ("a", "b", "c*"):
            raw.hset(f"sf:{{{namespace}:state:lobby}}load", "1", "9")
            raw.hset(f"sf:{{{namespace}:lk:u}}", "lobby", "1")
            raw.set(f"sf:{{{namespace}:lk:u}}lobby", "1")

    def loads() -> list[str | None]:
        return [raw.hget(f"sf:{{{namespace}:state:lobby}}load", "1") for namespace in ("a", "b", "c*")]

    damage()
    await recounted(aexecutor, ["b"])
    assert loads() == ["9", "1", "9"]
    damage()
    done = await recounted(aexecutor, ["a", "c*"])
    assert loads() == ["1", "9", "1"]
    assert (done.links, done.services) == (2, 2)
    await recounted(aexecutor)
    assert loads() == ["1", "1", "1"]


@one_server
async def test_invalid_namespace(aexecutor: StatefulExecutor) -> None:
    with pytest.raises(InvalidArgument, match="namespace"):
        await recounted(aexecutor, ["a", "b:c"])


async def test_fields_without_string_are_pruned_and_count_nothing(
    aexecutor: StatefulExecutor, raw: redis.Redis, wire: Wire
) -> None:
    await aexecutor.set_linked_pod(NS, UID, SVC, 1)
    raw.hset(LINKS, "gone", "1")
    raw.hset("sf:{games:lk:nobody}", SVC, "1")
    await recounted(aexecutor)
    assert raw.hgetall(LINKS) == {SVC: "1"}
    assert raw.exists("sf:{games:lk:nobody}") == 0
    assert wire.loads() == {"1": "1"}


@one_server
async def test_what_other_clients_spoilt_is_left_alone(
    aexecutor: StatefulExecutor, server: Topology, raw: redis.Redis
) -> None:
    raw.set("sf:{games:lk:no-hash}", "x")
    raw.hset("sf:{games:lk:no-string}", SVC, "1")
    raw.lpush("sf:{games:lk:no-string}lobby", "x")
    for value in ("pod-a", "07", "-1", "1" * 30):
        raw.hset(f"sf:{{games:lk:{value}}}", SVC, value)
        raw.set(f"sf:{{games:lk:{value}}}lobby", value)
    raw.hset("sf:{games:lk:odd}", mapping={"br{ace": "1", "\x01": "1"})
    fill(raw, {"sf:{games:lk:odd}br{ace": "1", "sf:{games:lk:odd}\x01": "1"})
    raw.hset(b"sf:{games:lk:\xff}", b"\xff", b"1")
    raw.set("sf:{games:state:no-hash}load", "x")
    raw.hset("sf:{games:state:no-number}load", "1", "many")
    raw.set("sf:{games:state:no-set}exp", "x")
    raw.zadd(EXPIRY, {"0 x": LATER, "x": LATER, "pod-a sf:{games:lk:u}lobby": LATER, "1 sf:{games:lk:u}arena": LATER})
    # Its link cannot be read, so nobody knows whether it should go.
    raw.zadd(EXPIRY, {"1 sf:{games:lk:no-string}lobby": LATER})
    raw.hset(LOAD, mapping={"pod-a": "3", "1": "9"})
    binary = redis.Redis(port=server.port)
    before = {key: binary.dump(key) for key in binary.scan_iter() if key != LOAD.encode()}
    await aexecutor.set_linked_pod(NS, UID, SVC, 1)

    done = await recounted(aexecutor)
    assert raw.hgetall(LOAD) == {"pod-a": "3", "1": "1"}
    assert {key: binary.dump(key) for key in before} == before
    binary.close()
    assert done.left_out > 0
    assert "no-" in str(done.reason)
    assert done.loads == (Repair(NS, SVC, 1, 10, 1),)


@one_server
async def test_links_that_cannot_be_read_are_not_counted_as_none(
    aexecutor: StatefulExecutor, server: RedisServer, wire: Wire
) -> None:
    await aexecutor.set_linked_pod(NS, UID, SVC, 1)
    # What the recount meets on a server before Redis 7.0, and where an ACL allows less than README says.
    server.ask("ACL", "SETUSER", "gate", "reset", "on", ">correct-horse", "~*", "+@all", "-pexpiretime")
    async with StatefulExecutor.from_url(server.url_as("gate", "correct-horse")) as restricted:
        with pytest.raises(ScriptError, match="recountReadLinks"):
            await recounted(restricted)
    server.ask("ACL", "DELUSER", "gate")

    assert wire.loads() == {"1": "1"}


@one_server
async def test_the_server_is_asked_in_small_slices_that_are_paid_for(
    aexecutor: StatefulExecutor, raw: redis.Redis
) -> None:
    ends = int(time.time() * 1000) + 10**7
    for number in range(1000):
        links = f"sf:{{games:lk:u{number}}}"
        raw.hset(links, SVC, "1")
        raw.set(f"{links}lobby", "1", pxat=ends)
    raw.zadd(EXPIRY, {f"1 sf:{{games:lk:u{number}}}lobby": ends for number in range(1000)})
    raw.hset(LOAD, "1", "1000")
    raw.config_resetstat()
    spent = Spent()
    done = await recount(aexecutor, spend=spent, pause_seconds=PAUSE_SECONDS)
    assert (done.links, done.walks) == (1000, 1)

    calls = {name.removeprefix("cmdstat_"): stats["calls"] for name, stats in raw.info("commandstats").items()}
    slices = Counter(spent.slices)
    assert max(slices) == SLICE_KEYS == 100
    # A slice holds some keys more than were asked for.
    assert slices[SLICE_KEYS] == calls["scan"] > 2002 / SLICE_KEYS / 2
    # A uid is read twice: by the walk, and because its member was met.
    assert calls["zscan"] == slices[SLICE_KEYS // 2] > 1000 / 50 / 2
    assert calls["pexpiretime"] == 2000
    # A script call for each, and a handful for the service.
    assert calls["evalsha"] + calls["eval"] < 2000 + 4 * (calls["scan"] + calls["zscan"])


@one_server
async def test_keys_that_are_not_ours_are_not_sent(aexecutor: StatefulExecutor, raw: redis.Redis) -> None:
    fill(raw, {f"other:{number}": "x" * 100 for number in range(2000)})
    fill(raw, {f"sf:{{games:lk:u{number}}}lobby{'x' * 100}": "1" for number in range(2000)})
    raw.config_resetstat()
    await recounted(aexecutor)
    assert raw.info("stats")["total_net_output_bytes"] < 10_000


@one_server
async def test_cancelled_on_the_way_it_stops_at_once_and_leaves_nothing_half_done(
    aexecutor: StatefulExecutor, server: Topology, raw: redis.Redis
) -> None:
    others = Others(raw, random.Random(3), [f"player-{number}" for number in range(300)], 3)
    for _ in range(500):
        others.act()
    until(lambda: not short_lived(raw), 5, "the short links to end")

    for stop_at in (1, 4, 8, 16, 30):
        spent = 0
        stopped = asyncio.Event()

        async def spend(_count: int, stop_at: int = stop_at, stopped: asyncio.Event = stopped) -> None:
            nonlocal spent
            spent += 1
            if spent == stop_at:
                stopped.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(recount(aexecutor, spend=spend, pause_seconds=0.001))
        await until_async(lambda stopped=stopped, task=task: stopped.is_set() or task.done(), 20, "the recount to stop")
        assert not task.done()
        raw.config_resetstat()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert "cmdstat_scan" not in raw.info("commandstats")
    await recounted(aexecutor)
    assert wrong(server) == []


@pytest.mark.parametrize("slices", [1, 12, 30])
async def test_a_server_that_goes_ends_it(own_server: Callable[..., RedisServer], slices: int) -> None:
    server = own_server()
    with server.client() as raw:
        raw.hset(LOAD, mapping={"1": "9", "2": "9"})
        for number in range(500):
            raw.hset(f"sf:{{games:lk:u{number}}}", SVC, "1")
            raw.set(f"sf:{{games:lk:u{number}}}lobby", "1")
    left = slices

    async def spend(_count: int) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            server.kill()

    async with StatefulExecutor.from_url(server.url) as executor:
        with pytest.raises(RedisUnavailable):
            await recount(executor, spend=spend, pause_seconds=PAUSE_SECONDS)
    assert left <= 0  # less where the next pause comes before the next question


async def test_a_flushed_server_is_not_filled_with_what_was_there(
    aexecutor: StatefulExecutor, raw: redis.Redis
) -> None:
    for number in range(300):
        raw.hset(f"sf:{{games:lk:u{number}}}", SVC, "1")
        raw.set(f"sf:{{games:lk:u{number}}}lobby", "1", ex=900 if number % 2 else None)
    slices = 0

    async def spend(_count: int) -> None:
        nonlocal slices
        slices += 1
        if slices == 10:
            raw.flushall()

    await recount(aexecutor, spend=spend, pause_seconds=PAUSE_SECONDS)
    assert slices > 10
    assert raw.keys() == []


async def test_a_reservation_in_hand_is_not_lost_by_a_recount_of_a_right_service(
    aexecutor: StatefulExecutor, raw: redis.Redis
) -> None:
    raw.hset(STATE, "0", "Ready")

    async def reserve() -> None:
        while True:
            await aexecutor.run(operations.reserve_service_pod(NS, SVC))
            await asyncio.sleep(0.001)
            await aexecutor.run(operations.release_service_pod(NS, SVC, 0))
            await asyncio.sleep(0.001)

    async with busy(reserve()):
        done = [await recounted(aexecutor) for _ in range(5)]
    assert [each.loads for each in done] == [()] * 5
