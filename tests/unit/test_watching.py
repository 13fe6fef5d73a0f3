"""Alerts and the dashboard ask for what there is: every metric and label in their queries stands in the tables."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support.metric_table import ALERTS, ALL_METRICS, alerts

from mlxq_worker.metrics.table import WORKER_METRICS

ROOT = Path(__file__).parents[2]
DASHBOARD: dict[str, Any] = json.loads((ROOT / "deploy" / "grafana" / "mlxq.json").read_text(encoding="utf-8"))
TESTS: dict[str, Any] = yaml.safe_load((ROOT / "tests" / "alerts" / "alerts_test.yml").read_text(encoding="utf-8"))
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = [target["expr"] for panel in PANELS for target in panel["targets"]]

LABELS = {
    metric.full_name: {*metric.labels, "instance", "job", *({"model_name"} if metric in WORKER_METRICS else ())}
    for metric in ALL_METRICS
}
"""Of each metric, with those that Prometheus adds."""
HISTOGRAMS = {metric.full_name for metric in ALL_METRICS if metric.kind == "histogram"}
OF_PROMETHEUS = {"up": {"instance", "job"}}


def faults(query: str) -> list[str]:
    """What a query asks for and there isn't."""
    found = []
    known = LABELS | OF_PROMETHEUS
    series = re.findall(r"\b(mlxq_\w+|up)\b(?:\{([^}]*)\})?", query)
    for name, matchers in series:
        metric = re.sub(r"_(bucket|sum|count)$", "", name) if name not in known else name
        if metric not in known or (metric in HISTOGRAMS) != (metric != name):
            found.append(f"there is no {name}")
            continue
        asked = set(re.findall(r"(\w+)\s*=?[=~!]", matchers))
        found += [f"{name} has no label {label}" for label in sorted(asked - known[metric])]
    allowed = {"le"}.union(*(known[re.sub(r"_bucket$", "", name)] for name, _ in series if not found))
    grouped = {label for labels in re.findall(r"\b(?:by|on) \(([^)]*)\)", query) for label in labels.split(", ")}
    if not found:
        found += [f"nothing has the label {label}" for label in sorted(grouped - allowed)]
    return found if series else ["it asks for nothing"]


@pytest.mark.parametrize("query", QUERIES)
def test_every_query_of_the_dashboard_asks_for_what_there_is(query: str) -> None:
    assert faults(query) == []


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: alert["alert"])
def test_every_alert_asks_for_what_there_is_and_says_what_to_do(alert: dict[str, Any]) -> None:
    assert faults(alert["expr"]) == []
    assert alert["labels"]["severity"] in ("page", "ticket")
    assert all(alert["annotations"][name].endswith(".") for name in ("summary", "description"))


def test_every_alert_fires_once_in_promtools_tests_and_is_silent_before() -> None:
    tried = [(test["name"], test["alert_rule_test"]) for test in TESTS["tests"]]

    assert {name for name, _ in tried} == {alert["alert"] for alert in alerts()}
    for name, checks in tried:
        fired = [bool(check["exp_alerts"]) for check in checks if check["alertname"] == name]
        others = [bool(check["exp_alerts"]) for check in checks if check["alertname"] != name]
        assert (fired, any(others)) == ([False, True], False), name
    assert (ROOT / "tests" / "alerts" / TESTS["rule_files"][0]).resolve() == ALERTS


def test_every_metric_but_those_that_say_the_same_otherwise_is_on_the_dashboard() -> None:
    shown = {name for query in QUERIES for name in re.findall(r"mlxq_\w+", query)}
    shown |= {re.sub(r"_bucket$", "", name) for name in shown}

    assert {metric.full_name for metric in ALL_METRICS} - shown == {"mlxq_rows_computed_total"}


def test_the_dashboard_is_one_that_grafana_imports() -> None:
    assert {"title", "uid", "panels", "templating", "schemaVersion"} <= set(DASHBOARD)
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD["panels"]))) - {"__rate_interval"}
    assert used == variables


@pytest.mark.parametrize(
    "query",
    [
        "mlxq_no_such_metric",
        'mlxq_job_count{model_name="m"}',
        "sum by (token) (rate(mlxq_stop_total[5m]))",
        "rate(mlxq_step_duration_seconds[5m])",
        "vector(1)",
    ],
)
def test_a_query_for_what_there_isnt_would_be_seen(query: str) -> None:
    assert faults(query)
