"""The poison corpus: a request that goes wrong ends in its own error, wherever it goes wrong, and the thirty-one that
share its batch get the answers that they get alone."""

from __future__ import annotations

import time
from typing import Any

import pytest
from redis import Redis
from tests.support import poisoned_model
from tests.support.engine_runs import run
from tests.support.poison import (
    MAX_BATCH_VARIABLE,
    UNENCODABLE_PROMPT,
    UNWRITABLE_ID,
    VOCAB_SIZE,
    WORDS,
    PoisonWorker,
    load_poisoned,
)
from tests.support.queued_jobs import events, fetch
from tests.support.supervised import command, variables
from tests.support.waiting import wait_until

from mlxq.queue.batch import Batch
from mlxq.queue.client import Client
from mlxq.requests.openai import parse_object, text_request
from mlxq_worker import exits
from mlxq_worker.config import EngineConfig, WorkerConfig
from mlxq_worker.supervision.dead_workers import DeadWorkers
from mlxq_worker.supervision.supervisor import Supervisor
from mlxq_worker.supervision.worker_process import WorkerProcess

WIDTH = 32
PLACE = 13
"""Of the culprit among the 32."""
MAX_TOKENS = 8
RETRIES = 3
"""What a job has to begin with."""
UNDECODABLE_ID = VOCAB_SIZE - len(WORDS)

pytestmark = pytest.mark.slow


def prompt_of(index: int) -> str:
    """All different, of several lengths, with no prefix that all share."""
    return "".join(chr(ord("a") + (index * 7 + i * i) % 26) for i in range(3 + index % 6))


INNOCENTS = {f"r{index}": prompt_of(index) for index in range(WIDTH) if index != PLACE}


@pytest.fixture(scope="module")
def texts_alone() -> dict[str, str]:
    """What each innocent's answer is if nobody is beside it."""
    backend = load_poisoned(1)
    engine = backend.new_engine()
    texts = {}
    for custom_id, prompt in INNOCENTS.items():
        request = text_request(prompt, custom_id=custom_id, defaults=body()).request
        [result] = run(engine, backend.preparer.prepare(request, custom_id)).results.values()
        texts[custom_id] = result.text
    engine.close()
    assert len(set(texts.values())) > WIDTH / 2, "answers that are all alike would prove nothing"
    return texts


def body(**fields: Any) -> dict[str, Any]:
    return {"max_tokens": MAX_TOKENS, "temperature": 0, **fields}


def submit(connection: Redis, culprit_id: str, prompt: str, **fields: Any) -> Batch:
    """The innocents with the culprit in the midst of them."""
    lines = [text_request(text, custom_id=custom_id, defaults=body()) for custom_id, text in INNOCENTS.items()]
    wicked = {"custom_id": culprit_id, "url": "/v1/completions", "body": {"prompt": prompt, **body(**fields)}}
    lines.insert(PLACE, parse_object(wicked, default_custom_id="none"))
    return Client(connection).submit(lines)


def work(connection: Redis) -> int:
    """Run a worker until it ends; its exit code."""
    config = WorkerConfig(model="poison", engine=EngineConfig(max_num_seqs=WIDTH))
    worker = PoisonWorker(["mlxq"], connection=connection, serializer="json", config=config)
    worker.work(burst=True)
    return worker.exit_code


def code_of(line: dict[str, Any]) -> str:
    error = line["error"] or line["response"]["body"]["error"]
    return str(error["code"])


def check(connection: Redis, batch: Batch, culprit_id: str, code: str, texts: dict[str, str]) -> None:
    answers = {answer.custom_id: answer for answer in batch.as_completed()}
    failed = {name: code_of(answer.line) for name, answer in answers.items() if answer.status != "finished"}

    assert failed == {culprit_id: code}
    got = {
        name: answer.line["response"]["body"]["choices"][0]["text"]
        for name, answer in answers.items()
        if name not in failed
    }
    assert got == texts
    assert sorted(events(connection, batch).values()) == [1] * WIDTH
    assert {fetch(connection, batch.job_id(name)).retries_left for name in texts} == {RETRIES}


def submit_innocents(connection: Redis) -> Batch:
    lines = [text_request(text, custom_id=custom_id, defaults=body()) for custom_id, text in INNOCENTS.items()]
    return Client(connection).submit(lines)


def texts_of(batch: Batch) -> dict[str, str]:
    lines = {answer.custom_id: answer.line for answer in batch.as_completed()}
    return {name: line["response"]["body"]["choices"][0]["text"] for name, line in lines.items()}


def assert_without_strikes(connection: Redis, batch: Batch) -> None:
    ids = [batch.job_id(name) for name in INNOCENTS]
    assert {connection.hget(f"rq:job:{job_id}", "mlxq_strikes") for job_id in ids} == {None}
    assert {fetch(connection, job_id).retries_left for job_id in ids} == {RETRIES}


@pytest.mark.parametrize(
    ("culprit_id", "prompt", "fields", "code"),
    [
        ("sampler", "abc", {"temperature": 1.0, "seed": 666}, "engine_error"),
        ("forward", "ab<boom>", {}, "engine_error"),
        ("nan", "ab<nan>", {}, "nan_logits"),
        ("huge", "ab<huge>c", {}, "out_of_memory"),
        ("encode", f"ab{UNENCODABLE_PROMPT}", {}, "internal_error"),
        ("decode", "abc", {"allowed_token_ids": [UNDECODABLE_ID]}, "engine_error"),
        (UNWRITABLE_ID, "abc", {}, "internal_error"),
    ],
    ids=[
        "a sampler that raises",
        "a model that raises",
        "a model that gives NaN",
        "memory that is never enough",
        "a tokenizer that can't encode",
        "a tokenizer that can't decode",
        "an answer that can't be written as JSON",
    ],
)
def test_a_culprit_ends_in_its_own_error_and_its_neighbours_as_if_it_were_not_there(
    connection: Redis, texts_alone: dict[str, str], culprit_id: str, prompt: str, fields: dict[str, Any], code: str
) -> None:
    batch = submit(connection, culprit_id, prompt, **fields)

    work(connection)

    check(connection, batch, culprit_id, code, texts_alone)


def test_memory_that_is_short_for_all_makes_the_batch_narrower_and_costs_nobody_a_strike(
    connection: Redis, texts_alone: dict[str, str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # given a model that has memory for ten tokens at once
    monkeypatch.setenv(MAX_BATCH_VARIABLE, "10")
    batch = submit_innocents(connection)

    work(connection)

    assert texts_of(batch) == texts_alone
    assert "Memory ran out" in caplog.text
    assert_without_strikes(connection, batch)


def test_a_process_without_handles_for_buffers_is_no_requests_fault_and_a_fresh_one_answers_them_all(
    connection: Redis, texts_alone: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a process that has leaked them
    batch = submit_innocents(connection)
    with monkeypatch.context() as leaking:
        leaking.setenv(MAX_BATCH_VARIABLE, "10")
        leaking.setattr(poisoned_model, "OUT_OF_MEMORY", "[metal::malloc] Resource limit (499000) exceeded.")

        # when
        assert work(connection) == exits.START_AGAIN

    # then
    assert batch.counts().num_ended == 0
    assert {fetch(connection, batch.job_id(name)).get_status().value for name in INNOCENTS} == {"queued"}
    assert_without_strikes(connection, batch)
    assert work(connection) == exits.DONE
    assert texts_of(batch) == texts_alone
    assert_without_strikes(connection, batch)


def test_a_prompt_that_kills_the_process_ends_as_worker_crashed(
    connection: Redis, redis_url: str, texts_alone: dict[str, str]
) -> None:
    batch = submit(connection, "killer", "ab<die>")
    dead_workers = DeadWorkers(connection, ["mlxq"])
    settings = variables(MLXQ_URL=redis_url, MLXQ_MODEL="poison", MLXQ_MAX_NUM_SEQS=str(WIDTH))

    with WorkerProcess(
        command(PoisonWorker), settings, verbose=True, tell=print, on_end=dead_workers.release
    ) as process:
        supervisor = Supervisor(process, dead_workers, grace_s=5)

        def all_ended() -> bool:
            supervisor.turn(time.monotonic())
            return batch.counts().num_ended == WIDTH

        wait_until(all_ended, "all answers")

    check(connection, batch, "killer", "worker_crashed", texts_alone)
