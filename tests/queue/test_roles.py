"""Each role in Redis: its rule is enough for all that it does, and one right less is what the doctor names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner
from redis import Redis
from redis.exceptions import ResponseError
from tests.support.fake_engine import FakeWorker
from tests.support.queued_jobs import enqueue_plain, submit
from tests.support.redis_fixture import MortalRedis, user_with_rights

from mlxq.cli import main
from mlxq.deploying.roles import ABOUT, COMMANDS, Role
from mlxq.errors import QueueError
from mlxq.metrics.queue_figures import QueueFigures
from mlxq.queue import durability, scripts
from mlxq.queue.client import Client
from mlxq.queue.connect import connect
from mlxq.queue.live.live_queue import LiveQueue
from mlxq.queue.overview import overview
from mlxq.requests.openai import text_request
from mlxq_worker.commands.doctor.queues import look_at_queue
from mlxq_worker.commands.doctor.rights import COMMANDS as TRIED
from mlxq_worker.commands.doctor.rights import look_at_rights
from mlxq_worker.config import WorkerConfig
from mlxq_worker.supervision.dead_workers import DeadWorkers

ROOT = Path(__file__).parents[2]
ROLES = tuple(COMMANDS)
OF_SCRIPTS: dict[str, Role] = {"mlxq.queue": "producer", "mlxq_worker.jobs": "worker"}


@contextmanager
def logged_in(server: MortalRedis, role: Role, without: str = "") -> Iterator[Redis]:
    with connect(user_with_rights(server.url, role, without)) as connection:
        yield connection


def work(redis: Redis) -> None:
    FakeWorker(["mlxq"], connection=redis, serializer="json", config=WorkerConfig(model="fake")).work(burst=True)


def test_each_role_may_do_its_own_and_together_they_answer_a_batch(mortal_redis: MortalRedis) -> None:
    with (
        logged_in(mortal_redis, "producer") as producer,
        logged_in(mortal_redis, "worker") as worker,
        logged_in(mortal_redis, "observer") as observer,
    ):
        batch, cancelled = submit(producer, "one", "bad", "boom"), submit(producer, "four", "five")
        parent = enqueue_plain(producer)
        enqueue_plain(producer, depends_on=parent)
        assert cancelled.cancel_job(cancelled.job_id("r0"))
        assert cancelled.cancel() == 1
        waiting = overview(observer, "mlxq").queue("mlxq").waiting
        assert durability.warnings(worker)
        live = LiveQueue(producer, "mlxq")
        for job_id in ("live-1", "live-2"):
            live.enqueue(job_id, text_request("six", custom_id=job_id), is_streamed=True, wait_s=60)
        live.cancel(["live-2"])

        dead_workers = DeadWorkers(worker, ["mlxq"])
        dead_workers.release_silent()
        work(worker)
        dead_workers.release("somebody")
        QueueFigures(worker, ["mlxq"]).snapshot()

        assert set(live.read({"live-1": "0-0"}, 0.001).lines) == {"live-1"}
        assert live.states(["live-1"]) == {"live-1": "finished"}
        assert live.models() == []
        live.forget(["live-1"])
        collector = batch.collector()
        collector.forget(list(collector.next_answers(0.0)))
        assert Client(producer).batch_ids()
        assert batch.counts().num_ended == 3
        batch.delete()
        looked = QueueFigures(observer).snapshot()

    assert waiting == 4
    assert any(number.name == "redis_up" and number.value for number in looked.numbers)
    assert mortal_redis.refused() == []


@pytest.mark.parametrize(("package", "role"), OF_SCRIPTS.items())
def test_whatever_a_script_may_call_its_role_may_call(package: str, role: Role, connection: Redis) -> None:
    folder = {"mlxq.queue": "producer/mlxq/queue/lua", "mlxq_worker.jobs": "worker/mlxq_worker/jobs/lua"}[package]
    texts = [scripts.source(path.stem, package) for path in (ROOT / folder).glob("*.lua")]
    called = {word.lower() for text in texts for word in re.findall(r"'([A-Z]{3,})'", text)} & set(connection.command())

    assert len(called) > 10
    assert called - COMMANDS[role] == set()


@pytest.mark.parametrize("role", ROLES)
def test_the_doctor_is_content_with_a_role_and_names_the_right_that_it_lacks(
    role: Role, mortal_redis: MortalRedis
) -> None:
    tried = {words[0].lower().replace(" ", "|") for words in TRIED} & COMMANDS[role]

    with logged_in(mortal_redis, "worker") as redis:
        FakeWorker(["mlxq"], connection=redis, serializer="json").register_birth()  # so that there is one to look at
    with logged_in(mortal_redis, role) as redis:
        assert {finding.level for finding in look_at_rights(redis, role)} == {"ok"}
        assert {finding.level for finding in look_at_queue(redis, "mlxq")} == {"ok"}
    for name in sorted(tried)[:: max(1, len(tried) // 8)]:
        with logged_in(mortal_redis, role, without=f"+{name}") as redis:
            [finding] = [each for each in look_at_rights(redis, role) if each.name == "rights"]
        assert f"+{name}" in finding.todo.split()
        assert f"mlxq deploy acl --role {role}" in finding.todo


@pytest.mark.parametrize(
    "attempt",
    [
        lambda redis: redis.set("mlxq:x", "1"),
        lambda redis: redis.lpop("rq:queue:mlxq"),
        lambda redis: redis.get("somebody:else"),
        lambda redis: redis.eval("return redis.call('DEL', 'rq:queue:mlxq')", 0),
        lambda redis: redis.config_set("maxmemory", "1"),
        lambda redis: redis.flushall(),
    ],
)
def test_an_observer_can_change_nothing(attempt: Callable[[Redis], object], mortal_redis: MortalRedis) -> None:
    refusal = r"(?i)permission|can't (run|access)"
    with logged_in(mortal_redis, "observer") as redis, pytest.raises(ResponseError, match=refusal):
        attempt(redis)


def test_who_lacks_a_right_is_told_who_names_it(mortal_redis: MortalRedis) -> None:
    lacks = r"no permissions to run the 'zmscore' command.* \(mlxq doctor --role ROLE names all rights"
    with logged_in(mortal_redis, "observer") as redis, pytest.raises(QueueError, match=lacks):
        submit(redis, "one")


@pytest.mark.parametrize("role", ROLES)
def test_the_files_to_deploy_are_what_the_command_prints(role: Role) -> None:
    text = (ROOT / "deploy" / "acl" / f"{role}.acl").read_text(encoding="utf-8")

    assert text == CliRunner().invoke(main, ["deploy", "acl", "--role", role]).stdout
    assert ABOUT[role] in CliRunner().invoke(main, ["deploy", "acl", "--role", role]).stderr
    named = CliRunner().invoke(main, ["deploy", "acl", "--role", role, "--user", "ann"]).stdout
    assert named.startswith("user ann on >CHANGE-ME ")
    assert CliRunner().invoke(main, ["deploy", "acl", "--role", role, "--user", "a b"]).exit_code == 2
