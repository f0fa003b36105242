"""What the tests on a real cluster share: a namespace as its API server shows it, and Redis as other clients see it.

Nothing here uses PodLink's own code. What the operator did is read back by plain API requests and raw Redis commands on
key names spelled out, so that a change of the layout or of the API cannot go unnoticed.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any, Self, TypeVar

from kubernetes import config

from sandbox.processes import PATIENCE_SECONDS, eventually, until

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import redis
    from kubernetes.client import ApiClient

    from sandbox.cluster import Cluster

T = TypeVar("T")

NO_LINK = (None, None)
DRIVEN = {"kubernetes.io/hostname": "no-such-node"}
"""Node selector of pods that no kubelet takes, so that their status is the test's to write."""

_ROOTS = {
    "events": "/apis/events.k8s.io/v1",
    "leases": "/apis/coordination.k8s.io/v1",
    "podlinks": "/apis/podlink.io/v1alpha1",
    "pods": "/api/v1",
    "statefulsets": "/apis/apps/v1",
}
_NOT_FOUND = 404
_FIRST_ERROR = 400


def later() -> None:
    """Wait until an object created from now on is younger, by its timestamp of whole seconds, than those before."""
    now = int(time.time())
    until(lambda: int(time.time()) > now, 2, "the next second")


class RequestError(RuntimeError):
    """The API server refused a request of a test."""


class Kube:
    """One namespace of the cluster.

    What a test stages and reads goes through the API directly, because a kubectl process for each would take longer
    than what is tested; where kubectl itself matters, tests call `kubectl`.
    """

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self.cluster = cluster
        self.namespace = namespace
        self._api: ApiClient = config.new_client_from_config(str(cluster.kubeconfig))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._api.rest_client.pool_manager.clear()

    def kubectl(self, *words: str, **options: Any) -> str:
        return self.cluster.kubectl(*words, "-n", self.namespace, **options).stdout

    def create(self, resource: str, manifest: Mapping[str, Any]) -> dict[str, Any]:
        return self._request("POST", self._path(resource), manifest)

    def get(self, resource: str, name: str) -> dict[str, Any] | None:
        """The object, None when there is none."""
        return self._request("GET", self._path(resource, name), none_if_missing=True)

    def list(self, resource: str) -> list[dict[str, Any]]:
        return self._request("GET", self._path(resource))["items"]

    def patch(self, resource: str, name: str, patch: Mapping[str, Any]) -> dict[str, Any]:
        """Merge patch of anything but the status."""
        return self._request("PATCH", self._path(resource, name), patch)

    def patch_status(self, resource: str, name: str, status: Mapping[str, Any]) -> None:
        self._request("PATCH", f"{self._path(resource, name)}/status", {"status": status})

    def delete(self, resource: str, name: str, *, propagation: str = "Background") -> None:
        """Delete without waiting for the end; an object that is gone already is fine."""
        self._request("DELETE", self._path(resource, name), {"propagationPolicy": propagation}, none_if_missing=True)

    def delete_all(self, resource: str) -> None:
        self._request("DELETE", self._path(resource), {})

    def link(self, name: str, uid: str | None = None, service: str = "lobby", **spec: Any) -> dict[str, Any]:
        """Create a PodLink; its uid is its name where none is given."""
        return self.create("podlinks", podlink(name, uid, service, **spec))

    def edit(self, name: str, **spec: Any) -> None:
        """Change fields of a PodLink's spec; None removes one."""
        self.patch("podlinks", name, {"spec": spec})

    def unlink(self, name: str) -> None:
        """Delete a PodLink and wait until it is gone."""
        self.delete("podlinks", name)
        eventually(lambda: self.get("podlinks", name), None)

    def status(self, name: str) -> dict[str, Any]:
        """The status of a PodLink; empty before the first report, and for one that is gone."""
        return (self.get("podlinks", name) or {}).get("status") or {}

    def report(self, name: str) -> tuple[str | None, str | None, int | None]:
        """Phase, reason of the condition Ready, and podId of a PodLink."""
        status = self.status(name)
        return status.get("phase"), ready(status).get("reason"), status.get("podId")

    def message(self, name: str) -> str:
        return ready(self.status(name))["message"]

    def events(self, name: str, kind: str = "PodLink") -> list[tuple[str, str]]:
        """Type and reason of the Events about an object, oldest first."""
        about = [
            event
            for event in self.list("events")
            if (event["regarding"]["kind"], event["regarding"]["name"]) == (kind, name)
        ]
        return [(event["type"], event["reason"]) for event in sorted(about, key=lambda event: event["eventTime"] or "")]

    def note(self, name: str, reason: str, kind: str = "PodLink") -> str:
        """Text of the one Event of that reason about an object."""
        (note,) = (
            event["note"]
            for event in self.list("events")
            if (event["regarding"]["kind"], event["regarding"]["name"], event["reason"]) == (kind, name, reason)
        )
        return note

    def stateful_set(self, name: str, replicas: int = 1, **options: Any) -> None:
        """Create a StatefulSet and wait until its pods are Ready."""
        self.create("statefulsets", stateful_set(name, replicas, **options))
        if not options.get("driven"):
            eventually(lambda: self.ready_replicas(name), replicas)

    def ready_replicas(self, name: str) -> int:
        return ((self.get("statefulsets", name) or {}).get("status") or {}).get("readyReplicas", 0)

    def scale(self, name: str, replicas: int) -> None:
        self.patch("statefulsets", name, {"spec": {"replicas": replicas}})

    def drive(self, pod: str, phase: str = "Running", *, is_ready: bool = False) -> None:
        """Write the status of a pod that no kubelet has, as a kubelet would."""
        condition = {"type": "Ready", "status": str(is_ready), "lastTransitionTime": "2026-01-01T00:00:00Z"}
        until(lambda: self.get("pods", pod), PATIENCE_SECONDS, f"pod {pod} to be created")
        self.patch_status("pods", pod, {"phase": phase, "conditions": [condition]})

    def clear(self) -> None:
        """Delete all PodLinks, with or without an operator."""
        self.delete_all("podlinks")
        for link in self.list("podlinks"):
            path = self._path("podlinks", link["metadata"]["name"])
            self._request("PATCH", path, {"metadata": {"finalizers": None}}, none_if_missing=True)

    def patches(self) -> int:
        """How many PATCH requests for PodLinks and their status the API server has answered."""
        request = self._api.param_serialize("GET", "/metrics", auth_settings=["BearerToken"])
        samples = self._api.call_api(*request).read().decode()
        counts = re.findall(
            r'^apiserver_request_total\{.*resource="podlinks".*verb="PATCH".*\} (\S+)$', samples, re.MULTILINE
        )
        return sum(int(float(count)) for count in counts)

    def _path(self, resource: str, name: str = "") -> str:
        path = f"{_ROOTS[resource]}/namespaces/{self.namespace}/{resource}"
        return f"{path}/{name}" if name else path

    def _request(self, method: str, path: str, body: object = None, *, none_if_missing: bool = False) -> Any:
        content = "application/merge-patch+json" if method == "PATCH" else "application/json"
        headers = {"Accept": "application/json", "Content-Type": content}
        request = self._api.param_serialize(
            method, path, header_params=headers, body=body, auth_settings=["BearerToken"]
        )
        response = self._api.call_api(*request)
        answer = json.loads(response.read())
        if response.status == _NOT_FOUND and none_if_missing:
            return None
        if response.status >= _FIRST_ERROR:
            raise RequestError(f"{method} {path}: {answer.get('message')}")
        return answer


def ready(status: Mapping[str, Any]) -> dict[str, Any]:
    """The condition Ready of a status; empty where there is none."""
    return next((each for each in status.get("conditions", ()) if each["type"] == "Ready"), {})


def podlink(name: str, uid: str | None = None, service: str = "lobby", **spec: Any) -> dict[str, Any]:
    """A PodLink manifest."""
    return {
        "apiVersion": "podlink.io/v1alpha1",
        "kind": "PodLink",
        "metadata": {"name": name},
        "spec": {"uid": uid or name, "service": service, **spec},
    }


def stateful_set(
    name: str,
    replicas: int = 1,
    *,
    service_name: str | None = None,
    labels: Mapping[str, str] | None = None,
    driven: bool = False,
    finalizers: tuple[str, ...] = (),
    **spec: Any,
) -> dict[str, Any]:
    """A StatefulSet manifest; `labels` are the pods', `driven` keeps every kubelet away from them."""
    pod_spec = {"containers": [CONTAINER], "terminationGracePeriodSeconds": 1}
    if driven:
        pod_spec["nodeSelector"] = DRIVEN
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": {"name": name, "finalizers": list(finalizers)},
        "spec": {
            "serviceName": name if service_name is None else service_name,
            "replicas": replicas,
            "podManagementPolicy": "Parallel",
            "selector": {"matchLabels": {"set": name}},
            "template": {"metadata": {"labels": {"set": name, **(labels or {})}}, "spec": pod_spec},
            **spec,
        },
    }


CONTAINER = {"name": "main", "image": "registry.k8s.io/pause:3.10"}


def bare_pod(name: str, labels: Mapping[str, str], **spec: Any) -> dict[str, Any]:
    """A pod of no StatefulSet, whose status is the test's to write."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": dict(labels)},
        "spec": {"containers": [CONTAINER], "nodeSelector": DRIVEN, **spec},
    }


class Wire:
    """What a client in any language finds in Redis about one namespace."""

    def __init__(self, client: redis.Redis, namespace: str) -> None:
        self.redis = client
        self._ns = namespace

    def link(self, uid: str, service: str = "lobby") -> tuple[str | None, str | None]:
        """The link's string and its field in the uid's hash; NO_LINK when there is neither."""
        return self.redis.get(f"sf:{{{self._ns}:lk:{uid}}}{service}"), self.redis.hget(
            f"sf:{{{self._ns}:lk:{uid}}}", service
        )

    def milliseconds(self, uid: str, service: str = "lobby") -> int:
        """What is left of a link: -1 permanent, -2 no link."""
        return self.redis.pttl(f"sf:{{{self._ns}:lk:{uid}}}{service}")

    def service(self, service: str = "lobby") -> tuple[dict[str, str], str | None]:
        """The states of its pods and that of its workload."""
        return self.states(service), self.workload(service)

    def states(self, service: str = "lobby") -> dict[str, str]:
        return self.redis.hgetall(f"sf:{{{self._ns}:state:{service}}}")

    def loads(self, service: str = "lobby") -> dict[str, str]:
        return self.redis.hgetall(f"sf:{{{self._ns}:state:{service}}}load")

    def workload(self, service: str = "lobby") -> str | None:
        return self.redis.get(f"sf:{{{self._ns}:workload:{service}}}")

    def version(self, service: str, pod: str) -> str | None:
        """The resourceVersion of the pod whose state was written last."""
        return self.redis.hget(f"sf:{{{self._ns}:state:{service}}}rv", pod)

    def workload_version(self, service: str) -> str | None:
        """The resourceVersion of the StatefulSet whose state was written last."""
        return self.redis.get(f"sf:{{{self._ns}:workload:{service}}}rv")

    def tombstones(self, service: str) -> list[int]:
        """The seconds that the versions of a service that is gone are still kept."""
        return [self.redis.ttl(f"sf:{{{self._ns}:{kind}:{service}}}rv") for kind in ("state", "workload")]

    def all_loads(self) -> dict[str, dict[str, int]]:
        """The load hash of every service."""
        found = self.redis.scan_iter(f"sf:{{{self._ns}:state:*}}load", count=1000)
        return {
            re.fullmatch(r"sf:\{[^:]+:state:(.+)\}load", key)[1]: {
                pod: int(load) for pod, load in self.redis.hgetall(key).items()
            }
            for key in found
        }

    def all_links(self) -> dict[str, dict[str, int]]:
        """The number of links to each pod of each service, counted."""
        counted: dict[str, Counter[str]] = defaultdict(Counter)
        for key in self.redis.scan_iter(f"sf:{{{self._ns}:lk:*}}", count=1000):
            for service, pod in self.redis.hgetall(key).items():
                counted[service][pod] += 1
        return {service: dict(pods) for service, pods in counted.items()}

    @contextlib.contextmanager
    def monitor(self) -> Iterator[list[list[str]]]:
        """The commands that the server executes within the block, those of scripts too; filled in at its end."""
        commands: list[list[str]] = []
        with self.redis.monitor() as monitor:
            yield commands
            self.redis.echo("end-of-block")
            while (words := monitor.next_command()["command"].split(" ")) != ["ECHO", "end-of-block"]:
                commands.append(words)

    def keys(self) -> dict[str, Any]:
        """Every key of the namespace with its value, but for the versions and times that only PodLink itself minds."""
        readers = {"string": self.redis.get, "hash": self.redis.hgetall}
        found = sorted(self.redis.scan_iter(f"sf:{{{self._ns}:*", count=1000))
        return {
            key: readers[kind](key)
            for key in found
            if not key.endswith(("}rv", "}exp")) and (kind := self.redis.type(key)) != "none"
        }


def disagreement(kube: Kube, wire: Wire) -> dict[str, tuple[Any, Any]]:
    """Every key of which cluster and Redis do not say the same, with what both say; empty when they agree.

    Linked PodLinks are links, and there are no others; each pod has a state and each StatefulSet one, and nothing else
    does; a load is the number of links. To be asked when all StatefulSets have the pods that they want.
    """
    expected, found = _keys_by_cluster(kube), wire.keys()
    return {
        key: (expected.get(key), found.get(key))
        for key in sorted(expected.keys() | found.keys())
        if expected.get(key) != found.get(key)
    }


def _keys_by_cluster(kube: Kube) -> dict[str, Any]:
    ns = kube.namespace
    keys: dict[str, Any] = {}
    for link in kube.list("podlinks"):
        status = link.get("status") or {}
        if status.get("phase") == "Linked":
            uid, service, pod = link["spec"]["uid"], link["spec"]["service"], str(status["podId"])
            keys[f"sf:{{{ns}:lk:{uid}}}{service}"] = pod
            keys.setdefault(f"sf:{{{ns}:lk:{uid}}}", {})[service] = pod
            loads = keys.setdefault(f"sf:{{{ns}:state:{service}}}load", {})
            loads[pod] = str(int(loads.get(pod, 0)) + 1)
    for pod in kube.list("pods"):
        service, ordinal = pod["spec"]["subdomain"], pod["metadata"]["labels"]["apps.kubernetes.io/pod-index"]
        state = "Ready" if ready(pod["status"]).get("status") == "True" else "NotReady"
        state = "Terminating" if "deletionTimestamp" in pod["metadata"] else state
        keys.setdefault(f"sf:{{{ns}:state:{service}}}", {})[ordinal] = state
    for workload in kube.list("statefulsets"):
        state = "Available" if workload["spec"]["replicas"] else "ScaledToZero"
        keys[f"sf:{{{ns}:workload:{workload['spec']['serviceName']}}}"] = state
    return keys
