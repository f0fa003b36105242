"""The alerts, by promtool's own tests in alerts/: one file each, named after the alert.

They look at the series ALERTS, in which Prometheus keeps what fires, and so say nothing of the texts; those are
rendered and looked at here.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from deploy.monitoring import ALERTS, alert_queries, alerts, promtool, wrong_selections

if TYPE_CHECKING:
    from deploy.scraping import Scraped

TESTS = Path(__file__).with_name("alerts")
NAMES = sorted(alerts())

SEVERITIES = {"critical", "warning"}


def cases(name: str) -> list[dict[str, Any]]:
    """The test groups of an alert."""
    return yaml.safe_load((TESTS / f"{name}.yaml").read_text())["tests"]


def firing(name: str) -> str:
    return f'ALERTS{{alertname="{name}", alertstate="firing"}}'


def test_the_rules_are_clean() -> None:
    checked = promtool("check", "rules", "--lint=all", "--lint-fatal", ALERTS)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert f"{len(NAMES)} rules found" in checked.stdout


@pytest.mark.parametrize("name", NAMES)
def test_an_alert_fires_when_it_should_and_only_then(name: str) -> None:
    tested = promtool("test", "rules", TESTS / f"{name}.yaml")
    assert tested.returncode == 0, tested.stdout + tested.stderr


@pytest.mark.parametrize("name", NAMES)
def test_an_alert_is_seen_to_fire_and_seen_to_be_silent(name: str) -> None:
    """Once each at least; and silence counts only in a group of its own, where nothing fires at another moment."""
    groups = [[bool(look["exp_samples"]) for look in case["promql_expr_test"]] for case in cases(name)]
    assert any(map(any, groups))
    assert not all(map(any, groups))
    assert {look["expr"] for case in cases(name) for look in case["promql_expr_test"]} == {firing(name)}


def test_no_test_is_of_an_alert_that_is_gone() -> None:
    assert sorted(path.stem for path in TESTS.iterdir()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_an_alert_says_what_is_wrong_what_users_notice_and_what_to_do_first(name: str, tmp_path: Path) -> None:
    texts = rendered(name, tmp_path)
    assert texts, "no test in which it fires"
    for summary, description in texts:
        assert 20 < len(summary) <= 100, summary
        for part in ("Users: ", "First: ", f" Page Operate, {name}."):
            assert part in description
        for broken in ("{{", "}}", "<error", "<no value>", "  ", " .", " ,"):
            assert broken not in summary + description, (broken, summary, description)


def rendered(name: str, directory: Path) -> list[tuple[str, str]]:
    """Summary and description for each time that it fires in its tests: promtool shows those that are not expected."""
    groups = [
        {key: case[key] for key in ("interval", "input_series")}
        | {
            "alert_rule_test": [
                {"alertname": name, "eval_time": look["eval_time"], "exp_alerts": []}
                for look in case["promql_expr_test"]
            ]
        }
        for case in cases(name)
    ]
    file = directory / "texts.yaml"
    file.write_text(yaml.safe_dump({"rule_files": [str(ALERTS)], "evaluation_interval": "30s", "tests": groups}))
    shown = promtool("test", "rules", file)
    found = re.findall(r'Annotations:\{description="(.*)", summary="(.*)"\}', shown.stdout + shown.stderr)
    return [(summary.replace('\\"', '"'), description.replace('\\"', '"')) for description, summary in found]


@pytest.mark.parametrize("name", NAMES)
def test_an_alert_waits_and_has_a_severity(name: str) -> None:
    rule = alerts()[name]
    # What has happened is no less true after a wait.
    assert "for" in rule or "increase(" in rule["expr"]
    assert rule["labels"].keys() == {"severity"}
    assert rule["labels"]["severity"] in SEVERITIES
    assert rule["annotations"].keys() == {"summary", "description"}


def test_all_that_the_rules_select_is_what_an_operator_exposes(scraped: Scraped) -> None:
    assert wrong_selections(alert_queries(), scraped.metrics) == []


def test_a_prometheus_evaluates_the_rules_without_an_error(scraped: Scraped) -> None:
    (group,) = scraped.ask("rules")["groups"]
    assert {rule["name"]: (rule["health"], rule.get("lastError")) for rule in group["rules"]} == dict.fromkeys(
        NAMES, ("ok", None)
    )
