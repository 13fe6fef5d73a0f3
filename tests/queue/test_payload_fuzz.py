"""Whatever lies under a job's keys, the worker goes on: that job fails or is gone, and its neighbours are answered.

Thousands of jobs are damaged by a seeded mixture of what RQ's own mistakes, other people's tools and an attacker with
access to Redis may leave there, and go through a whole `BatchWorker`.
"""

from __future__ import annotations

import json
import pickle
import random
import zlib
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import ResponseError
from tests.support.fake_engine import FakeWorker
from tests.support.queued_jobs import answer, status
from tests.support.thorough import sample_of

from mlxq import keys
from mlxq.queue.batch import Batch
from mlxq.queue.client import Client
from mlxq.requests.fields import FIELDS
from mlxq.requests.openai import text_request
from mlxq_worker.config import EngineConfig, WorkerConfig

pytestmark = [pytest.mark.slow, pytest.mark.thorough]

NUM_DAMAGED = sample_of(5000, 1000)
NUM_AT_ONCE = sample_of(1400, 600)
NEIGHBOUR_EVERY = 10

Dice = random.Random
Damage = Callable[[Redis, str, Dice], None]


class Bomb:
    """Ends whoever unpickles it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("import os; os._exit(13)",))


def call(line: Any, function: Any = keys.FUNCTION_NAME) -> list[Any]:
    """A job's data as RQ has it: the function, the instance, the arguments."""
    return [function, None, [line], {}]


def weird(dice: Dice) -> Any:
    """A value that no field is meant to have; never one that only means much work."""
    return dice.choice(
        [
            *(10**400, -(10**30), -1, 1e308, -0.0, True, "", [], {}, [[]], {"": None}),
            *("\ud800", "\x00", "é" * 1000, "x" * 10_000, [0] * 100, {"a": {"b": [1, {}]}}),
            nested(dice.choice([90, 101, 500])),
        ]
    )


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def bytes_mutated(redis: Redis, job: str, dice: Dice) -> None:
    data = bytearray(zlib.decompress(redis.hget(job, "data")))
    for _ in range(dice.randint(1, 4)):
        start = dice.randrange(len(data))
        data[start : start + dice.randint(0, 8)] = dice.randbytes(dice.randint(0, 4))
    redis.hset(job, "data", bytes(data) if dice.random() < 0.5 else zlib.compress(data))


def not_json(redis: Redis, job: str, dice: Dice) -> None:
    deep = b"[" * 100_000
    broken = [b"", b"\x00", b"null", b"NaN", b'["a"', pickle.dumps(Bomb()), zlib.compress(pickle.dumps(Bomb())), deep]
    redis.hset(job, "data", dice.choice([*broken, dice.randbytes(dice.randint(1, 200))]))


@cache
def a_hundred_megabytes() -> bytes:
    """Packed."""
    return zlib.compress(b" " * 100_000_000)


def swollen(redis: Redis, job: str, dice: Dice) -> None:
    """A hundred kilobytes that stand for a hundred megabytes; rarely, since even refusing them takes its time."""
    redis.hset(job, "data", a_hundred_megabytes() if dice.random() < 0.01 else BLANKS)


def another_call(redis: Redis, job: str, dice: Dice) -> None:
    names = ["os.system", "builtins.exec", "mlxq.jobs.generate ", "mlxq.jobs", "", None, 7, "x" * 50_000, "\ud800"]
    arguments = [[], ["true"], [{}, {}], None, {}, [None], [[]]]
    data = [dice.choice(names), dice.choice([None, "self", 1]), dice.choice(arguments), dice.choice([{}, {"a": 1}, []])]
    redis.hset(job, "data", zlib.compress(json.dumps(data).encode()))


def another_line(redis: Redis, job: str, dice: Dice) -> None:
    body = {"prompt": "hello", **{dice.choice(sorted(FIELDS)): weird(dice) for _ in range(dice.randint(1, 3))}}
    line = {"custom_id": dice.choice(["a", weird(dice)]), "url": "/v1/completions", "body": body}
    redis.hset(job, "data", zlib.compress(json.dumps(call(dice.choice([line, weird(dice)]))).encode()))


def missing_fields(redis: Redis, job: str, dice: Dice) -> None:
    redis.hdel(job, *dice.sample(["data", "status", "meta", "enqueued_at", "created_at", "origin", "timeout"], 3))


def strange_fields(redis: Redis, job: str, dice: Dice) -> None:
    names = ["meta", "enqueued_at", "mlxq_strikes", "mlxq_outcome", "mlxq_ended_by", "worker_name", "started_at", "ttl"]
    values = [
        b"",
        b"\xff\xfe",
        b"-1",
        b"1e999",
        b"9" * 40,
        b"nan",
        b'{"batch": "\\ud800"}',
        b'{"batch": {}}',
        b"[" * 9999,
    ]
    redis.hset(job, dice.choice([*names, "result_ttl", "failure_ttl"]), dice.choice(values))


def foreign_batch(redis: Redis, job: str, dice: Dice) -> None:
    name = dice.choice(["text", "list", "counts", "events", "none", "\x00", "a:b c"])
    redis.hset(job, "meta", json.dumps({"custom_id": "x", "batch": name}))


def another_type(redis: Redis, job: str, dice: Dice) -> None:
    job_id = job.removeprefix("rq:job:")
    beside = [f"rq:results:{job_id}", f"rq:executions:{job_id}", f"rq:job:{job_id}:dependents"]
    key = dice.choice([job, *beside])
    redis.delete(key)
    dice.choice([redis.set, redis.rpush, redis.sadd])(key, b"wrong")


def no_job(redis: Redis, job: str, dice: Dice) -> None:
    redis.lpush("rq:queue:mlxq", dice.randbytes(9), b"", b"a:b", job.removeprefix("rq:job:"))
    if dice.random() < 0.5:
        redis.delete(job)


BLANKS = zlib.compress(b" " * 100_000)
DAMAGES: list[Damage] = [
    *(bytes_mutated, not_json, swollen, another_call, another_line),
    *(missing_fields, strange_fields, foreign_batch, another_type, no_job),
]


def set_traps(redis: Redis) -> None:
    """Keys that a batch by one of these names would have."""
    redis.set(keys.batch("text"), "x")
    redis.rpush(keys.batch("list"), "x")
    redis.hset(keys.batch("counts"), mapping={"total": "many", "finished": "x", "failed": "x", "cancelled": "maybe"})
    redis.hset(keys.batch("events"), "total", 1)
    redis.set(keys.batch_events("events"), "x")


def enqueue(redis: Redis, round_number: int) -> Batch:
    lines = [text_request("hello", custom_id=f"r{number}") for number in range(NUM_AT_ONCE)]
    return Client(redis).submit(lines, f"round-{round_number}")


def work(redis: Redis) -> None:
    config = WorkerConfig(model="fake", engine=EngineConfig(max_num_seqs=64))
    worker = FakeWorker(["mlxq"], connection=redis, serializer="json", config=config)
    worker.step_s = 0.0
    worker.work(burst=True)


@pytest.mark.parametrize("seed", [1])
def test_no_payload_ends_the_worker_or_costs_a_neighbour_its_answer(
    connection: Redis,
    caplog: pytest.LogCaptureFixture,
    seed: int,
) -> None:
    caplog.set_level("CRITICAL", logger="rq.worker")
    dice = random.Random(seed)
    num_damaged = 0
    while num_damaged < NUM_DAMAGED:
        # given a queue in which most jobs are damaged
        set_traps(connection)
        batch = enqueue(connection, num_damaged)
        job_ids = list(batch.job_ids())
        damaged = [job_id for place, job_id in enumerate(job_ids) if place % NEIGHBOUR_EVERY]
        for job_id in damaged:
            dice.choice(DAMAGES)(connection, f"rq:job:{job_id}", dice)
        num_damaged += len(damaged)

        # when a worker goes through them
        work(connection)

        # then the neighbours have their answers, and nothing is left in between
        for job_id in set(job_ids) - set(damaged):
            assert answer(connection, job_id)["error"] is None, job_id
        states = {state_of(connection, job_id) for job_id in damaged}
        assert states <= {"finished", "failed", "gone"}, states
        assert connection.zcard("rq:wip:mlxq") == connection.llen("rq:queue:mlxq") == 0
        connection.flushall()


def state_of(redis: Redis, job_id: str) -> str:
    try:
        found = redis.hget(f"rq:job:{job_id}", "status")
    except ResponseError:
        return "gone"
    return "gone" if found is None else found.decode()


def test_a_job_under_whose_id_lies_another_type_is_skipped(connection: Redis) -> None:
    batch = enqueue(connection, 0)
    job_ids = list(batch.job_ids())
    connection.set(f"rq:job:{job_ids[0]}", "a string")

    work(connection)

    assert status(connection, job_ids[1]) == "finished"
    assert connection.get(f"rq:job:{job_ids[0]}") == b"a string"
