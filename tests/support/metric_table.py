"""The tables of docs/metrics.md, made from those of the code; ``python -m tests.support.metric_table`` writes them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from mlxq.metrics.metric import Metric
from mlxq.metrics.queue_table import QUEUE_METRICS
from mlxq.metrics.serve_table import SERVE_METRICS
from mlxq_worker.metrics.table import ENGINE_METRICS, JOB_METRICS, SUPERVISOR_METRICS, WORKER_METRICS

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "metrics.md"
ALERTS = ROOT / "deploy" / "prometheus" / "alerts.yml"
PARTS = {
    "The engine": ENGINE_METRICS,
    "Requests and jobs": JOB_METRICS,
    "The process": SUPERVISOR_METRICS,
    "The queues": QUEUE_METRICS,
    "The Batch API": SERVE_METRICS,
}
"""By the heading that each stands under."""
ALL_METRICS = (*WORKER_METRICS, *QUEUE_METRICS, *SERVE_METRICS)


def markdown(metrics: Sequence[Metric]) -> str:
    """One line for each metric."""
    return "\n".join(["| Metric | Kind | Labels | What it says |", "|---|---|---|---|", *map(_line, metrics)])


def alerts() -> list[dict[str, Any]]:
    """The rules in deploy/."""
    [group] = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"]
    return list(group["rules"])


def alerts_markdown() -> str:
    """One line for each alert."""
    lines = ["| Alert | What it means | What to do |", "|---|---|---|"]
    for alert in alerts():
        about = alert["annotations"]
        lines.append(
            f"| `{alert['alert']}` ({alert['labels']['severity']}) | {about['summary']} | {about['description']} |"
        )
    return "\n".join(lines)


def semconv_markdown() -> str:
    """One line for each metric that OpenTelemetry has, too."""
    lines = [f"| `{metric.full_name}` | `{metric.semconv}` |" for metric in ALL_METRICS if metric.semconv]
    return "\n".join(["| Here | There |", "|---|---|", *lines])


def written(text: str) -> str:
    """The document with its tables as they should be."""
    for heading, metrics in PARTS.items():
        text = _replaced(text, heading, markdown(metrics))
    text = _replaced(text, "Alerts", alerts_markdown())
    return _replaced(text, "In OpenTelemetry's words", semconv_markdown())


def _replaced(text: str, heading: str, table: str) -> str:
    """With this as the first table under that heading."""
    return re.sub(
        rf"(^## {re.escape(heading)}\n(?:[^|#\n].*\n|\n)*)(?:\|.*\n)+",
        lambda found: f"{found[1]}{table}\n",
        text,
        count=1,
        flags=re.MULTILINE,
    )


def _line(metric: Metric) -> str:
    labels = ", ".join(f"`{label}`" for label in metric.labels)
    return f"| `{metric.full_name}` | {metric.kind} | {labels} | {metric.help} |"


if __name__ == "__main__":
    DOCUMENT.write_text(written(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
