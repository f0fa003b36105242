"""README, CRD, scripts and code name the same things."""

import re

import msgspec
import pytest
import yaml

import podlink
import podlink.sync
from podlink.domain.podlinks import Condition, OnPodLoss, Phase, Policy, Reason, Spec, Status
from podlink.domain.states import PodState, WorkloadState
from sandbox.cluster import CRD, REPOSITORY

README = (REPOSITORY / "README.md").read_text()
(VERSION,) = yaml.safe_load(CRD.read_text())["spec"]["versions"]
SCHEMA = VERSION["schema"]["openAPIV3Schema"]["properties"]
SPEC = SCHEMA["spec"]["properties"]
STATUS = SCHEMA["status"]["properties"]


def section(title: str) -> str:
    return README.split(f"## {title}\n")[1].split("\n## ")[0]


def named(text: str) -> set[str]:
    return set(re.findall(r"`([^`]+)`", text))


def first_column(text: str) -> set[str]:
    return {name for row in re.findall(r"^\| (`[^|]*) \|", text, re.MULTILINE) for name in named(row)}


def public_methods(executor: type) -> set[str]:
    plumbing = {"from_url", "run", "run_many", "nodes", "health", "aclose", "close"}
    return {name for name in dir(executor) if not name.startswith("_") and callable(getattr(executor, name))} - plumbing


@pytest.mark.parametrize(
    "executor", [podlink.StatefulExecutor, podlink.sync.StatefulExecutor], ids=["async", "blocking"]
)
def test_readme_lists_every_method(executor: type) -> None:
    assert first_column(section("The executor")) == public_methods(executor)


def test_readme_and_model_have_the_fields_of_the_crd() -> None:
    fields = section("PodLink fields")
    assert set(SPEC) == {name.encode_name for name in _fields(Spec)}
    assert set(STATUS) == {name.encode_name for name in _fields(Status)}
    assert set(STATUS["conditions"]["items"]["properties"]) == {name.encode_name for name in _fields(Condition)}
    spec, status = fields.split("| `status` | |")
    assert first_column(spec) - {"spec"} == set(SPEC)
    assert first_column(status) >= set(STATUS) - {"conditions"}


def _fields(struct: type) -> list:
    return list(msgspec.structs.fields(struct))


def test_enumerations_agree() -> None:
    assert SPEC["policy"]["enum"] == [policy.value for policy in Policy]
    assert SPEC["onPodLoss"]["enum"] == [choice.value for choice in OnPodLoss]
    assert STATUS["phase"]["enum"] == [phase.value for phase in Phase]
    defaults = Spec(uid="u", service="s")
    assert SPEC["policy"]["default"] == defaults.policy
    assert SPEC["onPodLoss"]["default"] == defaults.on_pod_loss
    assert SPEC["persistSeconds"]["default"] == defaults.persist_seconds
    assert SPEC["releaseSeconds"]["default"] == defaults.release_seconds


def test_readme_names_every_phase_reason_and_state() -> None:
    fields = named(section("PodLink fields"))
    assert {phase.value for phase in Phase} <= fields
    assert {reason.value for reason in Reason} <= fields
    pods, workloads = section("States").split("| workload |")
    assert first_column(pods) == {state.value for state in PodState}
    assert first_column(workloads) == {state.value for state in WorkloadState}


def test_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    assert targets
    assert [target for target in targets if not (REPOSITORY / target).exists()] == []
