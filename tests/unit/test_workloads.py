"""Who a pod is: service and pod id, and what a StatefulSet wants, from the objects as the API has them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podlink.domain.errors import InvalidArgument, PodLinkError
from podlink.domain.states import PodState, WorkloadState
from podlink.domain.workloads import MAX_POD_ID, UnidentifiedPodError, read_pod, read_workload, workload_state
from unit.builders import make_workload

OWNER = {"controller": True, "kind": "StatefulSet", "name": "web", "uid": "web-uid"}
REPLICA_SET = {"controller": True, "kind": "ReplicaSet", "name": "web-7d9f8b6c5d", "uid": "x"}


def pod(name: str = "web-2", *, subdomain: str | None = None, owner: Any = OWNER) -> dict[str, Any]:
    spec = {} if subdomain is None else {"subdomain": subdomain}
    metadata: dict[str, Any] = {"namespace": "games", "name": name, "uid": "pod-uid", "resourceVersion": "4711"}
    if owner is not None:
        metadata["ownerReferences"] = [owner]
    return {"metadata": metadata, "spec": spec, "status": {"phase": "Running"}}


def labelled(body: dict[str, Any], **labels: str) -> dict[str, Any]:
    names = {
        "service": "podlink.io/service",
        "pod_id": "podlink.io/pod-id",
        "index": "apps.kubernetes.io/pod-index",
        "pod_name": "statefulset.kubernetes.io/pod-name",
    }
    body["metadata"]["labels"] = {names[name]: value for name, value in labels.items()}
    return body


def test_everything_that_is_read_of_a_pod() -> None:
    found = read_pod(labelled(pod(subdomain="lobby"), index="2"))
    assert found is not None
    assert (found.namespace, found.name, found.uid) == ("games", "web-2", "pod-uid")
    assert (found.service, found.pod_id, found.state) == ("lobby", 2, PodState.NOT_READY)
    assert (found.version, found.owner) == (4711, "web-uid")


@pytest.mark.parametrize(
    ("body", "service"),
    [
        pytest.param(labelled(pod(subdomain="lobby"), service="chat"), "chat", id="its label"),
        pytest.param(pod(subdomain="lobby"), "lobby", id="its subdomain"),
        pytest.param(pod(), "web", id="its StatefulSet"),
        pytest.param(labelled(pod(subdomain="lobby"), service=""), "lobby", id="an empty label says nothing"),
        pytest.param(pod(subdomain=""), "web", id="an empty subdomain says nothing"),
        pytest.param(pod(subdomain="lobby", owner=None), "lobby", id="a bare pod's subdomain"),
        pytest.param(labelled(pod(owner=None), service="chat"), "chat", id="a bare pod's label"),
        pytest.param(labelled(pod(owner=None), pod_name="web-2", index="2"), "web", id="its former StatefulSet"),
        pytest.param(labelled(pod("a-1-2", owner=None), pod_name="a-1-2"), "a-1", id="a former one with a number"),
    ],
)
def test_service_of_a_pod(body: dict[str, Any], service: str) -> None:
    found = read_pod(body)
    assert found is not None
    assert found.service == service


@pytest.mark.parametrize(
    "owner",
    [
        None,
        REPLICA_SET,
        {"controller": False, "kind": "StatefulSet", "name": "web", "uid": "x"},
        {"kind": "StatefulSet", "name": "web", "uid": "x"},
    ],
    ids=["bare", "of a Deployment", "owned, not controlled", "owned, nothing said of control"],
)
def test_pod_of_no_service(owner: dict[str, Any] | None) -> None:
    assert read_pod(pod("odd-name", owner=owner)) is None, "a pod that is none of ours need have no id"


@pytest.mark.parametrize("service", ["a{b}", "tab\t"])
def test_service_that_cannot_be_part_of_a_key_is_refused(service: str) -> None:
    with pytest.raises(InvalidArgument, match="service"):
        read_pod(labelled(pod(), service=service))
    with pytest.raises(InvalidArgument, match="service"):
        read_workload(stateful_set(serviceName=service))


def test_controller_among_several_owners() -> None:
    body = pod()
    body["metadata"]["ownerReferences"] = [{"kind": "Fleet", "name": "fleet", "uid": "fleet-uid"}, OWNER]
    found = read_pod(body)
    assert found is not None
    assert found.owner == "web-uid"


@pytest.mark.parametrize(
    "metadata",
    [{}, {"labels": None, "ownerReferences": None}],
    ids=["missing", "null"],
)
@pytest.mark.parametrize("spec", [{}, {"spec": None}, {"spec": {"subdomain": None}}], ids=["missing", "null", "empty"])
def test_pod_that_says_next_to_nothing(metadata: dict[str, Any], spec: dict[str, Any]) -> None:
    always = {"namespace": "games", "name": "web-0", "uid": "u", "resourceVersion": "1"}
    assert read_pod({"metadata": always | metadata, **spec}) is None


@pytest.mark.parametrize(
    ("body", "pod_id"),
    [
        pytest.param(labelled(pod("web-2"), pod_id="7", index="3"), 7, id="label podlink.io/pod-id"),
        pytest.param(labelled(pod("web-2"), index="3"), 3, id="the pod index"),
        pytest.param(pod("web-2"), 2, id="the number that ends its name"),
        pytest.param(pod("web-0"), 0, id="0 is an id"),
        pytest.param(pod("web-1-12"), 12, id="the last of several numbers"),
        pytest.param(pod("web-007"), 7, id="leading zeros"),
        pytest.param(labelled(pod("web"), index="0"), 0, id="an index for a name without a number"),
        pytest.param(labelled(pod("web"), pod_id=str(MAX_POD_ID)), MAX_POD_ID, id="the largest id"),
    ],
)
def test_pod_id(body: dict[str, Any], pod_id: int) -> None:
    found = read_pod(body)
    assert found is not None
    assert found.pod_id == pod_id


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (labelled(pod(), pod_id="two", index="2"), "label podlink.io/pod-id='two' gives no pod id"),
        (labelled(pod(), pod_id="-1"), "label podlink.io/pod-id='-1'"),
        (labelled(pod(), pod_id="+1"), "label podlink.io/pod-id='+1'"),
        (labelled(pod(), pod_id="1_0"), "label podlink.io/pod-id='1_0'"),
        (labelled(pod(), pod_id="٣"), "label podlink.io/pod-id='٣'"),
        (labelled(pod(), pod_id=""), "label podlink.io/pod-id=''"),
        (labelled(pod(), pod_id="3\n"), "label podlink.io/pod-id='3\\n'"),
        (labelled(pod(), pod_id=str(MAX_POD_ID + 1)), "label podlink.io/pod-id='2147483648'"),
        (labelled(pod(), index="x"), "label apps.kubernetes.io/pod-index='x'"),
        (pod("web-a"), "its name gives no pod id"),
        (pod("web12"), "its name gives no pod id"),
        (pod("web-7d9f8b6c5d-x2k47", subdomain="web", owner=REPLICA_SET), "its name gives no pod id"),
        (pod("web-7d9f8b6c5d-24747", subdomain="web", owner=REPLICA_SET), "its name gives no pod id"),
        (pod("web-2147483648"), "its name gives no pod id"),
        (pod("web-" + "9" * 200), "its name gives no pod id"),
    ],
    ids=lambda value: value[-30:].replace("/", "") if isinstance(value, str) else "",
)
def test_pod_without_an_id_says_which_label_helps(body: dict[str, Any], text: str) -> None:
    with pytest.raises(UnidentifiedPodError) as raised:
        read_pod(body)
    assert text in str(raised.value)
    assert "set label podlink.io/pod-id to an integer from 0 to 2147483647" in str(raised.value)
    assert isinstance(raised.value, PodLinkError)


@given(
    prefix=st.from_regex(r"[a-z]([-a-z0-9]{0,20}[a-z0-9])?", fullmatch=True),
    pod_id=st.integers(0, MAX_POD_ID),
)
def test_every_ordinal_is_read_back_from_the_name(prefix: str, pod_id: int) -> None:
    found = read_pod(pod(f"{prefix}-{pod_id}"))
    assert found is not None
    assert found.pod_id == pod_id


@given(name=st.from_regex(r"[a-z0-9]([-a-z0-9.]{0,30}[a-z0-9])?", fullmatch=True))
def test_every_name_gives_an_id_or_an_error(name: str) -> None:
    try:
        found = read_pod(pod(name))
    except UnidentifiedPodError:
        digits = name[len(name.rstrip("0123456789")) :]
        assert not digits or not name.removesuffix(digits).endswith("-") or int(digits) > MAX_POD_ID
    else:
        assert found is not None
        assert name.endswith(str(found.pod_id))


def stateful_set(status: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    return {
        "metadata": {
            "namespace": "games",
            "name": "web",
            "uid": "web-uid",
            "resourceVersion": "12",
            "generation": 3,
            "creationTimestamp": "2024-01-01T00:00:00Z",
        },
        "spec": {"serviceName": "lobby", "replicas": 3, **spec},
        "status": {
            "observedGeneration": 3,
            "replicas": 3,
            "readyReplicas": 3,
            "updatedReplicas": 3,
            "currentRevision": "web-1",
            "updateRevision": "web-1",
            **(status or {}),
        },
    }


def test_everything_that_is_read_of_a_stateful_set() -> None:
    found = read_workload(stateful_set({"readyReplicas": 2}))
    assert (found.namespace, found.name, found.uid, found.service) == ("games", "web", "web-uid", "lobby")
    assert (found.created, found.version) == ("2024-01-01T00:00:00Z", 12)
    assert (found.replicas, found.ready_replicas, found.ids) == (3, 2, range(3))
    assert not found.terminating
    assert not found.progressing


@pytest.mark.parametrize(
    ("spec", "service"),
    [
        pytest.param({"template": {"metadata": {"labels": {"podlink.io/service": "chat"}}}}, "chat", id="its label"),
        pytest.param({"template": {"metadata": {"labels": {"podlink.io/service": ""}}}}, "lobby", id="an empty label"),
        pytest.param({"template": {"metadata": {"labels": None}}}, "lobby", id="null labels"),
        pytest.param({"template": {"metadata": None}}, "lobby", id="null metadata"),
        pytest.param({"template": None}, "lobby", id="null template"),
        pytest.param({}, "lobby", id="its serviceName"),
        pytest.param({"serviceName": ""}, "web", id="an empty serviceName"),
        pytest.param({"serviceName": None}, "web", id="its name"),
    ],
)
def test_service_of_a_stateful_set(spec: dict[str, Any], service: str) -> None:
    assert read_workload(stateful_set(**spec)).service == service


@pytest.mark.parametrize(
    ("spec", "ids"),
    [
        pytest.param({}, range(3), id="from 0"),
        pytest.param({"ordinals": {"start": 5}}, range(5, 8), id="from ordinals.start"),
        pytest.param({"ordinals": {"start": 0}}, range(3), id="ordinals.start of 0"),
        pytest.param({"ordinals": {"start": None}}, range(3), id="null start"),
        pytest.param({"ordinals": None}, range(3), id="null ordinals"),
        pytest.param({"replicas": 0}, range(0), id="no replicas"),
        pytest.param({"replicas": None}, range(1), id="one replica when nothing is said"),
    ],
)
def test_ids_that_a_stateful_set_is_meant_to_run(spec: dict[str, Any], ids: range) -> None:
    assert read_workload(stateful_set(**spec)).ids == ids


def test_deleted_stateful_set_is_meant_to_run_nothing() -> None:
    body = stateful_set(ordinals={"start": 5})
    body["metadata"]["deletionTimestamp"] = "2024-05-01T12:00:00Z"
    found = read_workload(body)
    assert found.terminating
    assert not found.ids


NEW_REVISION = {"updateRevision": "web-2"}


@pytest.mark.parametrize(
    ("body", "progressing"),
    [
        pytest.param(stateful_set(), False, id="at rest"),
        pytest.param(stateful_set({"readyReplicas": 0}), False, id="at rest, not ready"),
        pytest.param(stateful_set({"observedGeneration": 2}), True, id="the change is not observed yet"),
        pytest.param(stateful_set({"replicas": 2}), True, id="pods are being created"),
        pytest.param(stateful_set({"replicas": 5}), False, id="pods are being removed"),
        pytest.param(stateful_set({"updatedReplicas": 1, **NEW_REVISION}), True, id="rolled out"),
        pytest.param(
            stateful_set({"updatedReplicas": 3, **NEW_REVISION}),
            True,
            id="rolled out until its revision is the current one",
        ),
        pytest.param(stateful_set({"updatedReplicas": None, **NEW_REVISION}), True, id="no pod rolled out yet"),
        pytest.param(
            stateful_set(
                {"updatedReplicas": 1, **NEW_REVISION},
                updateStrategy={"type": "RollingUpdate", "rollingUpdate": {"partition": 2}},
            ),
            False,
            id="rolled out down to the partition",
        ),
        pytest.param(
            stateful_set(
                {"updatedReplicas": 1, **NEW_REVISION},
                updateStrategy={"type": "RollingUpdate", "rollingUpdate": {"partition": 1}},
            ),
            True,
            id="rolled out, not yet down to the partition",
        ),
        pytest.param(
            stateful_set(
                {"updatedReplicas": 0, **NEW_REVISION},
                updateStrategy={"type": "RollingUpdate", "rollingUpdate": {"partition": 7}},
            ),
            False,
            id="the partition is above all pods",
        ),
        pytest.param(
            stateful_set(
                {"updatedReplicas": 1, **NEW_REVISION},
                ordinals={"start": 5},
                updateStrategy={"type": "RollingUpdate", "rollingUpdate": {"partition": 2}},
            ),
            False,
            id="the partition counts from the first replica, whatever ordinals.start is",
        ),
        pytest.param(
            stateful_set({"updatedReplicas": 0, **NEW_REVISION}, updateStrategy={"type": "OnDelete"}),
            False,
            id="OnDelete waits for people",
        ),
        pytest.param(
            stateful_set({"replicas": 2}, updateStrategy={"type": "OnDelete"}), True, id="OnDelete creates pods"
        ),
        pytest.param(
            stateful_set({"updatedReplicas": 2, **NEW_REVISION}, updateStrategy={"rollingUpdate": None}),
            True,
            id="null rollingUpdate",
        ),
        pytest.param(stateful_set(updateStrategy=None), False, id="null updateStrategy"),
        pytest.param(stateful_set() | {"status": {}}, True, id="the controller has not seen it"),
        pytest.param(stateful_set() | {"status": None}, True, id="null status"),
    ],
)
def test_progressing(body: dict[str, Any], progressing: bool) -> None:
    assert read_workload(body).progressing is progressing


def test_stateful_set_without_a_status_has_no_ready_replicas() -> None:
    assert read_workload(stateful_set() | {"status": None}).ready_replicas == 0


@pytest.mark.parametrize(
    ("workloads", "state"),
    [
        pytest.param([], None, id="there is none"),
        pytest.param([make_workload(3)], WorkloadState.AVAILABLE, id="all ready"),
        pytest.param([make_workload(3, ready_replicas=4)], WorkloadState.AVAILABLE, id="more ready than wanted"),
        pytest.param([make_workload(3, ready_replicas=2)], WorkloadState.DEGRADED, id="one not ready"),
        pytest.param([make_workload(3, ready_replicas=0)], WorkloadState.UNAVAILABLE, id="none ready"),
        pytest.param([make_workload(3, progressing=True)], WorkloadState.PROGRESSING, id="rolled out while ready"),
        pytest.param(
            [make_workload(3, ready_replicas=0, progressing=True)], WorkloadState.PROGRESSING, id="rolled out"
        ),
        pytest.param([make_workload(0)], WorkloadState.SCALED_TO_ZERO, id="scaled to zero"),
        pytest.param([make_workload(0, progressing=True)], WorkloadState.SCALED_TO_ZERO, id="being scaled to zero"),
        pytest.param([make_workload(3, terminating=True)], WorkloadState.TERMINATING, id="deleted"),
        pytest.param([make_workload(0, terminating=True)], WorkloadState.TERMINATING, id="deleted at zero"),
        pytest.param(
            [make_workload(3, terminating=True), make_workload(2)], WorkloadState.AVAILABLE, id="one of two deleted"
        ),
        pytest.param(
            [make_workload(3, terminating=True), make_workload(2, terminating=True)],
            WorkloadState.TERMINATING,
            id="both deleted",
        ),
        pytest.param(
            [make_workload(0), make_workload(2, ready_replicas=1)], WorkloadState.DEGRADED, id="one of two at zero"
        ),
        pytest.param([make_workload(0), make_workload(0)], WorkloadState.SCALED_TO_ZERO, id="both at zero"),
        pytest.param(
            [make_workload(2, ready_replicas=0), make_workload(2)], WorkloadState.DEGRADED, id="one of two not ready"
        ),
        pytest.param(
            [make_workload(2, progressing=True), make_workload(2)],
            WorkloadState.PROGRESSING,
            id="one of two rolled out",
        ),
    ],
)
def test_state_of_a_workload(workloads: list[Any], state: WorkloadState | None) -> None:
    assert workload_state(workloads) is state
    assert workload_state(reversed(workloads)) is state
