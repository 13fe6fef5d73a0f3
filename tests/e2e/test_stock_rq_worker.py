"""Stock ``rq worker`` with our class and the real model: the variables configure it, RQ's own API has the answers."""

from __future__ import annotations

import pytest
from redis import Redis
from tests.support.batch_files import choice, demo_examples, requests, text_of
from tests.support.processes import RQ, run
from tests.support.queued_jobs import fetch, queue_of

from mlxq.queue.client import Client
from mlxq.requests.openai import parse_object


@pytest.mark.slow
def test_stock_rq_worker_answers_what_is_queued_and_ends(connection: Redis, redis_url: str) -> None:
    examples = demo_examples(8)
    lines = [parse_object(line, default_custom_id="none") for line in requests(examples)]
    batch = Client(connection).submit(lines)
    options = ("-w", "mlxq_worker.BatchWorker", "--serializer", "json", "--burst", "mlxq")

    done = run(*RQ, "worker", "-u", redis_url, *options, MLXQ_MODEL="demo", MLXQ_MAX_NUM_SEQS="4")

    assert done.returncode == 0, done.stderr
    assert batch.counts().num_finished == len(examples)
    assert queue_of(connection).finished_job_registry.count == len(examples)
    for custom_id, example in examples.items():
        line = fetch(connection, batch.job_id(custom_id)).return_value()
        assert line is not None
        assert line["custom_id"] == custom_id
        assert text_of(line) == example.expected_text
        assert choice(line)["stop_details"]["token"] == example.expected_end_token
