"""The PodLink type as users meet it: what `kubectl apply` refuses, and in which words; what kubectl shows of it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from cluster.harness import Kube, podlink, ready
from sandbox.cluster import KubectlError
from sandbox.processes import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

BRACES = "must not contain { or }: they would move the Redis hash slot"
CONTROL = "must not contain control characters, such as tabs and line breaks"
PERSIST = "persistSeconds must be -1 (permanent) or above 0 (seconds until the link expires)"


@pytest.fixture(scope="module", autouse=True)
def lobby(kube: Kube) -> None:
    kube.stateful_set("lobby", 3)


def apply(kube: Kube, manifest: dict[str, Any], *flags: str) -> None:
    kube.kubectl("apply", *flags, "-f", "-", input=json.dumps(manifest))


def manifest(**spec: Any) -> dict[str, Any]:
    """A PodLink with these fields changed; None leaves one out."""
    whole = podlink("player-42", "player-42", "lobby", podId=2)
    whole["spec"] = {name: value for name, value in {**whole["spec"], **spec}.items() if value is not None}
    return whole


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ({"uid": None}, "spec.uid: Required value"),
        ({"uid": ""}, "spec.uid in body should be at least 1 chars long"),
        ({"uid": "u" * 1025}, "spec.uid: Too long: may not be more than 1024"),
        ({"uid": 42}, 'spec.uid in body must be of type string: "integer"'),
        ({"uid": "a{b"}, f"uid {BRACES}"),
        ({"uid": "a}b"}, f"uid {BRACES}"),
        ({"uid": "a\tb"}, f"uid {CONTROL}"),
        ({"uid": "a\n"}, f"uid {CONTROL}"),
        ({"uid": "\x7f"}, f"uid {CONTROL}"),
        ({"uid": "a\u0085b"}, f"uid {CONTROL}"),
        ({"service": None}, "spec.service: Required value"),
        ({"service": ""}, "spec.service in body should be at least 1 chars long"),
        ({"service": "s" * 254}, "spec.service: Too long: may not be more than 253"),
        ({"service": "a{b"}, f"service {BRACES}"),
        ({"service": "a}b"}, f"service {BRACES}"),
        ({"service": "a\rb"}, f"service {CONTROL}"),
        ({"service": "a\u009fb"}, f"service {CONTROL}"),
        ({"podId": -1}, "spec.podId in body should be greater than or equal to 0"),
        ({"podId": "2"}, 'spec.podId in body must be of type integer: "string"'),
        ({"podId": 2**31}, "spec.podId in body should be less than or equal to 2147483647"),
        ({"persistSeconds": 2**31}, "spec.persistSeconds in body should be less than or equal to 2147483647"),
        ({"releaseSeconds": 2**31}, "spec.releaseSeconds in body should be less than or equal to 2147483647"),
        ({"policy": "Force"}, 'spec.policy: Unsupported value: "Force": supported values: "TrySet", "Set", "IfAbsent"'),
        ({"persistSeconds": 0}, PERSIST),
        ({"persistSeconds": -2}, PERSIST),
        ({"releaseSeconds": -1}, "spec.releaseSeconds in body should be greater than or equal to 0"),
        (
            {"onPodLoss": "Drop"},
            'spec.onPodLoss: Unsupported value: "Drop": supported values: "Keep", "Relink", "Release"',
        ),
        (
            {"onPodLoss": "Relink"},
            "onPodLoss Relink lets the operator pick another pod: leave podId out, or use Keep or Release",
        ),
        ({"podID": 2}, 'unknown field "spec.podID"'),
    ],
)
def test_a_bad_podlink_is_refused_with_what_to_change(kube: Kube, spec: dict[str, Any], told: str) -> None:
    with pytest.raises(KubectlError) as refusal:
        apply(kube, manifest(**spec), "--dry-run=server")

    assert told in str(refusal.value)


@pytest.mark.parametrize(
    "spec",
    [
        {"podId": None},
        {"podId": 0},
        {"podId": 2**31 - 1},
        {"uid": "Zoë:42/ü 🙂"},
        {"uid": "u" * 1024},
        {"service": "s" * 253},
        {"policy": "TrySet"},
        {"policy": "Set"},
        {"policy": "IfAbsent"},
        {"persistSeconds": -1},
        {"persistSeconds": 1},
        {"persistSeconds": 2**31 - 1},
        {"releaseSeconds": 0},
        {"releaseSeconds": 2**31 - 1},
        {"onPodLoss": "Keep"},
        {"onPodLoss": "Release"},
        {"onPodLoss": "Relink", "podId": None},
    ],
)
def test_a_good_podlink_is_taken(kube: Kube, spec: dict[str, Any]) -> None:
    apply(kube, manifest(**spec), "--dry-run=server")


def test_what_is_left_out_has_a_default(kube: Kube) -> None:
    assert kube.link("defaults")["spec"] == {
        "uid": "defaults",
        "service": "lobby",
        "policy": "TrySet",
        "persistSeconds": -1,
        "releaseSeconds": 0,
        "onPodLoss": "Keep",
    }


@pytest.fixture
def applied(kube: Kube) -> Iterator[str]:
    """A PodLink made by `kubectl apply`, of which kubectl says that it is Ready."""
    apply(kube, manifest())
    kube.kubectl("wait", "--for=condition=Ready", "--timeout=60s", "podlink/player-42")
    yield "player-42"
    kube.kubectl("delete", "podlink", "player-42", "--timeout=60s")


@pytest.mark.parametrize(
    ("field", "told"),
    [
        ("uid", "uid is immutable: delete this PodLink and create another one for the other uid"),
        ("service", "service is immutable: delete this PodLink and create another one for the other service"),
    ],
)
def test_whose_link_it_is_cannot_be_edited(kube: Kube, applied: str, field: str, told: str) -> None:
    with pytest.raises(KubectlError) as refusal:
        apply(kube, manifest(**{field: "other"}))

    assert told in str(refusal.value)
    # The same values again are no edit.
    apply(kube, manifest(podId=1, policy="Set", persistSeconds=60, releaseSeconds=5, onPodLoss="Release"))


def test_relink_cannot_be_edited_in_beside_a_podid(kube: Kube, applied: str) -> None:
    with pytest.raises(KubectlError, match="leave podId out, or use Keep or Release"):
        apply(kube, manifest(onPodLoss="Relink"))


def test_kubectl_get_shows_who_is_linked_to_what(kube: Kube, applied: str) -> None:
    columns, row = kube.kubectl("get", "pl", "player-42").splitlines()

    assert columns.split() == ["NAME", "UID", "SERVICE", "POD", "PHASE", "READY", "AGE"]
    assert row.split()[:6] == ["player-42", "player-42", "lobby", "2", "Linked", "True"]
    assert kube.kubectl("get", "podlinks", "player-42", "-o", "wide").splitlines()[0].split() == [
        "NAME", "UID", "SERVICE", "POD", "PHASE", "READY", "REASON", "AGE",
    ]  # fmt: skip


def test_the_category_podlink_finds_the_type(kube: Kube) -> None:
    found = kube.kubectl("api-resources", "--categories=podlink", "-o", "name")

    assert found.split() == ["podlinks.podlink.io"]


def test_fields_are_explained(kube: Kube) -> None:
    explained = kube.kubectl("explain", "podlink.spec.podId")

    assert "If left out, the operator picks the least loaded Ready pod." in " ".join(explained.split())


@pytest.fixture
def at_admission(kube: Kube) -> list[str]:
    """The finalizers that the API server gives a PodLink; where it has no policy for that, the operator gives them."""
    return ["podlink.io/release"] if kube.cluster.serves_policies() else []


def test_the_finalizer_is_added_at_admission_or_by_the_operator(kube: Kube, at_admission: list[str]) -> None:
    assert kube.link("guarded")["metadata"].get("finalizers", []) == at_admission
    eventually(lambda: kube.report("guarded")[:2], ("Linked", "Linked"))
    assert kube.get("podlinks", "guarded")["metadata"]["finalizers"] == ["podlink.io/release"]


def test_other_finalizers_stay(kube: Kube, at_admission: list[str]) -> None:
    manifest = podlink("guarded-twice")
    manifest["metadata"]["finalizers"] = ["example.com/other"]
    created = kube.create("podlinks", manifest)

    assert sorted(created["metadata"]["finalizers"]) == ["example.com/other", *at_admission]
    # Ours goes when the link is released, the other one is not for us to take.
    eventually(lambda: kube.report("guarded-twice")[:2], ("Linked", "Linked"))
    kube.delete("podlinks", "guarded-twice")
    eventually(lambda: kube.get("podlinks", "guarded-twice")["metadata"]["finalizers"], ["example.com/other"])
    kube.patch("podlinks", "guarded-twice", {"metadata": {"finalizers": None}})


def test_the_operator_adds_the_finalizer_where_it_is_missing(kube: Kube) -> None:
    kube.link("bare")
    eventually(lambda: kube.report("bare")[:2], ("Linked", "Linked"))
    kube.patch("podlinks", "bare", {"metadata": {"finalizers": None}})

    eventually(lambda: kube.get("podlinks", "bare")["metadata"].get("finalizers"), ["podlink.io/release"])
    assert ready(kube.status("bare"))["status"] == "True"
