"""What the rules and the dashboard ask of Prometheus, taken apart, and what an operator's /metrics has to offer.

Promtool parses queries and judges their syntax; which series they select, it does not tell. Rules and dashboard write
selectors plainly enough (a name, matchers in braces) for a regular expression to find them.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from sandbox.cluster import CHART

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

ALERTS = CHART / "files" / "alerts.yaml"
DASHBOARD = CHART / "files" / "dashboard.json"

TARGET_LABELS = frozenset({"namespace", "job", "pod", "instance"})
"""What Prometheus adds to the series of a scrape: a ServiceMonitor's labels."""

VARIABLES = {"$namespace": ".+", "$job": ".+", "$__rate_interval": "1m"}
"""What Grafana would put into a query."""

_SELECTOR = re.compile(r"\b((?:podlink|process)_\w+)(?:\{([^}]*)\})?")
_MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"')
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
_LEGEND_LABEL = re.compile(r"\{\{\s*(\w+)\s*\}\}")


class Matcher(NamedTuple):
    """One condition on a label."""

    label: str
    operator: str
    value: str


class Query(NamedTuple):
    """One expression, and where it stands, for the message of a test."""

    place: str
    expr: str
    legend: str = ""

    def selectors(self) -> Iterator[tuple[str, list[Matcher]]]:
        """The names of series, each with its matchers."""
        for name, braces in _SELECTOR.findall(self.expr):
            yield name, [Matcher(*found) for found in _MATCHER.findall(braces)]

    def names(self) -> set[str]:
        """The names of series that it selects."""
        return {name for name, _ in self.selectors()}

    def labels(self) -> set[str]:
        """The labels that it groups by or shows in the legend."""
        grouped = {label.strip() for inside in _GROUPING.findall(self.expr) for label in inside.split(",")}
        return {label for label in grouped | set(_LEGEND_LABEL.findall(self.legend)) if label}


class Exposed:
    """The text of /metrics."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.families = {family.name: family for family in text_string_to_metric_families(text)}
        self.series = [sample for family in self.families.values() for sample in family.samples]

    def of(self, name: str) -> list[dict[str, str]]:
        """The labels of every series of that name."""
        return [sample.labels for sample in self.series if sample.name == name]

    def names_of(self, family: str) -> set[str]:
        """The names of a family's series."""
        return {sample.name for sample in self.families[family].samples}


def alerts() -> dict[str, dict[str, Any]]:
    """The alerting rules by name."""
    (group,) = yaml.safe_load(ALERTS.read_text())["groups"]
    return {rule["alert"]: rule for rule in group["rules"]}


def alert_queries() -> list[Query]:
    return [Query(name, rule["expr"]) for name, rule in alerts().items()]


def dashboard() -> dict[str, Any]:
    return json.loads(DASHBOARD.read_text())


def dashboard_queries() -> list[Query]:
    """Every query of every panel, as Grafana would send it."""
    return [
        Query(f"{panel['title']} {target['refId']}", filled_in(target["expr"]), target["legendFormat"])
        for panel in dashboard()["panels"]
        for target in panel.get("targets", ())
    ]


def filled_in(expr: str) -> str:
    """An expression with the variables of the dashboard replaced."""
    for variable, value in VARIABLES.items():
        expr = expr.replace(variable, value)
    assert "$" not in expr, f"a variable that the tests do not know: {expr}"
    return expr


def wrong_selections(queries: Iterable[Query], exposed: Exposed) -> list[str]:
    """What queries select, compare or group by that the operator does not have; a sentence each."""
    return [problem for query in queries for problem in _wrong_selections(query, exposed)]


def _wrong_selections(query: Query, exposed: Exposed) -> Iterator[str]:
    known = set(TARGET_LABELS)
    for name, matchers in query.selectors():
        series = exposed.of(name)
        if not series:
            yield f"{query.place}: no series {name}"
        known |= {label for labels in series for label in labels}
        for label, operator, value in matchers:
            if label in TARGET_LABELS:
                continue
            values = {labels[label] for labels in series if label in labels}
            wanted = set(value.split("|")) if operator.endswith("~") else {value}
            if not values or not wanted <= values:
                yield f"{query.place}: {name} has no {label}={value!r}, but {sorted(values)}"
    if query.labels() - known:
        yield f"{query.place}: no series has a label {', '.join(sorted(query.labels() - known))}"


def promtool(*words: object, given: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run promtool; skips the test where there is none."""
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("no promtool on PATH; Debian's package prometheus, or Prometheus itself, would un-skip it")
    return subprocess.run(
        [program, *map(str, words)], input=given, capture_output=True, text=True, timeout=60, check=False
    )
