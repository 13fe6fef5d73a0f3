"""What a whole run of a worker logs: one event a line, nothing for each job, and never what requests say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.support.processes import MLXQ, run
from tests.support.redis_at import redis_at
from tests.support.redis_fixture import MortalRedis

from mlxq.queue.client import Client
from mlxq.requests.openai import parse_object

PASSWORD = "canary-password"
PROMPT = "canary-prompt"
NUM_JOBS = 12

pytestmark = pytest.mark.slow


def lines() -> list[dict[str, object]]:
    """Requests that are answered, and some that are refused in each place that looks at them."""
    chat = {"messages": [{"role": "user", "content": f"What is the capital of France? {PROMPT}"}], "max_tokens": 4}
    refused = [
        {"messages": [{"role": "user", "content": PROMPT}], "logit_bias": {"99999999": 1}},
        {"prompt": f"{PROMPT} " * 2000, "max_tokens": 5},
        {"prompt": PROMPT, "structured_outputs": {"grammar": f"start: {PROMPT}("}},
        {"prompt": PROMPT, "structured_outputs": {"regex": f"({PROMPT}"}},
    ]
    return [{"id": f"r{number}", "user": PROMPT, **chat} for number in range(NUM_JOBS)] + [
        {"id": f"bad{number}", **body} for number, body in enumerate(refused)
    ]


def test_a_whole_run_logs_no_prompt_no_answer_and_no_password_and_nothing_for_each_job(
    mortal_redis: MortalRedis, tmp_path: Path
) -> None:
    with redis_at(mortal_redis.url) as connection:
        connection.config_set("requirepass", PASSWORD)
    url = mortal_redis.url.replace("unix://", f"unix://:{PASSWORD}@")
    with redis_at(url) as connection:
        batch = Client(connection).submit([parse_object(line, default_custom_id="none") for line in lines()])

        done = run(
            *MLXQ, "worker", "--model", "demo", "--burst", "--log-format", "json", "--log-level", "debug", MLXQ_URL=url
        )
        counts = batch.counts()

    assert (done.returncode, done.stdout) == (0, "")
    assert (counts.num_finished, counts.num_failed) == (NUM_JOBS, len(lines()) - NUM_JOBS)
    events = [json.loads(line) for line in done.stderr.splitlines()]
    assert len(events) < NUM_JOBS
    assert {"time", "level", "message"} <= set.intersection(*(set(event) for event in events))
    assert any(event.get("seconds") for event in events), "the loading of the model"
    assert any(event.get("num_ended") == len(lines()) for event in events), "the worker's end"
    for canary in (PASSWORD, PROMPT, "Paris"):
        assert canary not in done.stderr
