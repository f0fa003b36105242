"""Rounds of failover under load: what an executor's callers go through when the primary is killed, or hangs.

    PYTHONPATH=operator:tests python -m store.failover --rounds 20 --durability replicated

Many tasks of one executor link fresh uids, each to a pod id that no other call of the run uses, so that every reply can
be told from every other. Some of the calls are cancelled at random. In each round the primary is lost, by SIGKILL and
by SIGSTOP in turn, its replica is promoted, and the lost server comes back, while the load goes on. Afterwards the
links in Redis are compared with what the callers were told.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import itertools
import json
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from podlink import PartialFailure, RedisUnavailable, StatefulExecutor
from podlink.domain import keys
from sandbox.processes import POLL_SECONDS, until_async
from sandbox.redis_cluster import ClusterSet
from sandbox.redis_sentinel import SentinelSet
from store.harness import NS, SVC

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Mapping

    from sandbox.redis_servers import RedisServer

TASKS = 50
TIMEOUT_SECONDS = 2.0
HUNG_SECONDS = 10 * TIMEOUT_SECONDS
# Between two calls of a task, so that a round makes some ten thousand links and not a million.
PAUSE_SECONDS = 0.01
CANCELLED_SHARE = 0.05
READ_SHARE = 0.2
BULK = 5
# Links confirmed before the fault, after the failover, and after the lost server is back.
ENOUGH = 500
PATIENCE_SECONDS = 90
SETTLE_SECONDS = 5
CHUNK = 1000


@dataclass(slots=True)
class Link:
    """One attempt to link a fresh uid, and how it ended.

    Attributes:
        outcome: "unknown" is a call that was cancelled.
        ended: time.monotonic() of the end.
    """

    uid: str
    pod: int
    outcome: Literal["confirmed", "failed", "unknown"] = "unknown"
    error: BaseException | None = None
    ended: float = 0.0


@dataclass
class Round:
    """What one round showed. Times are seconds after the fault, or lengths in seconds.

    Attributes:
        outage: the longest time without a confirmed link.
        first_error: when the first call failed that was under way or made after the fault; None when none failed.
        last_error: when the last one did.
        slowest: the longest time that a call took.
        errors: by type, and whether the call may have been applied.
        untyped: errors that a caller cannot tell from a bug, in words.
        applied_though_denied: links that are there though their call said that it was not applied.
        lost: confirmed links that are not there.
        foreign: replies that belong to another call, in words.
        hung: calls that did not end.
        connections: of the executor to any server, before the load and after it.
        tasks: of the event loop, likewise.
    """

    number: int
    fault: str
    outage: float = 0.0
    first_error: float | None = None
    last_error: float | None = None
    slowest: float = 0.0
    confirmed: int = 0
    unknown: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    untyped: list[str] = field(default_factory=list)
    applied_though_denied: int = 0
    lost: int = 0
    foreign: list[str] = field(default_factory=list)
    hung: int = 0
    connections: tuple[int, int] = (0, 0)
    tasks: tuple[int, int] = (0, 0)

    @property
    def failed(self) -> int:
        """Links whose call failed."""
        return sum(self.errors.values())


@dataclass
class Report:
    """A whole run.

    Attributes:
        left_open: connections that outlived the executor.
    """

    topology: str
    durability: str
    rounds: list[Round] = field(default_factory=list)
    left_open: int = 0

    @property
    def lost(self) -> int:
        """Confirmed links that a failover lost."""
        return sum(result.lost for result in self.rounds)


class Load:
    """Tasks that link fresh uids through one executor until they are told to stop."""

    def __init__(self, executor: StatefulExecutor, pods: Iterable[int]) -> None:
        self.links: list[Link] = []
        self.foreign: list[str] = []
        self.untyped: list[str] = []
        self.slowest = 0.0
        self.confirmed = 0
        self._executor = executor
        self._pods = iter(pods)
        self._stopping = False
        self._abandoned = False
        self._tasks = [asyncio.create_task(self._work()) for _ in range(TASKS)]

    async def until_confirmed(self, more: int) -> None:
        """Wait until so many more links are confirmed."""
        wanted = self.confirmed + more
        await until_async(lambda: self.confirmed >= wanted, PATIENCE_SECONDS, f"{more} more links to be confirmed")

    async def stop(self) -> int:
        """Let every task end its last call; returns how many calls do not end."""
        self._stopping = True
        _, hung = await asyncio.wait(self._tasks, timeout=HUNG_SECONDS)
        self._abandoned = True
        for task in hung:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        return len(hung)

    async def _work(self) -> None:
        told: list[Link] = []
        while not self._stopping:
            await self._link(told)
            if told and random.random() < READ_SHARE:
                await self._read(random.choice(told))
            await asyncio.sleep(PAUSE_SECONDS)

    async def _link(self, told: list[Link]) -> None:
        call, count = random.choice(WAYS)
        links = [Link(f"uid-{pod}", pod) for pod in itertools.islice(self._pods, count)]
        self.links += links
        results, errors = await self._run(call(self._executor, links), links)
        for link in links:
            link.ended = time.monotonic()
            if link.uid in errors:
                link.outcome, link.error = "failed", errors[link.uid]
            elif link.uid in results:
                link.outcome = "confirmed"
                self.confirmed += 1
                told.append(link)
                self._check(link, results[link.uid], call.__name__)

    async def _read(self, link: Link) -> None:
        results, _ = await self._run(_read(self._executor, [link]), [link])
        # A confirmed link may be lost; its absence is found out, and counted, afterwards.
        if results.get(link.uid) is not None:
            self._check(link, results[link.uid], "get_linked_pod")

    async def _run(
        self, call: Coroutine[Any, Any, Mapping[str, Any]], links: list[Link]
    ) -> tuple[Mapping[str, Any], Mapping[str, BaseException]]:
        """Results and errors by uid; neither for a call that was cancelled."""
        task = asyncio.create_task(call)
        if random.random() < CANCELLED_SHARE:
            asyncio.get_running_loop().call_later(random.uniform(0, 2 * PAUSE_SECONDS), task.cancel)
        started = time.monotonic()
        try:
            return await task, {}
        except asyncio.CancelledError:
            if self._abandoned:
                raise
            return {}, {}
        except PartialFailure as error:
            return error.results, error.errors
        except RedisUnavailable as error:
            return {}, {link.uid: error for link in links}
        except Exception as error:  # noqa: BLE001 - whatever a caller may meet is what this is to find out
            self.untyped.append(f"{type(error).__name__}: {error}")
            return {}, {link.uid: error for link in links}
        finally:
            self.slowest = max(self.slowest, time.monotonic() - started)

    def _check(self, link: Link, told: Any, method: str) -> None:
        if told != link.pod:
            self.foreign.append(f"{method} of {link.uid} was told {told}")


async def set_if_absent(executor: StatefulExecutor, links: list[Link]) -> dict[str, Any]:
    """The pod that each uid is linked to by one call."""
    (link,) = links
    return {link.uid: await executor.set_linked_pod_if_absent(NS, link.uid, SVC, link.pod)}


async def try_set(executor: StatefulExecutor, links: list[Link]) -> dict[str, Any]:
    """Likewise."""
    (link,) = links
    _, pod = await executor.try_set_linked_pod(NS, link.uid, SVC, link.pod)
    return {link.uid: pod}


async def bulk(executor: StatefulExecutor, links: list[Link]) -> dict[str, Any]:
    """Likewise, many at once."""
    return await executor.set_linked_pods_if_absent(NS, {link.uid: link.pod for link in links}, SVC)


async def _read(executor: StatefulExecutor, links: list[Link]) -> dict[str, Any]:
    (link,) = links
    return {link.uid: await executor.get_linked_pod(NS, link.uid, SVC)}


WAYS: list[tuple[Callable[[StatefulExecutor, list[Link]], Coroutine[Any, Any, dict[str, Any]]], int]] = [
    (set_if_absent, 1),
    (set_if_absent, 1),
    (try_set, 1),
    (bulk, BULK),
]


async def run(
    servers: SentinelSet | ClusterSet,
    rounds: int,
    durability: str,
    replicas: int = 1,
    told: Callable[[Round], None] = lambda _: None,
) -> Report:
    """Run rounds on servers that may be broken.

    Args:
        servers: started and in order.
        rounds: how many; the odd ones SIGKILL the primary, the even ones SIGSTOP it.
        durability: of the executor.
        replicas: of the executor.
        told: called with each round when it is over.

    Raises:
        TimeoutError: the servers did not fail over, or calls went on failing when they had.
    """
    report = Report("sentinel" if isinstance(servers, SentinelSet) else "cluster", durability)
    pods = itertools.count()
    async with StatefulExecutor.from_url(
        servers.url, timeout_seconds=TIMEOUT_SECONDS, durability=durability, replicas=replicas
    ) as executor:
        # By now it is connected to every server that it needs.
        await executor.get_linked_pods(NS, map(str, range(100)), SVC)
        for number in range(1, rounds + 1):
            report.rounds.append(await _round(servers, executor, pods, number, replicas))
            told(report.rounds[-1])
    report.left_open, _ = await _leftovers(servers, at_most=(0, 1))
    return report


async def _round(
    servers: SentinelSet | ClusterSet, executor: StatefulExecutor, pods: Iterable[int], number: int, replicas: int
) -> Round:
    result = Round(number, "SIGKILL" if number % 2 else "SIGSTOP")
    before = await _leftovers(servers)
    load = Load(executor, pods)
    await load.until_confirmed(ENOUGH)
    primaries = await asyncio.to_thread(servers.primaries)
    lost = primaries[number % len(primaries)]
    fault = time.monotonic()
    (lost.kill if number % 2 else lost.freeze)()
    await asyncio.to_thread(servers.await_failover, lost)
    if replicas == 1:
        # Of two replicas one is the primary now, so that two confirm again only when the lost server is back.
        await load.until_confirmed(ENOUGH)
    await asyncio.to_thread(servers.heal)
    await load.until_confirmed(ENOUGH)
    result.hung = await load.stop()
    after = await _leftovers(servers, at_most=before)
    result.connections, result.tasks = zip(before, after, strict=True)
    result.foreign, result.untyped, result.slowest = load.foreign, load.untyped, load.slowest
    _time(result, load.links, fault)
    await asyncio.to_thread(_compare, result, load.links, servers)
    return result


async def _leftovers(servers: SentinelSet | ClusterSet, at_most: tuple[int, int] = (0, 0)) -> tuple[int, int]:
    """Connections of clients and tasks of the event loop; a moment is given to those that are about to end."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        found = await asyncio.to_thread(connections, servers), len(asyncio.all_tasks())
        if at_most == (0, 0) or time.monotonic() > deadline or (found[0] <= at_most[0] and found[1] <= at_most[1]):
            return found
        await asyncio.sleep(POLL_SECONDS)


def connections(servers: SentinelSet | ClusterSet) -> int:
    """Connections of clients other than Sentinels and the one that asks, to all servers that are there."""
    asked: list[RedisServer] = [*servers.servers, *getattr(servers, "sentinels", [])]
    return sum(map(_clients, asked))


def _clients(server: RedisServer) -> int:
    with server.client() as client:
        ours = str(client.client_id())
        listed = client.client_list(_type="normal")
    return sum(each["id"] != ours and not each["name"].startswith("sentinel-") for each in listed)


def _time(result: Round, links: list[Link], fault: float) -> None:
    confirmed = sorted(link.ended for link in links if link.outcome == "confirmed" and link.ended >= fault)
    failed = sorted(link.ended - fault for link in links if link.outcome == "failed")
    result.outage = max(later - earlier for earlier, later in itertools.pairwise([fault, *confirmed]))
    if failed:
        result.first_error, result.last_error = failed[0], failed[-1]


def _compare(result: Round, links: list[Link], servers: SentinelSet | ClusterSet) -> None:
    """Hold what the callers were told against what is there, and leave nothing of it for the next round."""
    stored: dict[str, str | None] = {}
    with servers.client() as client:
        for start in range(0, len(links), CHUNK):
            some = links[start : start + CHUNK]
            with client.pipeline(transaction=False) as pipe:
                for link in some:
                    pipe.get(keys.link_key(NS, link.uid, SVC))
                stored |= zip((link.uid for link in some), pipe.execute(), strict=True)
        client.flushall()
    outcomes = Counter(link.outcome for link in links)
    result.confirmed, result.unknown = outcomes["confirmed"], outcomes["unknown"]
    result.errors = dict(Counter(_kind(link.error) for link in links if link.error is not None))
    result.lost = sum(link.outcome == "confirmed" and stored[link.uid] != str(link.pod) for link in links)
    result.applied_though_denied = sum(
        link.error is not None and not _maybe_applied(link.error) and stored[link.uid] is not None for link in links
    )


def _maybe_applied(error: BaseException) -> bool:
    return bool(getattr(error, "maybe_applied", False))


def _kind(error: BaseException) -> str:
    return f"{type(error).__name__}, {'maybe' if _maybe_applied(error) else 'not'} applied"


COLUMNS = ("round", "fault", "outage s", "errors s", "confirmed", "failed", "maybe", "lost", "hung", "foreign", "conns")


def row(result: Round) -> tuple[str, ...]:
    """A round as a row of the table, by COLUMNS."""
    window = "-" if result.first_error is None else f"{result.first_error:.2f}..{result.last_error:.2f}"
    maybe = sum(count for kind, count in result.errors.items() if kind.endswith("maybe applied"))
    return (
        str(result.number),
        result.fault,
        f"{result.outage:.2f}",
        window,
        str(result.confirmed),
        str(result.failed),
        str(maybe),
        str(result.lost),
        str(result.hung),
        str(len(result.foreign)),
        "{} -> {}".format(*result.connections),
    )


def line(words: tuple[str, ...]) -> str:
    """One line of the table."""
    return "  ".join(word.rjust(max(len(column), 9)) for word, column in zip(words, COLUMNS, strict=True))


def main() -> None:
    """Run the rounds the arguments ask for; a table as they go, and JSON at the end."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--durability", choices=["primary", "replicated"], default="replicated")
    parser.add_argument("--replicas", type=int, default=1, help="that must have a write, where it is replicated")
    parser.add_argument("--topology", choices=["sentinel", "cluster"], default="sentinel")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the JSON there, not to the standard output")
    options = parser.parse_args()

    def told(result: Round) -> None:
        sys.stdout.write(line(row(result)) + "\n")
        sys.stdout.flush()

    sys.stdout.write(line(COLUMNS) + "\n")
    with SentinelSet() if options.topology == "sentinel" else ClusterSet() as servers:
        report = asyncio.run(run(servers, options.rounds, options.durability, options.replicas, told))
    confirmed = sum(result.confirmed for result in report.rounds)
    sys.stdout.write(f"{report.lost} of {confirmed} confirmed links lost; {report.left_open} connections left open\n")
    text = json.dumps(dataclasses.asdict(report), indent=2) + "\n"
    if options.json:
        options.json.write_text(text)
    else:
        sys.stdout.write(text)


if __name__ == "__main__":
    main()
