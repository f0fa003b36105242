"""What is in the image, and what is not."""

from __future__ import annotations

import json
import os
import re
import stat
from importlib.metadata import distributions
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from packaging.requirements import Requirement

from podlink import __version__
from sandbox.cluster import REPOSITORY, Cluster
from sandbox.kubelet import Container

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandbox.images import Image

pytestmark = pytest.mark.timeout(900)  # whichever is the first builds the image

USER = 65532
MEGABYTE = 1_000_000
INSTALLERS = re.compile(
    r"pip3?(\.\d+)?|pip-.*|easy_install.*|ensurepip|pkg_resources|setuptools(-.*)?|_distutils_hack|python-wheels|.*\.whl"
)
COMPILERS = re.compile(r"(.*-)?(cc|c\+\+|gcc|g\+\+|clang|ld|as|go|rustc|cargo|make)(-[\d.]+)?")


def paths(rootfs: Path) -> Iterator[Path]:
    for directory, folders, files in os.walk(rootfs):
        for name in (*folders, *files):
            yield Path(directory) / name


def site_packages(image: Image) -> Path:
    (found,) = (image.rootfs / "opt/podlink/lib").glob("python3*/site-packages")
    return found


class Commands:
    """One container of the image for each command: as a pod runs them, without a cluster."""

    def __init__(self, image: Image, cluster: Cluster) -> None:
        self._image = image
        self._cluster = cluster

    def __call__(self, *args: str, command: tuple[str, ...] = ()) -> tuple[int, str]:
        """Exit code and output of the entry point, or of `command`, with these arguments."""
        security = {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
        }
        container = {"name": "command", "args": list(args), "securityContext": security}
        if command:
            container["command"] = list(command)
        pod = {"metadata": {"name": "command"}, "spec": {"containers": [container]}}
        with Container(self._cluster, pod, self._image) as running:
            return running.process.wait(60), running.process.log_path.read_text()


@pytest.fixture
def run(image: Image, tmp_path: Path) -> Commands:
    nowhere = {"name": "nowhere", "cluster": {"server": "https://127.0.0.1:1"}}
    context = {"name": "nowhere", "context": {"cluster": "nowhere", "user": ""}}
    kubeconfig = {"clusters": [nowhere], "contexts": [context], "current-context": "nowhere"}
    (tmp_path / "kubeconfig").write_text(json.dumps(kubeconfig))
    return Commands(image, Cluster(tmp_path / "kubeconfig"))


def test_it_says_what_it_is_and_how_to_run_it(image: Image) -> None:
    config = dict(image.config)
    labels = {
        name.removeprefix("org.opencontainers.image."): value
        for name, value in config.pop("Labels").items()
        if name.startswith("org.opencontainers.image.")
    }
    description = labels.pop("description")
    environment = dict(entry.split("=", 1) for entry in config.pop("Env"))

    given = {"revision": image.arguments["REVISION"], "source": image.arguments["SOURCE"]}
    assert labels == {"title": "PodLink", "version": __version__, **given}
    assert "operator" in description.lower()
    assert environment["PATH"].startswith("/opt/podlink/bin:")
    assert environment["PYTHONUNBUFFERED"] == environment["PYTHONDONTWRITEBYTECODE"] == "1"
    assert config["User"] == f"{USER}:{USER}"
    assert config["Entrypoint"] == ["podlink"]
    assert config["Cmd"] == ["run"]
    assert config["ExposedPorts"] == {"8080/tcp": {}}
    assert config["StopSignal"] == "SIGTERM"


def test_it_is_small(image: Image, capsys: pytest.CaptureFixture[str]) -> None:
    size = sum(image.over_base.values())

    with capsys.disabled():
        print(f" {size / MEGABYTE:.1f} MB over its base: ", end="")  # noqa: T201 - a figure for who reads the log
    assert size < 120 * MEGABYTE


def test_nothing_can_be_installed_or_compiled_in_it(image: Image) -> None:
    found = [str(path) for path in paths(image.rootfs) if INSTALLERS.fullmatch(path.name)]
    programs = [path for path in paths(image.rootfs) if path.parent.name in {"bin", "sbin"}]

    assert not found
    assert [path.name for path in programs if path.name == "podlink"]
    assert not [str(path) for path in programs if COMPILERS.fullmatch(path.name)]


def test_every_package_is_the_one_that_the_lock_names(image: Image) -> None:
    (version,) = re.findall(r"^version = (\S+)$", (image.rootfs / "opt/podlink/pyvenv.cfg").read_text(), re.MULTILINE)
    lines = (REPOSITORY / "requirements.lock").read_text().splitlines()
    pins = [Requirement(line.rstrip("\\ ")) for line in lines if re.match(r"[a-z]", line)]
    of_here = {"python_full_version": version, "python_version": version.rpartition(".")[0]}
    locked = {pin.name: str(pin.specifier) for pin in pins if pin.marker is None or pin.marker.evaluate(of_here)}

    installed = {
        re.sub(r"[-_.]+", "-", each.name).lower(): f"=={each.version}"
        for each in distributions(path=[str(site_packages(image))])
    }

    assert installed == {**locked, "podlink": f"=={__version__}"}


def test_no_other_package_is_in_it(image: Image) -> None:
    elsewhere = [path for path in paths(image.rootfs) if path.name.endswith((".dist-info", ".egg-info"))]

    assert {path.parent for path in elsewhere} == {site_packages(image)}


def test_its_user_may_write_to_nothing_of_it(image: Image) -> None:
    def writable(path: Path) -> bool:
        status = path.lstat()
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
            return False
        shared = stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX  # /tmp
        return USER in {status.st_uid, status.st_gid} or bool(status.st_mode & stat.S_IWOTH and not shared)

    assert not [str(path) for path in paths(image.rootfs) if writable(path)]


def test_it_has_the_scripts_for_redis(image: Image) -> None:
    scripts = {path.name: path.read_text() for path in (REPOSITORY / "lua").glob("*.lua")}

    assert {path.name: path.read_text() for path in (site_packages(image) / "podlink/lua").iterdir()} == scripts


def test_it_starts_without_compiling_anything(run: Commands) -> None:
    uncompiled = """
import importlib.util, os, sys
import podlink.cli, opentelemetry.exporter.otlp.proto.http.trace_exporter
specs = [getattr(module, "__spec__", None) for module in sys.modules.values()]
paths = [spec.origin for spec in specs if spec and (spec.origin or "").endswith(".py")]
print(len(paths) > 500, [path for path in paths if not os.path.exists(importlib.util.cache_from_source(path))])
"""

    assert run("-c", uncompiled, command=("python",)) == (0, "True []\n")


def test_its_command_line_works(run: Commands) -> None:
    assert run("--version") == (0, f"podlink, version {__version__}\n")
    exit_code, text = run("run", "--help")
    assert exit_code == 0
    assert "PODLINK_REDIS_URL" in text
    assert run("--version", command=("kubectl-podlink",)) == (0, f"podlink, version {__version__}\n")


def test_it_runs_as_a_user_without_rights(run: Commands) -> None:
    exit_code, text = run("cat", "/proc/self/status", command=("/usr/bin/env",))

    rights = dict(re.findall(r"^(Uid|Gid|CapPrm|CapBnd|NoNewPrivs):\s+(\S+)", text, re.MULTILINE))
    assert exit_code == 0
    assert rights == {
        "Uid": str(USER),
        "Gid": str(USER),
        "CapPrm": "0" * 16,
        "CapBnd": "0" * 16,
        "NoNewPrivs": "1",
    }
