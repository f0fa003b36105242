"""The manifests that users start from: each is valid under the strictest Pod Security, and does what it says.

The sandbox's pods run nothing. So what the containers of Redis and of the gateway would run is run here, as the
manifests have it.
"""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
import redis
import yaml

from cluster.harness import NO_LINK, Wire
from cluster.operators import running_operator
from podlink import sync
from sandbox.cluster import KUBECTL, REPOSITORY
from sandbox.processes import eventually, free_port, spawn, until
from sandbox.redis_servers import UNREACHABLE, RedisServer, binary

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sandbox.cluster import Cluster
    from sandbox.control_plane import ControlPlane
    from sandbox.processes import Process

SAMPLES = REPOSITORY / "deploy" / "samples"
UID = "player-1"


def load(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((SAMPLES / f"{name}.yaml").read_text()))


def only(name: str, kind: str) -> dict[str, Any]:
    (found,) = [each for each in load(name) if each["kind"] == kind]
    return found


def container(name: str) -> dict[str, Any]:
    (found,) = only(name, "Deployment")["spec"]["template"]["spec"]["containers"]
    return found


def apply(cluster: Cluster, namespace: str, name: str) -> None:
    applied = cluster.kubectl("apply", "--validate=strict", "-n", namespace, "-f", SAMPLES / f"{name}.yaml")
    assert "Warning" not in applied.stderr


def ready_addresses(cluster: Cluster, namespace: str, service: str) -> int:
    """How many pods a Service leads to."""
    which = ("-n", namespace, "-l", f"kubernetes.io/service-name={service}")
    slices = cluster.kubectl_json("get", "endpointslices", *which)["items"]
    return sum(end["conditions"]["ready"] for each in slices for end in each["endpoints"] or ())


def test_every_sample_has_its_test() -> None:
    assert {path.stem for path in SAMPLES.iterdir()} == {"gateway", "lobby", "podlinks", "redis"}


def test_podlinks_show_every_policy() -> None:
    specs = [each["spec"] for each in load("podlinks")]
    assert {spec.get("policy", "TrySet") for spec in specs} == {"TrySet", "Set", "IfAbsent"}
    assert {spec.get("onPodLoss", "Keep") for spec in specs} == {"Keep", "Relink", "Release"}


def test_podlinks_link_to_the_lobby(cluster: Cluster, restricted: str) -> None:
    with (
        RedisServer() as server,
        running_operator(cluster, "--redis-url", server.url, "--namespace", restricted),
        sync.StatefulExecutor.from_url(server.url) as executor,
        server.client() as client,
    ):
        wire = Wire(client, restricted)
        apply(cluster, restricted, "lobby")
        eventually(wire.states, dict.fromkeys("012", "Ready"))
        eventually(lambda: ready_addresses(cluster, restricted, "lobby"), 3)
        executor.set_linked_pod(restricted, "player-8", "lobby", 1)
        executor.set_linked_pod(restricted, "player-9", "lobby", 1)
        apply(cluster, restricted, "podlinks")
        cluster.kubectl("wait", "--for=condition=Ready", "podlinks", "--all", "-n", restricted, "--timeout=30s")

        items = cluster.kubectl_json("get", "podlinks", "-n", restricted)["items"]
        found = {each["metadata"]["name"]: each["status"] for each in items}
        assert found["player-42"]["podId"] == 2
        assert (found["player-8"]["podId"], found["player-8"]["owned"]) == (1, False)
        assert 0 < wire.milliseconds("player-9") <= 600_000, "overwritten"

        cluster.kubectl("delete", "-n", restricted, "-f", SAMPLES / "podlinks.yaml")
        assert wire.link("player-42") == NO_LINK
        assert wire.link("player-8") == ("1", "1")
        assert 0 < wire.milliseconds("player-9") <= 30_000, "kept for a reconnect"


@pytest.fixture
def secrets(cluster: Cluster, restricted: str) -> dict[str, str]:
    """What the commands at the head of redis.yaml put into the Secret, in the test's namespace for both."""
    text = (SAMPLES / "redis.yaml").read_text()
    commands = re.findall(r"^#   (.*)$", text, re.MULTILINE)
    both = [command for command in commands if " -n default" not in command]
    assert len(both) == len(commands) - 1
    environment = dict(cluster.environment) | {"PATH": f"{KUBECTL.parent}{os.pathsep}{os.environ['PATH']}"}
    script = "\n".join(["set -e", *both]).replace("-n podlink-system", f"-n {restricted}")
    subprocess.run(["sh", "-c", script], cwd=REPOSITORY, env=environment, check=True)
    data = cluster.kubectl_json("get", "secret", "podlink-redis", "-n", restricted)["data"]
    return {key: base64.b64decode(value).decode() for key, value in data.items()}


def secret_keys(name: str) -> set[str]:
    """What a sample's container reads of Secrets."""
    sources = [variable.get("valueFrom", {}) for variable in container(name)["env"]]
    return {source["secretKeyRef"]["key"] for source in sources if "secretKeyRef" in source}


def test_redis_and_gateway_run_restricted(
    control_plane: ControlPlane, restricted: str, secrets: dict[str, str]
) -> None:
    apply(control_plane, restricted, "gateway")
    for name, pods in {"redis": 1, "gateway": 2}.items():
        control_plane.kubectl("rollout", "status", f"deployment/{name}", "-n", restricted, "--timeout=60s")
        eventually(lambda name=name: ready_addresses(control_plane, restricted, name), pods)
    assert secrets["url"] == f"redis://:{secrets['password']}@redis.podlink-system:6379/0"
    assert (secret_keys("redis"), secret_keys("gateway")) == ({"password"}, {"url"})


def test_redis_wants_the_password(tmp_path: Path) -> None:
    assert container("redis")["command"] == ["valkey-server"]
    port = free_port()
    values = {"6379": str(port), "/data": str(tmp_path), "$(REDIS_PASSWORD)": "hunter2"}
    words = [values.get(word, word) for word in container("redis")["args"]]
    assert set(values.values()) < set(words)
    with (
        spawn([str(binary("valkey")), *words], log_path=tmp_path / "log"),
        redis.Redis(port=port, password="hunter2") as client,
        redis.Redis(port=port) as stranger,
    ):
        until(client.ping, 60, "the server to answer", retry_on=UNREACHABLE)
        with pytest.raises(redis.AuthenticationError):
            stranger.ping()


class Gateway:
    """The sample's code, as a process with the sample's variables."""

    def __init__(self, directory: Path, url: str, namespace: str) -> None:
        (directory / "gateway.py").write_text(only("gateway", "ConfigMap")["data"]["gateway.py"])
        assert container("gateway")["command"] == ["python3", "/app/gateway.py"]
        variables = {each["name"]: each["value"] for each in container("gateway")["env"] if "value" in each}
        self._port = free_port()
        own = {"NAMESPACE": namespace, "REDIS_URL": url, "PORT": str(self._port)}
        assert own.keys() <= {each["name"] for each in container("gateway")["env"]}
        self.process: Process = spawn(
            [sys.executable, "-W", "error", directory / "gateway.py"],
            log_path=directory / "gateway.log",
            env=dict(os.environ) | variables | own,
        )

    def ask(self, path: str, method: str = "GET") -> tuple[int, Any]:
        """Status and answer; the answer is decoded when it is JSON."""
        request = urllib.request.Request(f"http://127.0.0.1:{self._port}{path}", method=method)
        try:
            with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310 - of our own gateway
                text = response.read().decode()
                return response.status, json.loads(text) if text.startswith("{") else text
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def connect(self, uid: str) -> str:
        """The pod that the gateway sends the user to."""
        status, answer = self.ask(f"/connect?uid={uid}")
        assert status == 200, answer
        pod: str = answer["pod"]
        assert answer["host"] == f"{pod}.lobby.games.svc"
        return pod


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    with RedisServer(password="hunter2") as server:
        yield server


@pytest.fixture
def executor(redis_server: RedisServer) -> Iterator[sync.StatefulExecutor]:
    """Who knows the pods: two of three are fit for new users."""
    with sync.StatefulExecutor.from_url(redis_server.url) as known:
        for pod, state in enumerate(("Draining", "Ready", "Ready")):
            known.set_service_state("games", "lobby", pod, state)
        yield known


@pytest.fixture
def gateway(tmp_path: Path, redis_server: RedisServer, executor: sync.StatefulExecutor) -> Iterator[Gateway]:
    running = Gateway(tmp_path, redis_server.url, "games")
    try:
        until(lambda: running.ask("/healthz") == (200, "ok\n"), 60, "the gateway", retry_on=(urllib.error.URLError,))
        yield running
        # As the kubelet ends it.
        assert running.process.stop() == 0, running.process.log_tail()
    finally:
        running.process.kill()


def test_gateway_sends_a_user_to_one_pod(gateway: Gateway, executor: sync.StatefulExecutor) -> None:
    pods = {f"player-{number}": gateway.connect(f"player-{number}") for number in range(4)}

    assert Counter(pods.values()) == {"lobby-1": 2, "lobby-2": 2}
    assert {uid: gateway.connect(uid) for uid in pods} == pods
    assert executor.get_linked_pod_if_persist("games", "player-1", "lobby") == int(pods["player-1"][-1])


def test_gateway_keeps_the_link_for_a_reconnect(gateway: Gateway, redis_server: RedisServer) -> None:
    key = f"sf:{{games:lk:{UID}}}lobby"
    pod = gateway.connect(UID)
    with redis_server.client() as client:
        assert gateway.ask(f"/release?uid={UID}", "POST") == (200, {"released": True})
        assert 0 < client.pttl(key) <= 30_000
        assert gateway.connect(UID) == pod
        assert client.pttl(key) == -1, "for good again"


def test_gateway_says_what_is_wrong(
    gateway: Gateway, executor: sync.StatefulExecutor, redis_server: RedisServer
) -> None:
    assert gateway.ask("/connect") == (400, "say who: ?uid=…\n")
    status, said = gateway.ask("/connect?uid=%7Ba%7D")
    assert (status, "uid" in said) == (400, True)
    assert gateway.ask("/release?uid=nobody", "POST") == (200, {"released": False})
    for pod in (1, 2):
        executor.set_service_state("games", "lobby", pod, "NotReady")
    assert gateway.ask(f"/connect?uid={UID}") == (503, "no pod of lobby is Ready\n")
    redis_server.stop()
    assert gateway.ask(f"/connect?uid={UID}") == (503, "try again\n")
