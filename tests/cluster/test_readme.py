"""The commands, manifests and programs of the README, run as they stand there.

Only what depends on the machine is replaced: the Redis URL, and the namespace `default` by the test's own.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from sandbox.processes import eventually

if TYPE_CHECKING:
    from cluster.harness import Kube, Wire
    from sandbox.redis_servers import RedisServer

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
URL = "redis://127.0.0.1:6379/0"


def blocks(language: str = "") -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    return [text for marked, text in fenced if marked == language]


def command_lines() -> list[str]:
    lines = [line for block in blocks() for line in block.splitlines()]
    return [line for line in lines if line.startswith(("kubectl ", "podlink status"))]


@pytest.fixture
def environment(kube: Kube, tmp_path: Path) -> dict[str, str]:
    """A shell of a user whose current context is the test's namespace, with podlink and kubectl on the PATH."""
    kubeconfig = json.loads(kube.kubectl("config", "view", "--raw", "-o", "json"))
    for context in kubeconfig["contexts"]:
        context["context"]["namespace"] = kube.namespace
    own = tmp_path / "kubeconfig"
    own.write_text(json.dumps(kubeconfig))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return dict(os.environ) | {"KUBECONFIG": str(own), "PATH": path}


def run(command: list[str] | str, environment: dict[str, str]) -> str:
    result = subprocess.run(
        command, env=environment, cwd=ROOT, shell=isinstance(command, str), capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_every_command_works_in_order(
    kube: Kube, redis_server: RedisServer, wire: Wire, environment: dict[str, str]
) -> None:
    printed = {line: run(line.replace(URL, redis_server.url), environment) for line in command_lines()}

    status = next(text for line, text in printed.items() if line.startswith("podlink status"))
    subjects = [line.split()[1].split("/") for line in status.splitlines()]
    shown = {name for namespace, name in subjects if namespace == kube.namespace}
    assert shown == {"lobby", "player-7", "player-8", "player-9"}, "player-42 was deleted by the command before"
    eventually(lambda: wire.redis.exists(f"sf:{{{kube.namespace}:lk:player-42}}lobby"), 0)


def test_manifest_is_accepted(environment: dict[str, str]) -> None:
    manifests = [yaml.safe_load(block) for block in blocks("yaml")]
    assert [manifest["kind"] for manifest in manifests] == ["PodLink"]
    for block in blocks("yaml"):
        subprocess.run(
            ["kubectl", "apply", "--dry-run=server", "-f", "-"], input=block, env=environment, text=True, check=True
        )


def test_programs_print_what_they_say(kube: Kube, redis_server: RedisServer, environment: dict[str, str]) -> None:
    kube.kubectl("apply", "-f", str(ROOT / "deploy/samples/lobby.yaml"))
    eventually(lambda: kube.ready_replicas("lobby"), 3)
    programs = [
        block.replace(URL, redis_server.url).replace('"default"', f'"{kube.namespace}"') for block in blocks("python")
    ]
    asynchronous, blocking = (run([sys.executable, "-c", program], environment) for program in programs)
    assert re.fullmatch(r"player-1 plays on pod [012]\n", asynchronous)
    expected = re.findall(r"print\(.*\)  # (.*)", blocks("python")[1])
    assert blocking.splitlines() == expected
