"""The stand-in for the kubelet does what one does: else what runs here says nothing about a cluster."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sandbox.kubelet import Container, UnplayedError
from sandbox.processes import until

if TYPE_CHECKING:
    from sandbox.cluster import Cluster
    from sandbox.images import Image

pytestmark = pytest.mark.timeout(900)  # whichever is the first builds the image

LOOK_AROUND = """
import json, os, pathlib
def modes(directory):
    return {name: oct(os.stat(f"{directory}/{name}").st_mode)[-3:] for name in os.listdir(directory) if name[0] != "."}
account = "/var/run/secrets/kubernetes.io/serviceaccount"
pathlib.Path("/scratch/mine").write_text("")
print(json.dumps({
    "secret": modes("/secret"), "word": open("/secret/word").read(), "missing": modes("/missing"),
    "settings": modes("/settings"), "account": modes(account), "namespace": open(f"{account}/namespace").read(),
    "env": {name: os.environ.get(name) for name in ("PLAIN", "POD", "ROLE", "WORD", "NO_WORD", "HOME")},
}))
"""
WAIT = "import time; print('here', flush=True); time.sleep(600)"


def pod(code: str, **container: Any) -> dict[str, Any]:
    """A pod that runs Python code, restricted as the operator's is."""
    security = {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }
    main = {"name": "main", "image": "podlink", "command": ["python", "-c", code], "securityContext": security}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "looker", "labels": {"role": "tester"}},
        "spec": {
            "containers": [main | container],
            "securityContext": {"runAsNonRoot": True, "runAsUser": 65532, "fsGroup": 65532},
            "terminationGracePeriodSeconds": 1,
        },
    }


def created(cluster: Cluster, namespace: str, *manifests: dict[str, Any]) -> dict[str, Any]:
    """The pod, as the API server has it, when these objects were applied."""
    cluster.apply(*manifests, namespace=namespace)
    found: dict[str, Any] = cluster.kubectl_json("get", "pod", "looker", "-n", namespace)
    return found


def test_a_pod_gets_what_its_spec_names(image: Image, cluster: Cluster, namespace: str) -> None:
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "words"}, "stringData": {"w": "hush", "x": ""}}
    settings = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"}, "data": {"a": "1", "b": "2"}}
    env = [
        {"name": "PLAIN", "value": "1"},
        {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "ROLE", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['role']"}}},
        {"name": "WORD", "valueFrom": {"secretKeyRef": {"name": "words", "key": "w"}}},
        {"name": "NO_WORD", "valueFrom": {"secretKeyRef": {"name": "gone", "key": "w", "optional": True}}},
    ]
    mounts = [{"name": name, "mountPath": f"/{name}"} for name in ("secret", "missing", "settings", "scratch")]
    looker = pod(LOOK_AROUND, env=env, volumeMounts=mounts)
    looker["spec"]["volumes"] = [
        {"name": "secret", "secret": {"secretName": "words", "items": [{"key": "w", "path": "word"}]}},
        {"name": "missing", "secret": {"secretName": "gone", "optional": True}},
        {"name": "settings", "configMap": {"name": "settings", "defaultMode": 0o600}},
        {"name": "scratch", "emptyDir": {}},
    ]

    with Container(cluster, created(cluster, namespace, secret, settings, looker), image) as running:
        assert running.process.wait(60) == 0, running.process.log_tail()
        seen = json.loads(running.process.log_path.read_text())

    assert seen == {
        "secret": {"word": "644"},
        "word": "hush",
        "missing": {},
        "settings": {"a": "640", "b": "640"},
        "account": {"token": "640", "ca.crt": "644", "namespace": "644"},
        "namespace": namespace,
        "env": {"PLAIN": "1", "POD": "looker", "ROLE": "tester", "WORD": "hush", "NO_WORD": None, "HOME": "/"},
    }


def test_a_container_that_does_not_listen_is_killed_after_the_grace_period(
    image: Image, cluster: Cluster, namespace: str
) -> None:
    # Python as the first process of its namespace has no handler for SIGTERM, and so does not get it.
    with Container(cluster, created(cluster, namespace, pod(WAIT)), image) as running:
        until(lambda: "here" in running.process.log_path.read_text(), 60, "the container to run")
        started = time.monotonic()
        assert running.stop() != 0
        assert 1 <= time.monotonic() - started < 10


def test_nothing_outlives_what_runs_the_container(image: Image, cluster: Cluster, namespace: str) -> None:
    def sleepers() -> list[Path]:
        return [path for path in Path("/proc").glob("[0-9]*/cmdline") if namespace.encode() in _content(path)]

    with Container(cluster, created(cluster, namespace, pod(f"{WAIT} # {namespace}")), image) as running:
        until(lambda: "here" in running.process.log_path.read_text(), 60, "the container to run")
        assert sleepers()
        running.kill()
        until(lambda: not sleepers(), 30, "the container to end with what ran it")


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""  # it ended meanwhile


@pytest.mark.parametrize(
    ("container", "complaint"),
    [
        ({"envFrom": [{"configMapRef": {"name": "kube-root-ca.crt"}}]}, "envFrom is not played"),
        (
            {"env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "gone", "key": "a"}}}]},
            "there is no secret gone",
        ),
        ({"securityContext": {}}, r"capabilities.drop is None"),
        ({"securityContext": {"runAsNonRoot": False, "runAsUser": 0}}, "would run as user '0'"),
    ],
)
def test_what_it_does_not_play_is_an_error(
    image: Image, cluster: Cluster, namespace: str, container: dict[str, Any], complaint: str
) -> None:
    looker = created(cluster, namespace, pod(WAIT, **container))

    with pytest.raises(UnplayedError, match=complaint), Container(cluster, looker, image):
        pass
