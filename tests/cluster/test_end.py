"""SIGTERM, as a kubelet sends it: what was begun is brought to its end, and the operator is gone in time."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from cluster.harness import Kube, Wire
from cluster.operators import start_operator
from sandbox.processes import eventually, until

if TYPE_CHECKING:
    from pathlib import Path

    from sandbox.cluster import Cluster
    from sandbox.redis_servers import RedisServer

BURST = 150
GRACE_SECONDS = 20


def test_no_link_is_left_half_made(cluster: Cluster, namespace: str, redis_server: RedisServer) -> None:
    with Kube(cluster, namespace) as kube, redis_server.client() as client, ThreadPoolExecutor() as pool:
        wire = Wire(client, namespace)
        kube.stateful_set("lobby", 2)
        flags = ["--redis-url", redis_server.url, "--namespace", namespace]
        with start_operator(cluster, *flags) as operator:
            operator.await_start()
            operator.await_ready()
            creation = pool.submit(lambda: [kube.link(f"player-{number}") for number in range(BURST)])
            until(lambda: sum(map(int, wire.loads().values())) > BURST / 5, 60, "a part of the links")
            assert operator.process.stop(grace_seconds=GRACE_SECONDS) == 0
            assert operator.log()[-1]["message"] == "operator stopped"
            assert not operator.faults()
        creation.result()

        made = {name for name in (f"player-{number}" for number in range(BURST)) if wire.link(name) != (None, None)}
        reported = {
            link["metadata"]["name"]
            for link in kube.list("podlinks")
            if link.get("status", {}).get("phase") == "Linked"
        }
        assert 0 < len(made) < BURST, "it ended in the middle of the burst"
        assert made == reported

        told = {event["regarding"]["name"] for event in kube.list("events") if event["reason"] == "Linked"}
        assert told == reported, "what was reported was also told as an Event"

        with start_operator(cluster, *flags) as operator:
            operator.await_start()
            eventually(lambda: {kube.report(f"player-{number}")[0] for number in range(BURST)}, {"Linked"}, timeout=60)
            kube.delete_all("podlinks")
            eventually(lambda: kube.list("podlinks"), [], timeout=60)


def test_a_redis_that_hangs_does_not_hold_the_end_up(
    cluster: Cluster, namespace: str, redis_server: RedisServer
) -> None:
    with (
        Kube(cluster, namespace) as kube,
        start_operator(cluster, "--redis-url", redis_server.url, "--namespace", namespace) as operator,
    ):
        operator.await_start()
        operator.await_ready()
        redis_server.freeze()
        try:
            kube.stateful_set("lobby", 1)
            until(lambda: operator.readyz()[0] == 503, 60, "it to see that Redis hangs")
            assert operator.process.stop(grace_seconds=GRACE_SECONDS) == 0
        finally:
            redis_server.thaw()


def test_an_api_server_that_hangs_does_not_hold_the_end_up(
    cluster: Cluster, redis_server: RedisServer, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as hanging:
        kubeconfig = tmp_path / "kubeconfig"
        kubeconfig.write_text(json.dumps(kubeconfig_of(f"http://127.0.0.1:{hanging.getsockname()[1]}")))
        with start_operator(cluster, "--redis-url", redis_server.url, KUBECONFIG=str(kubeconfig)) as operator:
            operator.await_start()
            assert operator.process.stop(grace_seconds=GRACE_SECONDS) == 0


def test_a_name_server_that_hangs_holds_the_end_up_for_no_longer_than_a_kubelet_waits(tmp_path: Path) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(json.dumps(kubeconfig_of("http://127.0.0.1:1")))
    program = (
        "import socket, sys, time, podlink.cli\n"
        "socket.getaddrinfo = lambda *_, **__: print('asked', flush=True) or time.sleep(100)\n"
        "sys.argv = ['podlink', 'run', '--http-port', '0', '--redis-url', 'redis://redis.nowhere.internal:6379']\n"
        "podlink.cli.main()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        env={"KUBECONFIG": str(kubeconfig)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as operator:
        try:
            assert operator.stdout is not None
            assert operator.stdout.readline() == "asked\n"
            operator.terminate()
            _, log = operator.communicate(timeout=25)
        finally:
            operator.kill()
    assert operator.returncode == 1
    assert "not ended in order within 18 s: ended all the same" in log


def kubeconfig_of(server: str) -> dict:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
        "clusters": [{"name": "c", "cluster": {"server": server}}],
        "users": [{"name": "c", "user": {}}],
    }
