"""`mlxq status` over whatever is in Redis: in three round trips, every queue with its workers, and nothing ends it."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from click.testing import CliRunner, Result
from redis import Redis
from redis.client import Pipeline

from mlxq import keys
from mlxq.cli import main
from mlxq.queue.client import Client
from mlxq.requests.openai import text_request


def status(url: str, *arguments: str) -> Result:
    result = CliRunner().invoke(main, ["status", *arguments, "--url", url], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture
def round_trips(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """What has been sent and waited for, by kind: pipelines, and single commands."""
    counter: Counter[str] = Counter()
    execute, execute_command = Pipeline.execute, Redis.execute_command

    def count_pipeline(self: Pipeline, *args: Any, **options: Any) -> Any:
        counter["pipelines"] += 1
        return execute(self, *args, **options)

    def count_command(self: Redis, *args: Any, **options: Any) -> Any:
        counter["commands"] += 1
        return execute_command(self, *args, **options)

    monkeypatch.setattr(Pipeline, "execute", count_pipeline)
    monkeypatch.setattr(Redis, "execute_command", count_command)
    return counter


@pytest.fixture
def thousand(connection: Redis) -> None:
    """A thousand batches, each in one of ten queues, and those that have expired between them."""
    with connection.pipeline(transaction=False) as pipe:
        for number in range(1000):
            batch = {"queue": f"q{number % 10}", "created": 1.5e9 + number, "total": 10, "sealed": 1, "cancelled": 0}
            pipe.hset(keys.batch(f"b{number:03}"), mapping={**batch, "finished": 9, "failed": 1})
            pipe.zadd(keys.BATCHES, {f"b{number:03}": 1.5e9 + number, f"gone{number:03}": 1.4e9})
        pipe.execute()


@pytest.mark.parametrize("arguments", [(), ("--json",)])
def test_a_thousand_batches_take_three_round_trips(
    redis_url: str, thousand: None, round_trips: Counter[str], arguments: tuple[str, ...]
) -> None:
    shown = status(redis_url, *arguments).stdout

    assert round_trips.total() <= 3, round_trips
    assert shown.index("b999") < shown.index("b980")
    assert "gone" not in shown
    assert Client(redis_url).redis.zcard(keys.BATCHES) == 1000, "what has expired is struck off the list"


def test_every_queue_is_shown_with_its_workers_its_first_job_and_its_failures(
    connection: Redis, redis_url: str
) -> None:
    # given
    now_s, _ = connection.time()
    batch = Client(connection, "nightly").submit([text_request("hi", custom_id=name) for name in ("a", "b", "c")])
    first = connection.lindex("rq:queue:nightly", 0).decode()
    connection.hset(f"rq:job:{first}", "enqueued_at", "2001-09-09T01:46:40.000000Z")
    connection.zadd("rq:wip:nightly", {"x:1": now_s + 50})
    connection.zadd("rq:failed:nightly", {"y": now_s + 50, "z": now_s + 50})
    connection.zadd("mlxq:delayed:nightly", {"v": now_s + 50})
    entry = {"queues": "nightly,other", "state": "busy", "hostname": "mac-1", "pid": "7", "last_heartbeat": "then"}
    connection.hset("rq:worker:w1", mapping=entry)
    connection.sadd("rq:workers", "rq:worker:w1", "rq:worker:dead")

    # when
    lines = status(redis_url).stdout.splitlines()
    listed = json.loads(status(redis_url, "--json").stdout)
    one = json.loads(status(redis_url, batch.id, "--json").stdout)

    # then
    queues = {queue["name"]: queue for queue in listed["queues"]}
    age_s = now_s - 1_000_000_000
    worker = {"name": "w1", "state": "busy", "hostname": "mac-1", "pid": "7", "last_heartbeat": "then"}
    assert sorted(queues) == ["mlxq", "nightly", "other"]
    nightly = queues["nightly"]
    assert abs(nightly.pop("oldest_waiting_s") - age_s) < 3600
    assert nightly == {"name": "nightly", "waiting": 4, "running": 1, "failed": 2, "workers": [worker]}
    assert queues["other"]["workers"] == [worker]
    assert one["queues"][0]["workers"] == [worker]
    [line] = [line for line in lines if line.startswith("queue nightly: ")]
    assert line.startswith("queue nightly: 4 waiting, the first for ")
    assert line.endswith(", 1 running, 2 failed, 1 worker")
    assert "queue other: 0 waiting, 1 worker" in lines


def test_a_batch_that_misses_jobs_is_named_as_one_to_look_at(connection: Redis, redis_url: str) -> None:
    batch = Client(connection).submit([text_request("hi", custom_id="a")])
    connection.delete("rq:queue:mlxq", f"rq:job:{batch.job_id('a')}")

    shown, listed = status(redis_url).stdout, json.loads(status(redis_url, "--json").stdout)
    one = status(redis_url, batch.id).stdout

    assert "Jobs of 1 batch were ended or deleted by others: `mlxq status BATCH` counts them" in shown
    assert listed["batches"][0]["num_missing"] == 1
    assert "1 of 1 ended" in one


HOSTILE = [
    "[/x]",
    "[bold]",
    "\x1b[2J\x1b]0;owned\x07",
    "a\nqueue fake: 0 waiting",
    "\u202ereversed",
    b"\xff\xfe",
    "{0}%s",
]


def put_hostile_names(connection: Redis) -> None:
    for name in HOSTILE:
        raw = name if isinstance(name, bytes) else name.encode()
        connection.sadd("rq:queues", b"rq:queue:" + raw)
        connection.rpush(b"rq:queue:" + raw, b"job" + raw)
        connection.hset(b"rq:job:job" + raw, "enqueued_at", raw)
        connection.zadd(keys.BATCHES, {raw: 1})
        batch = {"queue": raw, "created": 5, "total": 1, "sealed": 1, "cancelled": 0, b"stop:" + raw + b":": 3}
        connection.hset(b"mlxq:batch:" + raw, mapping=batch)
        connection.sadd("rq:workers", b"rq:worker:" + raw)
        connection.hset(b"rq:worker:" + raw, mapping={"queues": raw, "state": raw, "hostname": raw})


@pytest.mark.parametrize("arguments", [(), ("--json",), ("[/x]",), ("{0}%s",), ("{0}%s", "--json")])
def test_no_name_is_obeyed(connection: Redis, redis_url: str, arguments: tuple[str, ...]) -> None:
    put_hostile_names(connection)

    shown = status(redis_url, *arguments).stdout

    assert not any(character in shown for character in "\x1b\x07\r\u202e")
    assert not any(line.startswith("queue fake") for line in shown.splitlines())
    if not arguments:
        assert "queue [/x]: 1 waiting" in shown
        assert r"queue \x1b[2J" in shown


BROKEN = {
    "a string in its place": lambda redis, key: redis.set(key, "x"),
    "a list in its place": lambda redis, key: redis.rpush(key, "x"),
    "no fields of ours": lambda redis, key: redis.hset(key, "foo", "bar"),
    "a total that is no number": lambda redis, key: redis.hset(key, "total", "many"),
    "a day of creation that never was": lambda redis, key: redis.hset(key, "created", "nan"),
    "an endless age": lambda redis, key: redis.hset(key, "created", "inf"),
    "bytes": lambda redis, key: redis.hset(key, "queue", b"\xff"),
    "a stop of another form": lambda redis, key: redis.hset(key, "stop:x", "1"),
    "a token id that is none": lambda redis, key: redis.hset(key, "stop:eos_token:many", "1"),
}


@pytest.mark.parametrize("damage", BROKEN)
def test_a_broken_batch_costs_its_own_line_only(connection: Redis, redis_url: str, damage: str) -> None:
    Client(connection).submit([text_request("hi", custom_id="a")], "good")
    Client(connection).submit([text_request("hi", custom_id="a")], "bad")
    if "in its place" in damage or "no fields" in damage:
        connection.delete(keys.batch("bad"))
    BROKEN[damage](connection, keys.batch("bad"))

    shown, listed = status(redis_url).stdout, json.loads(status(redis_url, "--json").stdout)
    one = CliRunner().invoke(main, ["status", "bad", "--url", redis_url])

    assert "batch bad can't be read: the key mlxq:batch:bad holds " in shown
    assert [batch["batch_id"] for batch in listed["batches"]] == ["good"]
    assert [batch["batch_id"] for batch in listed["broken"]] == ["bad"]
    assert one.exit_code == 1
    assert "mlxq:batch:bad" in one.stderr or "'bad'" in one.stderr


@pytest.mark.parametrize(
    "key",
    [
        "mlxq:batches",
        "rq:queues",
        "rq:workers",
        "rq:queue:mlxq",
        "rq:wip:mlxq",
        "rq:failed:mlxq",
        "mlxq:delayed:mlxq",
        "mlxq:live:mlxq",
    ],
)
def test_a_key_of_the_wrong_type_costs_what_it_would_have_told(connection: Redis, redis_url: str, key: str) -> None:
    connection.set(key, "x")

    shown, listed = status(redis_url).stdout, json.loads(status(redis_url, "--json").stdout)

    assert "queue mlxq: " in shown
    assert [queue["name"] for queue in listed["queues"]] == ["mlxq"]
    assert connection.get(key) == b"x", "who only looks changes nothing"
