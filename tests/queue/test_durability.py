"""What is said about a Redis that may lose jobs: the setting and the fix, or that it couldn't be looked at."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from redis import Redis
from tests.support.processes import MLXQ, run
from tests.support.redis_fixture import MortalRedis

from mlxq.queue.connect import connect
from mlxq.queue.durability import warnings

GOOD = {"maxmemory": "100mb", "maxmemory-policy": "noeviction", "appendonly": "yes", "save": ""}


@pytest.fixture
def redis(mortal_redis: MortalRedis) -> Iterator[Redis]:
    with connect(mortal_redis.url) as redis:
        yield redis


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, []),
        ({"maxmemory-policy": "allkeys-lru"}, ["maxmemory-policy is allkeys-lru"]),
        ({"maxmemory-policy": "allkeys-lru", "maxmemory": "0"}, []),
        ({"appendonly": "no"}, ["appendonly is no"]),
        ({"appendonly": "no", "save": "3600 1"}, []),
        ({"appendonly": "no", "maxmemory-policy": "volatile-ttl"}, ["maxmemory-policy is volatile-ttl", "appendonly"]),
    ],
)
def test_each_setting_that_may_lose_jobs_is_named_with_its_fix(
    redis: Redis, settings: dict[str, str], expected: list[str]
) -> None:
    for name, value in (GOOD | settings).items():
        redis.config_set(name, value)

    found = warnings(redis)

    assert len(found) == len(expected)
    for sentence, part in zip(found, expected, strict=True):
        assert part in sentence
        assert "redis-cli CONFIG SET" in sentence


def test_a_redis_that_forbids_config_is_said_to_be_unchecked(redis: Redis, mortal_redis: MortalRedis) -> None:
    redis.acl_setuser("limited", enabled=True, passwords=["+secret"], keys=["*"], commands=["+@all", "-config"])

    with connect(mortal_redis.url.replace("unix://", "unix://limited:secret@")) as limited:
        [sentence] = warnings(limited)

    assert "doesn't let its settings be read" in sentence
    assert "noeviction" in sentence
    assert "secret" not in sentence


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", [("worker", "--model", "/no/such/model"), ("run", "-i", "/dev/null", "-o", "/dev/null")]
)
def test_worker_and_run_say_it_before_they_begin(mortal_redis: MortalRedis, command: tuple[str, ...]) -> None:
    done = run(*MLXQ, *command, "--url", mortal_redis.url)

    assert "forgets all jobs when it restarts: appendonly is no" in done.stderr
