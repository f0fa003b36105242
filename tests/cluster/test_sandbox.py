"""The sandbox as tests and people use it: pods are as a test wants them, and `make run` leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sandbox.cluster import KUBECTL, Cluster
from sandbox.processes import spawn, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandbox.control_plane import ControlPlane
    from sandbox.processes import Process

TESTS = Path(__file__).parents[1]
LOBBY = TESTS.parent / "deploy" / "samples" / "lobby.yaml"


def pod(name: str, **metadata: Any) -> dict[str, Any]:
    containers = [{"name": "main", "image": "registry.k8s.io/pause:3.10"}]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, **metadata},
        "spec": {"containers": containers},
    }


def state(cluster: Cluster, namespace: str, name: str) -> tuple[str, str]:
    """Phase, and status of the condition Ready."""
    path = '{.status.phase} {.status.conditions[?(@.type=="Ready")].status}'
    phase, _, ready = cluster.kubectl("get", "pod", name, "-n", namespace, "-o", f"jsonpath={path}").stdout.partition(
        " "
    )
    return phase, ready


def await_state(cluster: Cluster, namespace: str, name: str, expected: tuple[str, str]) -> None:
    until(lambda: state(cluster, namespace, name) == expected, 60, f"{name} to be {expected}")


def test_stateful_set_gets_ready(cluster: Cluster, namespace: str) -> None:
    cluster.kubectl("apply", "-n", namespace, "-f", LOBBY)
    cluster.kubectl("rollout", "status", "statefulset/lobby", "-n", namespace, "--timeout=90s")
    pods = cluster.kubectl_json("get", "pods", "-n", namespace, "-l", "app=lobby")["items"]
    assert [each["metadata"]["labels"]["apps.kubernetes.io/pod-index"] for each in pods] == ["0", "1", "2"]


def test_pods_stay_as_a_test_wants_them(control_plane: ControlPlane, namespace: str) -> None:
    held = {"labels": {"podlink.io/sandbox-hold": "true"}}
    running = {"labels": {"podlink.io/sandbox-hold": "running"}}
    control_plane.apply(pod("held", **held), pod("running", **running), pod("plain"), namespace=namespace)
    await_state(control_plane, namespace, "plain", ("Running", "True"))
    await_state(control_plane, namespace, "running", ("Running", "False"))
    assert state(control_plane, namespace, "held") == ("Pending", "")

    not_ready = json.dumps({"status": {"conditions": [{"type": "Ready", "status": "False"}]}})
    control_plane.kubectl("patch", "pod", "plain", "-n", namespace, "--subresource=status", "-p", not_ready)
    failed = json.dumps({"status": {"phase": "Failed"}})
    control_plane.kubectl("patch", "pod", "held", "-n", namespace, "--subresource=status", "-p", failed)
    control_plane.kubectl("label", "pod", "held", "running", "-n", namespace, "podlink.io/sandbox-hold-")
    # By the time that this one is Ready, kwok has seen the changes before.
    await_state(control_plane, namespace, "running", ("Running", "True"))
    assert state(control_plane, namespace, "plain") == ("Running", "False")
    assert state(control_plane, namespace, "held")[0] == "Failed"


def test_api_server_comes_back_with_its_data_and_controllers(control_plane: ControlPlane, namespace: str) -> None:
    control_plane.kubectl("apply", "-n", namespace, "-f", LOBBY)
    control_plane.kubectl("rollout", "status", "statefulset/lobby", "-n", namespace, "--timeout=90s")
    control_plane.stop_api_server()
    assert "refused" in control_plane.kubectl("get", "pods", check=False).stderr
    control_plane.start_api_server()
    control_plane.kubectl("scale", "statefulset/lobby", "--replicas=4", "-n", namespace)
    control_plane.kubectl("rollout", "status", "statefulset/lobby", "-n", namespace, "--timeout=90s")
    assert state(control_plane, namespace, "lobby-3") == ("Running", "True")


class Run:
    """A `make run` without a terminal, in a directory of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.process = self.start(directory.with_suffix(".out"))

    def start(self, output: Path) -> Process:
        # As without an activated virtual environment.
        path = (entry for entry in os.environ["PATH"].split(os.pathsep) if Path(entry) != KUBECTL.parent)
        environment = os.environ | {
            "PODLINK_SANDBOX_DIR": str(self.directory),
            "PYTHONPATH": str(TESTS),
            "PATH": os.pathsep.join(path),
        }
        return spawn([sys.executable, "-m", "sandbox.run"], log_path=output, env=environment)

    def lines(self) -> list[str]:
        return self.process.log_path.read_text().splitlines()

    def await_ready(self) -> None:
        def ready() -> bool:
            assert self.process.alive, self.process.log_tail()
            return any(line.startswith("ready") for line in self.lines())

        until(ready, 120, "`make run` to say that it is ready")

    def await_line(self, pattern: str) -> None:
        until(lambda: any(re.fullmatch(pattern, line) for line in self.lines()), 60, f"a line {pattern!r}")

    def children(self) -> dict[int, str]:
        """Process ids and commands."""
        table = subprocess.run(
            ["ps", "-axww", "-o", "pid=,ppid=,stat=,args="], capture_output=True, text=True, check=True
        )
        rows = [line.split(None, 3) for line in table.stdout.splitlines()]
        return {
            int(pid): arguments
            for pid, parent, stat, arguments in (row for row in rows if len(row) == 4)
            if int(parent) == self.process.pid and not stat.startswith("Z")
        }


def alive(pid: int) -> bool:
    shown = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return shown.strip()[:1] not in {"", "Z"}


@pytest.fixture
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Run]:
    if request.config.getoption("--cluster") != "sandbox":
        pytest.skip("`make run` starts the sandbox, whatever cluster is chosen; --cluster=sandbox would un-skip it")
    running = Run(tmp_path / "sandbox")
    yield running
    running.process.stop()


@pytest.mark.cluster
def test_run_shows_what_happens_until_it_is_told_to_end(run: Run) -> None:
    run.await_ready()
    run.await_line("podlink default/player-42 uid=player-42 service=lobby Linked reason=Linked pod=2")
    cluster = Cluster(run.directory / "kubeconfig")
    cluster.kubectl("delete", "podlink", "player-42")
    cluster.kubectl("scale", "statefulset", "lobby", "--replicas=2")
    run.await_line(r"service default/lobby Available 0=Ready\(\d\) 1=Ready\(\d\)")
    run.await_line("podlink default/player-42 is gone")
    assert f"export PATH={KUBECTL.parent}:$PATH" in run.process.log_path.read_text()

    second = run.start(run.directory.with_suffix(".second"))
    assert second.wait(20) == 1
    assert f"is in use by another `make run` (process {run.process.pid})" in second.log_tail()

    children = run.children()
    run.process.signal(signal.SIGTERM)
    assert run.process.wait(20) == 0, run.process.log_tail()
    assert not any(map(alive, children)), children
    assert not (run.directory / "kubeconfig").exists()
    assert not (run.directory / "redis-url").exists()


@pytest.mark.cluster
def test_killed_run_leaves_no_process(run: Run) -> None:
    run.await_ready()
    children = run.children()
    commands = " ".join(children.values())
    for each in (
        "etcd",
        "kube-apiserver",
        "kube-controller-manager",
        "kube-scheduler",
        "kwok",
        "valkey-server",
        "podlink",
    ):
        assert each in commands
    os.kill(run.process.pid, signal.SIGKILL)
    until(lambda: not any(map(alive, children)), 5, f"the end of {children}")


@pytest.mark.cluster
def test_run_ends_with_the_operator_and_says_why(run: Run) -> None:
    run.await_ready()
    operator = next(pid for pid, command in run.children().items() if "podlink run" in command)
    os.kill(operator, signal.SIGKILL)
    assert run.process.wait(20) == 1
    output = run.process.log_tail()
    assert "error: the operator ended with exit code -9" in output
    assert f"end of {run.directory / 'operator.log'}" in output
