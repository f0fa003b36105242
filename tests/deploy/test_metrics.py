"""What the operator exposes, judged as Prometheus's own linter does, and how much of it there can be."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import TYPE_CHECKING

from deploy.monitoring import promtool
from deploy.scraping import MANY, UID

if TYPE_CHECKING:
    from deploy.monitoring import Exposed
    from deploy.scraping import Scraped

BASE_UNITS = ("seconds", "bytes", "total", "info")
NO_UNIT = {
    "podlink_leader",
    "podlink_podlinks",
    "podlink_queue_length",
    "podlink_redis_up",
    "podlink_redis_connections",
    "podlink_redis_circuits_open",
    "podlink_overlapping_workloads",
    "podlink_scope_failing",
}
"""Numbers of things, and switches."""

VALUES = {
    "cause": {"start", "resync", "relist", "watch_restart", "overlap", "data_loss", "redis_return"},
    "kind": {
        *("Pod", "StatefulSet", "PodLink"),
        *("pod_state", "workload_state", "podlink", "unreadable"),
        *("load", "temporary_link"),
    },
    "outcome": {"ok", "stale", "redis_unavailable", "error", "fault", "unavailable", "script_error"},
    "reason": {"Forbidden", "NamespaceNotFound", "NamespaceTerminating", "ApiServer", "Redis", "Watch"},
    "phase": {"Pending", "Linked", "Conflict", "Expired", "Released"},
}
"""All that there can be; operations are the executor's methods."""


def values(exposed: Exposed) -> dict[str, set[str]]:
    """The values of every label."""
    found = defaultdict(set)
    for sample in exposed.series:
        for label, value in sample.labels.items():
            found[label].add(value)
    return found


def test_promtool_finds_nothing_to_improve(scraped: Scraped) -> None:
    checked = promtool("check", "metrics", given=scraped.metrics.text)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def test_names_begin_with_podlink_and_end_with_a_base_unit(scraped: Scraped) -> None:
    names = {
        name
        for family in scraped.metrics.families
        for name in (scraped.metrics.names_of(family) if not family.endswith("_seconds") else {family})
    }
    assert {name for name in names if not name.startswith(("podlink_", "process_"))} == set()
    ours = {name for name in names if name.startswith("podlink_")}
    assert {name for name in ours if not name.endswith(BASE_UNITS)} == NO_UNIT


def test_labels_are_few_and_their_values_are_bounded(scraped: Scraped) -> None:
    found = values(scraped.metrics)
    assert found.keys() == {*VALUES, "operation", "version", "le", "scope"}
    assert {label: found[label] - known for label, known in VALUES.items()} == {label: set() for label in VALUES}
    assert [name for name in found["operation"] if not re.fullmatch("[a-z_]+", name)] == []
    assert len(found["version"]) == 1
    # As many as there are flags --namespace.
    assert len(found["scope"]) == 1


def test_no_label_holds_a_uid_or_the_name_of_an_object(scraped: Scraped) -> None:
    words = (UID, "lobby", "test-", "nobody")
    assert [
        sample
        for sample in scraped.metrics.series
        if any(word in value for label, value in sample.labels.items() if label != "scope" for word in words)
    ] == []


def test_the_number_of_series_does_not_grow_with_the_podlinks(scraped: Scraped) -> None:
    # What may come late is an outcome that an operation did not have before, by chance, and a cause of a sweep.
    late = ("podlink_redis_call_seconds", "podlink_sweep_seconds")
    few, many = (
        {(sample.name, *sorted(sample.labels.items())) for sample in each.series if not sample.name.startswith(late)}
        for each in (scraped.few, scraped.metrics)
    )
    reconciles = [
        sum(sample.value for sample in each.series if sample.name == "podlink_reconcile_seconds_count")
        for each in (scraped.few, scraped.metrics)
    ]
    assert reconciles[1] - reconciles[0] > MANY
    assert few == many
    assert len(scraped.metrics.series) < 1000
