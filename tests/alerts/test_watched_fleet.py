"""A real Prometheus over a real fleet: the dashboard's queries find data, and the alerts can be evaluated."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from redis import Redis
from tests.support.documents import ROOT
from tests.support.served import begun, chat_line, ended, openai_client, service
from tests.support.waiting import wait_until
from tests.support.watched_fleet import Prometheus, another_model, prometheus, queue_metrics, workers

from mlxq.queue import rq_keys
from mlxq.queue.batch import Batch
from mlxq.queue.client import Client
from mlxq.requests.openai import text_request

DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "mlxq.json").read_text(encoding="utf-8"))
QUERIES = [(panel["title"], target["expr"]) for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]
"""With the title of the panel that asks."""
ALERTS = [
    rule["alert"]
    for group in yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yml").read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
]


def asked(query: str) -> str:
    """As Grafana asks it, with everything chosen."""
    query = query.replace("$model_name", ".*").replace("$queue", ".*").replace("$__rate_interval", "5m")
    assert "$" not in query
    return query


def has_data(watcher: Prometheus, query: str) -> bool:
    """A ratio of nothing to nothing, or the median of no values, isn't any."""
    return any(not math.isnan(value) for value in watcher.values(asked(query)))


def without_data(watcher: Prometheus, queries: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Leaves those that still find nothing."""
    queries.difference_update([each for each in queries if has_data(watcher, each[1])])
    return queries


def submit(connection: Redis, queue: str, *prompts: str, **body: Any) -> Batch:
    lines = [text_request(prompt, custom_id=f"r{i}", defaults=body) for i, prompt in enumerate(prompts)]
    return Client(connection, queue=queue).submit(lines)


@pytest.mark.timeout(600)
def test_every_panel_has_data_and_every_alert_is_evaluated(redis_url: str, connection: Redis, tmp_path: Path) -> None:
    served = [("demo", "mlxq"), ("demo", "mlxq"), (str(another_model(tmp_path / "another")), "other")]
    with (
        workers(redis_url, served) as (first, second, third),
        queue_metrics(redis_url) as queues,
        service(redis_url, tmp_path / "data") as api,
        prometheus(
            tmp_path,
            {
                "mlxq": [first.address, second.address, third.address],
                "mlxq-queues": [queues],
                "mlxq-serve": [api.removeprefix("http://")],
            },
        ) as watcher,
    ):
        # A producer has both queues work, one request fails, one batch is cancelled.
        shared = "You count. " * 20
        answered = submit(connection, "mlxq", *(f"{shared}Count from {n} to 9:" for n in range(8)), max_tokens=24)
        other = submit(connection, "other", "anything", "anything else", max_tokens=5)
        submit(connection, "mlxq", "too long", max_tokens=10_000_000, ignore_eos=True)
        client = openai_client(api)
        of_service = begun(client, [chat_line("c", "What is the capital of France?")])
        assert ended(client, of_service.id).status == "completed"
        answered.wait()
        other.wait()

        # One worker's process is killed with jobs in hand, which are tried again, and cancelled.
        endless = submit(connection, "other", *["on and on"] * 200, max_tokens=1900, ignore_eos=True)
        wait_until(lambda: connection.zcard(rq_keys.leases("other")), "the third worker to have jobs")
        third.kill_the_one_with_the_model()
        died = f'mlxq_job_retries_total{{instance="{third.address}",reason="worker_died"}} > 0'
        wait_until(lambda: watcher.values(died), "its jobs to be tried again")
        endless.cancel()

        missing = set(QUERIES)
        try:
            wait_until(lambda: not without_data(watcher, missing), "data for every query")
        finally:
            print(f"without data: {missing}")

        # What nobody can scrape any more is an alert in the making; all the others could be evaluated, too.
        second.end()
        gone = f'up{{instance="{second.address}"}} == 0'
        wait_until(lambda: watcher.values(gone), "the second worker to be gone")
        wait_until(lambda: "MlxqScrapeFails" in raised(watcher), "an alert that it is")
        rules = watcher.rules()

    assert len(QUERIES) > 50
    assert {rule["health"] for rule in rules} == {"ok"}
    assert sorted(rule["name"] for rule in rules) == sorted(ALERTS)
    assert other.counts().num_ended == 2


def raised(watcher: Prometheus) -> set[str]:
    """The alerts that have a reason now, whether they have lasted long enough or not."""
    return {rule["name"] for rule in watcher.rules() if rule["state"] != "inactive"}
