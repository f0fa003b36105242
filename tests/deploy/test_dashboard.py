"""The dashboard: what it asks is what an operator exposes, and it is laid out as Grafana expects."""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from deploy.monitoring import VARIABLES, dashboard, dashboard_queries, promtool, wrong_selections

if TYPE_CHECKING:
    from pathlib import Path

    from deploy.scraping import Scraped

PANELS = [panel for panel in dashboard()["panels"] if panel["type"] != "row"]
COLUMNS = 24

UNITS = {"none", "short", "s", "ops", "bytes", "suffix: periods ago"}


def titles(panels: list[dict[str, Any]]) -> list[str]:
    return [panel["title"] for panel in panels]


each_panel = pytest.mark.parametrize("panel", PANELS, ids=titles(PANELS))


def test_promtool_parses_every_query(tmp_path: Path) -> None:
    queries = dashboard_queries()
    rules = [{"record": f"query:{number}", "expr": query.expr} for number, query in enumerate(queries)]
    file = tmp_path / "queries.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    checked = promtool("check", "rules", file)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert f"{len(queries)} rules found" in checked.stdout


def test_all_that_it_selects_is_what_an_operator_exposes(scraped: Scraped) -> None:
    assert wrong_selections(dashboard_queries(), scraped.metrics) == []


def test_all_that_an_operator_exposes_is_shown(scraped: Scraped) -> None:
    shown = set().union(*(query.names() for query in dashboard_queries()))
    unseen = {
        family
        for family in scraped.metrics.families
        if family.startswith("podlink_") and not scraped.metrics.names_of(family) & shown
    }
    assert unseen == set()


def test_a_prometheus_answers_every_query_with_data(scraped: Scraped) -> None:
    assert [query for query in dashboard_queries() if not scraped.select(query.expr)] == []


def test_every_query_keeps_to_the_chosen_releases() -> None:
    chosen = r'\w+\{namespace=~"\$namespace", job=~"\$job"[,}]'
    for panel in PANELS:
        for target in panel["targets"]:
            expr = target["expr"]
            assert len(re.findall(chosen, expr)) == len(re.findall(r"\b(?:podlink|process)_\w+", expr)), expr


def test_its_variables_choose_data_source_namespace_and_job(scraped: Scraped) -> None:
    variables = {each["name"]: each for each in dashboard()["templating"]["list"]}
    assert list(variables) == ["datasource", "namespace", "job"]
    assert {f"${name}" for name in variables} - {"$datasource"} < VARIABLES.keys()
    for name, value in (("namespace", "podlink-system"), ("job", "podlink")):
        series, label = re.fullmatch(r"label_values\((.+), (\w+)\)", variables[name]["query"]["query"]).groups()
        assert label == name
        (found,) = scraped.select(series.replace("$namespace", ".+"))
        assert found["metric"][label] == value


@each_panel
def test_a_panel_is_complete(panel: dict[str, Any]) -> None:
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    assert len(panel["description"]) > 20
    assert panel["description"].endswith(".")
    unit = panel["options"]["yAxis"]["unit"] if panel["type"] == "heatmap" else panel["fieldConfig"]["defaults"]["unit"]
    assert unit in UNITS
    assert panel["targets"]
    assert all(target["legendFormat"] for target in panel["targets"])


def test_ids_and_titles_are_unique() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(set(titles(panels))) == len(panels)


def test_panels_fill_the_width_and_do_not_overlap() -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in dashboard()["panels"]:
        place = panel["gridPos"]
        across = range(place["x"], place["x"] + place["w"])
        down = range(place["y"], place["y"] + place["h"])
        for cell in itertools.product(across, down):
            assert cell not in taken, (panel["title"], taken[cell])
            taken[cell] = panel["title"]
    assert {x for x, _ in taken} == set(range(COLUMNS))
    assert len(taken) == COLUMNS * (1 + max(y for _, y in taken)), "a gap"


def test_every_row_has_panels() -> None:
    kinds = [panel["type"] == "row" for panel in dashboard()["panels"]]
    assert not any(first and second for first, second in itertools.pairwise([*kinds, True]))


def test_a_grafana_takes_it_for_a_new_one() -> None:
    assert "id" not in dashboard(), "a number that a Grafana gave it"
