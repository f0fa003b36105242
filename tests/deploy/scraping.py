"""An operator that has lived through everything that it counts, and a Prometheus that scraped it meanwhile."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import yaml

from cluster.harness import Kube, Wire, bare_pod
from cluster.operators import Operator, running_operator
from deploy.monitoring import ALERTS, Exposed
from podlink import sync
from sandbox.processes import eventually, free_port, spawn, until
from sandbox.redis_servers import RedisServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sandbox.cluster import Cluster

UID = "somebody"
"""What all uids begin with; no PodLink has another name than its uid."""

FEW, MANY = 3, 60
FLAGS = ("--resync-seconds", "1", "--recount-seconds", "1")
_READY = {"0": "Ready", "1": "Ready"}


class Prometheus:
    """A server on a port of 127.0.0.1."""

    def __init__(self, port: int) -> None:
        self._port = port

    def ask(self, path: str, **parameters: str) -> Any:
        """The data of an answer; AssertionError for a query that it refuses."""
        query = f"{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/api/v1/{query}", timeout=10) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(f"{path} {parameters}: {error.read().decode()}") from error

    def is_ready(self) -> bool:
        """Whether it answers queries; OSError while it does not answer at all, or that it is not ready."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/-/ready", timeout=10) as answer:
            return answer.status == HTTPStatus.OK

    def await_scrapes(self, number: int) -> None:
        """Wait until it has scraped that many times more."""
        since = time.time()
        query = f"count_over_time(podlink_leader[1h]) - count_over_time(podlink_leader[1h] @ {since}) >= {number}"
        until(lambda: self.ask("query", query=query)["result"], 30, f"{number} scrapes")

    def last_scrape(self) -> float:
        """Unix time of the last scrape that was answered."""
        query = "timestamp(podlink_leader)"
        (sample,) = until(lambda: self.ask("query", query=query)["result"], 30, "a scrape that is answered")
        return float(sample["value"][1])


class Scraped(NamedTuple):
    """What there is of it when all is over."""

    few: Exposed
    """/metrics after a few PodLinks of each sort."""
    metrics: Exposed
    """/metrics after many more."""
    moment: float
    """Unix time at which it was running last."""
    prometheus: Prometheus | None

    def ask(self, path: str, **parameters: str) -> Any:
        """As Prometheus.ask; skips the test where there is no Prometheus."""
        if self.prometheus is None:
            pytest.skip("no prometheus on PATH; Debian's package prometheus would un-skip it")
        return self.prometheus.ask(path, **parameters)

    def select(self, expr: str) -> list[dict[str, Any]]:
        """The result of a query while the operator was running."""
        return self.ask("query", query=expr, time=str(self.moment))["result"]


@contextlib.contextmanager
def scrape(cluster: Cluster, directory: Path) -> Iterator[Scraped]:
    """Run an operator through everything, twice; it is gone when the block begins, and Prometheus is not."""
    with contextlib.ExitStack() as stack:
        namespace = cluster.create_namespace()
        stack.callback(cluster.delete_namespace, namespace)
        with contextlib.ExitStack() as life:
            redis = life.enter_context(RedisServer())
            # Its PodLinks are gone before other operators, of other tests, could take them for theirs.
            operator = life.enter_context(
                running_operator(cluster, "--redis-url", redis.url, "--namespace", namespace, *FLAGS)
            )
            prometheus = stack.enter_context(_prometheus(directory, operator))
            day = _Day(life, cluster, namespace, redis, operator)
            day.live_through(FEW)
            few = Exposed(operator.metrics())
            if prometheus is not None:
                prometheus.await_scrapes(2)
            day.live_through(MANY)
            metrics = Exposed(operator.metrics())
            if prometheus is not None:
                prometheus.await_scrapes(2)
            # Of the last scrape that was answered, and not now: one that was not makes all series stale.
            moment = prometheus.last_scrape() if prometheus is not None else time.time()
        yield Scraped(few, metrics, moment, prometheus)


@contextlib.contextmanager
def _prometheus(directory: Path, operator: Operator) -> Iterator[Prometheus | None]:
    program = shutil.which("prometheus")
    if program is None:
        yield None
        return
    target = {"targets": [f"127.0.0.1:{operator.port}"], "labels": {"namespace": "podlink-system", "pod": "podlink-0"}}
    settings = {
        "global": {"scrape_interval": "500ms", "evaluation_interval": "500ms"},
        "rule_files": [str(ALERTS)],
        "scrape_configs": [{"job_name": "podlink", "static_configs": [target]}],
    }
    file = directory / "prometheus.yaml"
    file.write_text(yaml.safe_dump(settings))
    port = free_port()
    argv = [
        program,
        f"--config.file={file}",
        f"--storage.tsdb.path={directory / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with spawn(argv, log_path=directory / "prometheus.log") as process:
        server = Prometheus(port)

        def is_ready() -> bool:
            assert process.alive, process.log_tail()
            return server.is_ready()

        until(is_ready, 30, "Prometheus to be ready", retry_on=(OSError,))
        until(lambda: server.ask("query", query="podlink_leader")["result"], 30, "the first scrape")
        yield server


class _Day:
    """What may happen to an operator."""

    def __init__(
        self, life: contextlib.ExitStack, cluster: Cluster, namespace: str, redis: RedisServer, operator: Operator
    ) -> None:
        self.kube = life.enter_context(Kube(cluster, namespace))
        self.wire = Wire(life.enter_context(redis.client()), namespace)
        self.gateway = life.enter_context(sync.StatefulExecutor.from_url(redis.url))
        self.redis = redis
        self.operator = operator
        self.number = 0

    def live_through(self, links: int) -> None:
        """All of it once, with that many PodLinks; none is left."""
        self._begin()
        self._phases(links)
        self._drift()
        self._unreadable_link()
        self._outage()
        self.kube.delete_all("podlinks")
        eventually(lambda: self.kube.list("podlinks"), [])
        self.operator.await_sweeps(1)

    def _begin(self) -> None:
        if self.kube.get("statefulsets", "lobby") is None:
            self.kube.stateful_set("lobby", 2)
            self.kube.create(
                "pods", bare_pod("nobody", {"apps.kubernetes.io/pod-index": "x", "podlink.io/service": "a"})
            )
        eventually(self.wire.states, _READY)
        for draining, state in (("true", "Draining"), (None, "Ready")):
            self.kube.patch("pods", "lobby-1", {"metadata": {"labels": {"podlink.io/draining": draining}}})
            eventually(self.wire.states, _READY | {"1": state})

    def _uid(self) -> str:
        self.number += 1
        return f"{UID}-{self.number}"

    def _phases(self, links: int) -> None:
        linked = [self._uid() for _ in range(links)]
        for uid in linked:
            self.kube.link(uid)
        held, short, waiting = self._uid(), self._uid(), self._uid()
        self.gateway.set_linked_pod(self.kube.namespace, held, "lobby", 0)
        self.kube.link(held, podId=1)
        self.kube.link(short, persistSeconds=1)
        self.kube.link(waiting, podId=9)
        expected = dict.fromkeys(linked, "Linked") | {held: "Conflict", short: "Expired", waiting: "Pending"}
        eventually(lambda: {uid: self.kube.status(uid).get("phase") for uid in expected}, expected)
        self.kube.edit(waiting, podId=1)
        eventually(lambda: self.kube.report(waiting), ("Linked", "Linked", 1))

    def _drift(self) -> None:
        uid = self._uid()
        self.kube.link(uid)
        eventually(lambda: self.kube.report(uid)[0], "Linked")
        pod = str(self.kube.report(uid)[2])
        self.wire.redis.script_flush()
        self.gateway.remove_linked_pod(self.kube.namespace, uid, "lobby")
        eventually(lambda: self.wire.link(uid), (pod, pod))
        self.wire.redis.hset(f"sf:{{{self.kube.namespace}:state:lobby}}", "1", "Failed")
        self.wire.redis.set(f"sf:{{{self.kube.namespace}:workload:lobby}}", "Unavailable")
        eventually(self.wire.service, (_READY, "Available"))

    def _unreadable_link(self) -> None:
        uid = self._uid()
        self.wire.redis.set(f"sf:{{{self.kube.namespace}:lk:{uid}}}", "no hash")
        self.kube.link(uid)
        sample = 'podlink_sweep_repairs_total{kind="unreadable"}'
        before = self.operator.metric(sample)
        until(lambda: self.operator.metric(sample) > before, 60, "the sweep to find it")
        self.wire.redis.delete(f"sf:{{{self.kube.namespace}:lk:{uid}}}")
        eventually(lambda: self.kube.report(uid)[0], "Linked", timeout=40)

    def _outage(self) -> None:
        self.redis.stop()
        eventually(lambda: self.operator.metric("podlink_redis_up"), 0)
        self.redis.start()
        eventually(lambda: self.operator.metric("podlink_redis_up"), 1)
        eventually(self.wire.service, (_READY, "Available"))
