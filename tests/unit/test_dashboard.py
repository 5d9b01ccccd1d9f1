"""The dashboard of Grafana as a file: it can be imported anywhere, and its five panels are those of the documents."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from kit.environment import ROOT
from kit.grafana import FILE, dashboard, defaults, escaped, panels, substituted, variables
from kit.prometheus_page import FAMILIES

PANELS = {
    "Cost over time": "timeseries",
    "Latency heatmap": "heatmap",
    "Model usage breakdown": "timeseries",
    "Quality score over time": "timeseries",
    "Alert history": "table",
}


def queries() -> list[str]:
    found = [target["expr"] for panel in panels().values() for target in panel["targets"]]
    return found + [one["definition"] for one in variables().values() if one["type"] == "query"]


def data_sources(part: Any) -> list[Any]:
    """Return every ``datasource`` within *part*."""
    if isinstance(part, list):
        return [found for one in part for found in data_sources(one)]
    if not isinstance(part, dict):
        return []
    own = [part["datasource"]] if "datasource" in part else []
    return own + [found for key, one in part.items() if key != "datasource" for found in data_sources(one)]


def test_the_dashboard_has_the_five_documented_panels() -> None:
    assert {title: panel["type"] for title, panel in panels().items()} == PANELS
    assert len(dashboard()["panels"]) == 5


def test_the_dashboard_can_be_imported_into_grafana_10_and_later() -> None:
    """Schema 38 is that of Grafana 10.0; later ones convert it. An id would be that of one database."""
    read = dashboard()
    assert read["schemaVersion"] == 38
    assert (read["uid"], read["title"], read["id"]) == ("tokentrace", "tokentrace", None)
    assert "__inputs" not in read


def test_every_query_goes_to_the_data_source_that_the_reader_chooses() -> None:
    chosen = {"type": "prometheus", "uid": "${datasource}"}
    found = data_sources(dashboard())
    assert len(found) >= 2 * len(PANELS) + 3
    assert [one for one in found if one != chosen] == []
    assert variables()["datasource"]["type"] == "datasource"
    assert variables()["datasource"]["query"] == "prometheus"


def test_the_dashboard_names_no_host() -> None:
    assert re.findall(r"\w+://|localhost|\d+\.\d+\.\d+\.\d+", FILE.read_text(encoding="utf-8")) == []


def test_panels_have_units_a_description_and_do_not_overlap() -> None:
    cells: set[tuple[int, int]] = set()
    for title, panel in panels().items():
        assert panel["fieldConfig"]["defaults"]["unit"], title
        assert len(panel["description"]) > 30, title
        place = panel["gridPos"]
        own = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert place["x"] + place["w"] <= 24, title
        assert not own & cells, title
        cells |= own
    assert len({panel["id"] for panel in panels().values()}) == len(PANELS)
    assert panels()["Latency heatmap"]["options"]["yAxis"]["unit"] == "ms"


def test_the_quality_panel_draws_a_line_at_three_quarters() -> None:
    field = panels()["Quality score over time"]["fieldConfig"]["defaults"]
    assert field["custom"]["thresholdsStyle"]["mode"] == "line"
    assert [step["value"] for step in field["thresholds"]["steps"]] == [None, 0.75]


def test_every_query_names_series_of_the_api_and_labels_that_they_have() -> None:
    for query in queries():
        names = re.findall(r"tokentrace_\w+", query)
        assert names, query
        for name in names:
            assert re.sub("_bucket$", "", name) in FAMILIES, query
        for name, matchers in re.findall(r"(tokentrace_\w+)\{([^}]*)\}", query):
            labels = set(re.findall(r"(\w+)=~", matchers))
            assert labels, query
            assert labels <= FAMILIES[re.sub("_bucket$", "", name)][1], query


def test_every_variable_is_used_and_every_used_one_exists() -> None:
    text = " ".join(query for query in queries())
    for name in variables():
        assert f"${name}" in text or name == "datasource", name
    for query in queries():
        # A KeyError names a variable that the dashboard lacks.
        assert "$" not in substituted(query, defaults(), 15, 15), query


def test_selected_values_are_written_as_grafana_writes_them() -> None:
    """A dot is escaped twice: once for the regular expression, once for the string of PromQL."""
    assert escaped("gpt-4.1") == r"gpt-4\\.1"
    assert escaped("a\\b") == r"a\\\\b"
    query = 'x{model=~"$model"}[$window] offset $__interval [$__rate_interval]'
    one = substituted(query, {**defaults(), "model": ["gpt-4.1"]}, 15, 60)
    assert one == r'x{model=~"gpt-4\\.1"}[5m] offset 60s [75s]'
    both = substituted('x{model=~"${model}"}', {**defaults(), "model": ["a", "b|c"]}, 15, 60)
    assert both == r'x{model=~"(a|b\\|c)"}'
    assert substituted('x{model=~"$model"}', defaults(), 15, 60) == 'x{model=~".*"}'


def test_grafana_and_prometheus_agree_on_the_scrape_interval_and_the_data_source() -> None:
    sources = yaml.safe_load((ROOT / "deploy/grafana/provisioning/datasources/prometheus.yaml").read_text())
    (source,) = sources["datasources"]
    scraping = yaml.safe_load((ROOT / "deploy/prometheus.yml").read_text())
    assert source["jsonData"]["timeInterval"] == scraping["global"]["scrape_interval"] == "15s"
    assert (source["type"], source["isDefault"]) == ("prometheus", True)
    # A folder in which the file is mounted.
    (provider,) = yaml.safe_load((ROOT / "deploy/grafana/provisioning/dashboards/tokentrace.yaml").read_text())[
        "providers"
    ]
    mounts = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]["grafana"]["volumes"]
    assert f"./dashboards/grafana.json:{provider['options']['path']}/tokentrace.json:ro" in mounts


@pytest.mark.parametrize("name", ["model", "provider", "caller"])
def test_filters_show_all_when_the_dashboard_is_opened(name: str) -> None:
    variable = variables()[name]
    assert variable["multi"]
    assert variable["includeAll"]
    assert variable["current"]["value"] == ["$__all"]
    assert variable["query"]["query"] == variable["definition"]
