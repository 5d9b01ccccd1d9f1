"""The dashboard of Grafana, and the requests that Grafana makes of its queries to Prometheus."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from kit.environment import ROOT

FILE = ROOT / "dashboards" / "grafana.json"
ALL = "$__all"
#: What a variable of the dashboard has selected: one value, or several.
Selected = str | Sequence[str]

_VARIABLE = re.compile(r"\$\{(\w+)\}|\$(\w+)")
_SPECIAL = re.compile(r"[$^*{}\[\]'+?.()|]")


def dashboard() -> dict[str, Any]:
    """Return the dashboard."""
    read: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return read


def variables() -> dict[str, dict[str, Any]]:
    """Return the variables of the dashboard by name."""
    return {variable["name"]: variable for variable in dashboard()["templating"]["list"]}


def panels() -> dict[str, dict[str, Any]]:
    """Return the panels of the dashboard by title."""
    return {panel["title"]: panel for panel in dashboard()["panels"]}


def query_of(title: str) -> str:
    """Return the query of a panel, with its variables."""
    (target,) = panels()[title]["targets"]
    return str(target["expr"])


def defaults() -> dict[str, Selected]:
    """Return what is selected in each variable when the dashboard is opened."""
    return {name: variable["current"]["value"] for name, variable in variables().items() if variable["current"]}


def escaped(value: str) -> str:
    """Return *value* as Grafana writes it into a string of PromQL that is a regular expression."""
    return _SPECIAL.sub(r"\\\\\g<0>", value.replace("\\", "\\\\\\\\"))


def substituted(query: str, selected: Mapping[str, Selected], scrape_s: float, step_s: float) -> str:
    """
    Return *query* as Grafana's data source for Prometheus sends it; KeyError if it names an unknown variable.

    Args:
        selected: What each variable has selected.
        scrape_s: ``timeInterval`` of the data source.
        step_s: The step of the panel, which depends on its width, its time range and *scrape_s*.
    """
    known = variables()

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if name == "__interval":
            return f"{step_s:g}s"
        if name == "__rate_interval":
            return f"{max(step_s + scrape_s, 4 * scrape_s):g}s"
        variable, chosen = known[name], selected[name]
        if ALL in chosen:
            return str(variable["allValue"])
        if not variable.get("multi"):
            return str(chosen)
        texts = [escaped(one) for one in ([chosen] if isinstance(chosen, str) else chosen)]
        return texts[0] if len(texts) == 1 else f"({'|'.join(texts)})"

    return _VARIABLE.sub(value, query)
