"""However slow and broken the network of candidates is, no two work at a time, and one does when it can.

Time is the event loop's own and passes at once, so that hours of it can be looked through.
"""

from __future__ import annotations

import asyncio
import random
import selectors
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, cast

import pytest

from effort import by_profile
from podlink.cluster import lease
from podlink.cluster.client import ApiError, Cluster
from podlink.cluster.lease import Election

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

PLACE = "podlink-system", "podlink"
TAKEOVER_SECONDS = 60


class LeaseServer:
    """The one Lease of an API server."""

    def __init__(self) -> None:
        self.lease: dict[str, Any] | None = None
        self._version = 0

    def read(self) -> dict[str, Any]:
        if self.lease is None:
            raise ApiError(HTTPStatus.NOT_FOUND, "not found")
        return self.lease

    def write(self, body: dict[str, Any], *, new: bool) -> dict[str, Any]:
        known = self.lease and self.lease["metadata"]["resourceVersion"]
        if (new and known) or (not new and body["metadata"].get("resourceVersion") != known):
            raise ApiError(HTTPStatus.CONFLICT, "conflict")
        self._version += 1
        self.lease = {**body, "metadata": {"name": "podlink", "resourceVersion": str(self._version)}}
        return self.lease


class Network:
    """One candidate's way to the server; `delay` says how long a request takes there, and back."""

    def __init__(self, server: LeaseServer, delay: Callable[[], float]) -> None:
        self._server = server
        self._delay = delay

    async def _asked(self, ask: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        await asyncio.sleep(self._delay())
        try:
            return ask()
        finally:
            await asyncio.sleep(self._delay())

    async def read_lease(self, *_: str) -> dict[str, Any]:
        return await self._asked(self._server.read)

    async def create_lease(self, _: str, body: dict[str, Any]) -> dict[str, Any]:
        return await self._asked(lambda: self._server.write(body, new=True))

    async def update_lease(self, _: str, __: str, body: dict[str, Any]) -> dict[str, Any]:
        return await self._asked(lambda: self._server.write(body, new=False))


class Candidate:
    """One that stands for the Lease, and writes down when it works."""

    def __init__(self, name: str, server: LeaseServer, working: set[str], delay: Callable[[], float]) -> None:
        self.election = Election(cast("Cluster", Network(server, delay)), *PLACE, name)
        self.stop = asyncio.Event()
        self.terms = 0
        self._name = name
        self._working = working

    async def run(self) -> None:
        await self.election.lead(self._work, self.stop)

    async def _work(self) -> None:
        self._working.add(self._name)
        self.terms += 1
        assert len(self._working) == 1, f"{self._working} work at the same time"
        try:
            await self.stop.wait()
        finally:
            self._working.discard(self._name)


async def somebody(working: set[str]) -> None:
    """Wait until one works."""
    while not working:  # noqa: ASYNC110 - the time that passes is what is looked at
        await asyncio.sleep(0.1)


class _Immediate(selectors.SelectSelector):
    """Waits for nothing; the time of the wait has passed all the same."""

    now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        self.now += timeout or 0
        return super().select(0)


def in_no_time(main: Callable[[], Coroutine[Any, Any, None]], monkeypatch: pytest.MonkeyPatch) -> None:
    selector = _Immediate()
    loop = asyncio.SelectorEventLoop(selector)
    monkeypatch.setattr(loop, "time", lambda: selector.now)
    monkeypatch.setattr(lease, "monotonic", lambda: selector.now)
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(main())


@pytest.mark.parametrize("seed", range(by_profile(3, 40)))
def test_no_two_work_at_a_time(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    randomness = random.Random(seed)
    monkeypatch.setattr(lease, "uniform", randomness.uniform)

    def weather() -> Callable[[], float]:
        """Fine for a while, then slow, then gone, of each a random time."""
        until, kind = 0.0, 0

        def delay() -> float:
            nonlocal until, kind
            now = asyncio.get_running_loop().time()
            if now >= until:
                until, kind = now + randomness.uniform(1, 40), randomness.randrange(3)
            return (0.01, randomness.uniform(0.5, 4), 100.0)[kind]

        return delay

    async def main() -> None:
        server, working = LeaseServer(), set[str]()
        candidates = [Candidate(name, server, working, weather()) for name in "abc"]
        async with asyncio.TaskGroup() as tasks:
            for each in candidates:
                tasks.create_task(each.run())
            await asyncio.sleep(7200)
            for each in candidates:
                each.stop.set()
        assert sum(each.terms for each in candidates) > 10, "the Lease went round"

    in_no_time(main, monkeypatch)


def test_a_holder_whose_server_hangs_has_ended_before_another_may_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    delays = {"a": 0.01}

    async def main() -> None:
        server, working = LeaseServer(), set[str]()
        first = Candidate("a", server, working, lambda: delays["a"])
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(first.run())
            loop = asyncio.get_running_loop()
            for slow in (0.0, 0.7, 1.4, 2.1, 2.4):
                delays["a"] = 0.01
                await somebody(working)
                # Slow answers first, and then none at all.
                delays["a"] = slow
                await asyncio.sleep(5)
                renewed, version = loop.time(), server.read()["metadata"]["resourceVersion"]
                delays["a"] = 1000.0
                while working:
                    await asyncio.sleep(0.01)
                    if server.read()["metadata"]["resourceVersion"] != version:
                        renewed, version = loop.time(), server.read()["metadata"]["resourceVersion"]
                assert loop.time() - renewed < 9, "of the 15 s after which another one takes the Lease"
                assert first.election.problem is not None
            task.cancel()

    in_no_time(main, monkeypatch)


@pytest.mark.parametrize("moment", [1.0, 3.5, 6.07, 8.2, 9.9])
def test_one_answer_that_never_comes_costs_nobody_the_lease(moment: float, monkeypatch: pytest.MonkeyPatch) -> None:
    hung: list[float] = []

    def delay() -> float:
        now = asyncio.get_running_loop().time()
        if now >= moment and not hung:
            hung.append(now)
            return 1000.0
        return 0.01

    async def main() -> None:
        server, working = LeaseServer(), set[str]()
        first = Candidate("a", server, working, delay)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(first.run())
            await asyncio.sleep(60)
            assert hung
            assert (first.terms, working, first.election.problem) == (1, {"a"}, None)
            first.stop.set()

    in_no_time(main, monkeypatch)


def test_a_lease_that_was_given_back_is_taken_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        server, working = LeaseServer(), set[str]()
        first, second = (Candidate(name, server, working, lambda: 0.01) for name in "ab")
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(first.run())
            await asyncio.sleep(1)
            tasks.create_task(second.run())
            await asyncio.sleep(30)
            assert working == {"a"}
            spec = server.read()["spec"]
            assert spec["acquireTime"] < spec["renewTime"], "it was renewed since, and is the same term"
            assert second.election.holder == "a"
            first.stop.set()
            await running
            ended = loop.time()
            await somebody(working)
            assert loop.time() - ended < 3
            assert server.read()["spec"]["leaseTransitions"] == 1
            second.stop.set()
        assert server.read()["spec"]["holderIdentity"] == ""

    in_no_time(main, monkeypatch)


def test_a_lease_whose_holder_is_gone_is_taken_when_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        server, working = LeaseServer(), set[str]()
        # By a clock of its own, which is of no matter to others.
        spec = {"holderIdentity": "gone", "leaseDurationSeconds": 40, "renewTime": "2031-01-01T00:00:00.000000Z"}
        server.write({"metadata": {}, "spec": spec}, new=True)
        second = Candidate("b", server, working, lambda: 0.01)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(second.run())
            await asyncio.sleep(39)
            assert working == set()
            await asyncio.sleep(4)
            assert working == {"b"}
            second.stop.set()

    in_no_time(main, monkeypatch)


def test_an_error_of_the_work_gives_the_lease_back(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        server = LeaseServer()
        election = Election(cast("Cluster", Network(server, lambda: 0.01)), *PLACE, "a")

        async def fail() -> None:
            raise ValueError("broken")

        with pytest.raises(ValueError, match="broken"):
            await election.lead(fail, asyncio.Event())
        assert server.read()["spec"]["holderIdentity"] == ""

    in_no_time(main, monkeypatch)
