"""The cluster that tests run against: chosen by an option, started once a session, the same to every test.

    pytest                       a control plane of local processes, built once (see sandbox/)
    pytest --cluster=kind        a kind cluster, where there is a Docker engine and kind
    pytest --cluster=current     the current context of your kubeconfig; PodLink's CRD is applied there

PODLINK_TEST_KUBERNETES=1.34 has the local control plane be of another version (see sandbox.binaries), and
PODLINK_TEST_REDIS=7.4 has the tests run on another Redis or Valkey (see sandbox.redis_binaries).

A test asks for `cluster` (see sandbox.cluster.Cluster), `namespace`, a namespace of its own, or `control_plane`, which
skips it where the control plane is not ours to break. Tests that ask for any of them carry the marker `cluster`. `helm`
(see sandbox.helm.Helm) and `monitoring_types` come from their modules in the same way, and give markers of their names.

With `-n`, pytest-xdist runs groups of tests in several processes (see groups). Each process has its own control plane
and its own servers, so no test can break another one's.

With `--hypothesis-profile=long`, tests that look for rare faults look longer: `make proofs`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

import groups
from sandbox import binaries, progress, redis_binaries
from sandbox.cluster import KUBECTL, Cluster
from sandbox.control_plane import ControlPlane
from sandbox.helm import Helm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from xdist.scheduler import LoadScopeScheduling

DOCKER_TIMEOUT_SECONDS = 30

# How long one example takes says more about the machine's other work than about the code.
settings.register_profile("suite", deadline=None, max_examples=50)
settings.register_profile("long", deadline=None, max_examples=1000)
settings.load_profile("suite")

_TOOLS: dict[str, Callable[[], Path]] = {
    "cluster": binaries.ensure,
    "helm": lambda: binaries.ensure(binaries.HELM),
    "monitoring_types": binaries.prometheus_operator_crds,
}
"""Marker, which is the fixture's name -> what builds or fetches what such tests need, where it is not there yet."""

_build_errors = pytest.StashKey[dict[str, binaries.BinariesError]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--cluster",
        choices=["sandbox", "current", "kind"],
        default="sandbox",
        help="what tests of the operator run against: a control plane of local processes (default), the current "
        "context of your kubeconfig, or a kind cluster",
    )


def pytest_configure(config: pytest.Config) -> None:
    try:
        # Else each test that wants a server would say it.
        redis_binaries.chosen()
        binaries.control_plane()
    except binaries.BinariesError as error:
        raise pytest.UsageError(str(error)) from error
    config.addinivalue_line("markers", "cluster: needs a Kubernetes API server (set by the fixtures a test asks for)")
    config.addinivalue_line("markers", "helm: needs Helm (set by the fixtures a test asks for)")
    config.addinivalue_line("markers", "monitoring_types: needs the Prometheus operator's types (set as the others)")
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return
    # Every process would show how a build goes. One does, and the others wait for its lock.
    progress.console.quiet = os.environ["PYTEST_XDIST_WORKER"] != "gw0"


@pytest.hookimpl(wrapper=True, tryfirst=True)  # -m picks by the markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Iterator[None]:
    for item in items:
        for marker in _TOOLS:
            if marker in getattr(item, "fixturenames", ()):
                item.add_marker(marker)
    yield
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: groups.order(item.nodeid))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling | None:
    """Have the tests of one group run in one process, with `--dist=loadscope`."""
    return groups.Groups(config, log) if config.getvalue("dist") == "loadscope" else None


def pytest_collection_finish(session: pytest.Session) -> None:
    """Build what is needed before the first test: its minutes are no test's, and it is not silent about them."""
    config = session.config
    errors = config.stash.setdefault(_build_errors, {})
    if config.getoption("collectonly"):
        return
    needed = {marker for item in session.items for marker in _TOOLS if item.get_closest_marker(marker)}
    if config.getoption("--cluster") != "sandbox":
        needed.discard("cluster")
    capture = config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled() if capture else contextlib.nullcontext():
        for marker in sorted(needed):
            try:
                _TOOLS[marker]()
            except binaries.BinariesError as error:
                # Tests that do without it still run.
                errors[marker] = error


@pytest.fixture(scope="session")
def helm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Helm:
    """Helm, with settings and caches of its own."""
    if (error := request.config.stash[_build_errors].get("helm")) is not None:
        raise error
    return Helm(tmp_path_factory.mktemp("helm"))


@pytest.fixture(scope="session")
def monitoring_types(request: pytest.FixtureRequest) -> list[Path]:
    """The CRDs ServiceMonitor and PrometheusRule, a file each."""
    if (error := request.config.stash[_build_errors].get("monitoring_types")) is not None:
        raise error
    directory = binaries.prometheus_operator_crds()
    return [directory / f"monitoring.coreos.com_{name}.yaml" for name in ("servicemonitors", "prometheusrules")]


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster with PodLink's CRD and finalizer policy."""
    if (error := request.config.stash[_build_errors].get("cluster")) is not None:
        raise error
    chosen = request.config.getoption("--cluster")
    if chosen == "sandbox":
        with pytest.MonkeyPatch.context() as patch, ControlPlane(tmp_path_factory.mktemp("control-plane")) as started:
            # A proxy that this machine may need for other things knows nothing of our loopback.
            patch.setenv("NO_PROXY", "127.0.0.1,localhost")
            yield started
        return
    directory = tmp_path_factory.mktemp("cluster")
    found = _kind_cluster(request) if chosen == "kind" else _current_cluster(directory)
    found.install_podlink()
    found.await_podlinks()
    yield found


def _kind_cluster(request: pytest.FixtureRequest) -> Cluster:
    docker = shutil.which("docker")
    answers = docker is not None and _succeeds(docker, "info")
    if not answers:
        pytest.skip("--cluster=kind: no Docker engine answers (`docker info`); a running one would un-skip it")
    kind = request.config.getoption("kind_bin") or shutil.which("kind")
    if kind is None:
        pytest.skip("--cluster=kind: no kind on PATH; installing it, or --kind-bin=PATH, would un-skip it")
    # Left out, pytest-kind would download an old one.
    request.config.option.kind_bin = kind
    return Cluster(Path(request.getfixturevalue("kind_cluster").kubeconfig_path).absolute())


def _succeeds(*command: str) -> bool:
    result = subprocess.run(command, capture_output=True, timeout=DOCKER_TIMEOUT_SECONDS, check=False)
    return result.returncode == 0


def _current_cluster(directory: Path) -> Cluster:
    """The current context alone, in a file of its own: the user may change to another while tests run."""
    kubeconfig = directory / "kubeconfig"
    kubeconfig.touch(mode=0o600)
    view = subprocess.run(
        [KUBECTL, "config", "view", "--raw", "--minify", "--flatten"],
        capture_output=True,
        text=True,
        check=False,
    )
    if view.returncode != 0:
        pytest.fail(f"--cluster=current: kubectl finds no current context in your kubeconfig: {view.stderr.strip()}")
    kubeconfig.write_text(view.stdout)
    return Cluster(kubeconfig)


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    """A namespace of the test's own; deleted afterwards, PodLinks first."""
    name = cluster.create_namespace()
    yield name
    cluster.delete_namespace(name)


@pytest.fixture(scope="session")
def control_plane(cluster: Cluster) -> ControlPlane:
    """The control plane under `cluster`, for tests that stop its API server."""
    if cluster.control_plane is None:
        pytest.skip("the control plane is not ours to break; --cluster=sandbox would un-skip it")
    return cluster.control_plane
