"""The copy of a queue: deploy/redis-backup.sh takes one from a running server, and another server goes on from it."""

from __future__ import annotations

import subprocess
from pathlib import Path

from redis import Redis
from tests.support.fake_engine import FakeWorker
from tests.support.processes import environment
from tests.support.queued_jobs import submit
from tests.support.redis_at import redis_on
from tests.support.topologies import server

from mlxq.deploying.files import IN_SOURCES
from mlxq.queue.client import Client
from mlxq_worker.config import WorkerConfig


def backup(*words: str, url: str = "redis://nowhere") -> subprocess.CompletedProcess[str]:
    command = ["sh", str(IN_SOURCES / "redis-backup.sh"), *words]
    return subprocess.run(command, env=environment(MLXQ_URL=url), capture_output=True, text=True, check=False)


def work(redis: Redis) -> None:
    FakeWorker(["mlxq"], connection=redis, serializer="json", config=WorkerConfig(model="fake")).work(burst=True)


def num_ended(redis: Redis, batches: list[str]) -> list[int]:
    return [Client(redis).batch(name).counts().num_ended for name in batches]


def test_a_server_that_starts_from_a_copy_goes_on_with_its_batches(redis_program: str, tmp_path: Path) -> None:
    copy, before, after = tmp_path / "mlxq.rdb", tmp_path / "before", tmp_path / "after"
    before.mkdir()
    after.mkdir()
    with server(redis_program, before, "--save", "") as (port, _), redis_on(port) as redis:
        batches = [submit(redis, "one", "two").id]
        work(redis)
        batches.append(submit(redis, "three", "four", "five").id)
        saved = backup("save", str(copy), url=f"redis://127.0.0.1:{port}")
        work(redis)  # of which the copy knows nothing

    loaded = backup("load", str(copy), str(after))
    again = backup("load", str(copy), str(after))
    with (
        server(redis_program, after, str(IN_SOURCES / "redis.conf")) as (port, _),
        redis_on(port) as redis,
    ):
        found = [num_ended(redis, batches)]
        work(redis)
        found.append(num_ended(redis, batches))
        answers = [answer for name in batches for answer in Client(redis).batch(name).collector().next_answers(0.0)]
        settings = redis.config_get("appendonly")

    assert (saved.returncode, loaded.returncode) == (0, 0), saved.stderr + loaded.stderr
    assert (again.returncode, "is not empty" in again.stderr) == (1, True)
    assert found == [[2, 0], [2, 3]]
    assert len(answers) == 5
    assert settings == {"appendonly": "yes"}


def test_a_copy_of_nothing_is_none(tmp_path: Path) -> None:
    away = backup("save", str(tmp_path / "copy"), url="redis://127.0.0.1:1")

    assert away.returncode == 1
    assert not (tmp_path / "copy").exists()
    assert "usage" in backup("safe", "x").stderr
