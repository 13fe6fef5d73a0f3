"""Stock RQ around real worker processes: its command line, its monitoring, and what a kill -9 leaves."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import zlib
from contextlib import AbstractContextManager

import pytest
from redis import Redis
from rq.job import Job, Retry
from rq.queue import Queue
from rq.serializers import JSONSerializer
from rq.utils import utcparse
from rq.worker import Worker
from tests.support.processes import RQ, ended, rq, run, running
from tests.support.queued_jobs import answer, enqueue_plain, events, queue_of, submit
from tests.support.redis_fixture import MortalRedis, user_with_rights
from tests.support.waiting import DEADLINE_S, wait_until

from mlxq.jobs import generate
from mlxq.queue.client import Client
from mlxq_worker.jobs.store import MAX_STRIKES

FAKE = {"MLXQ_MODEL": "fake", "MLXQ_MAX_NUM_SEQS": "4"}


def rq_worker(
    url: str, *options: str, kind: str = "SlowWorker", **variables: str
) -> AbstractContextManager[subprocess.Popen[str]]:
    """``rq worker -w tests.support.fake_engine.{kind}`` as a process of its own."""
    worker_class = f"tests.support.fake_engine.{kind}"
    command = (*RQ, "worker", "-u", url, "-w", worker_class, "--serializer", "json", *options, "mlxq")
    return running(*command, **FAKE | variables)


def let_leases_lapse(connection: Redis) -> int:
    """As if the time that the leases of all claimed jobs have left had gone by; returns how many there are."""
    leases = connection.zrange("rq:wip:mlxq", 0, -1)
    if leases:
        connection.zadd("rq:wip:mlxq", dict.fromkeys(leases, 1))
    return len(leases)


def test_the_function_that_jobs_name_says_how_to_run_them() -> None:
    with pytest.raises(RuntimeError, match="mlxq worker"):
        generate({})


def test_jobs_lie_in_redis_as_rq_itself_would_write_them(connection: Redis, redis_url: str) -> None:
    # given one of our jobs, and RQ's own with the same content; a long one is packed otherwise
    for number, text in enumerate(("hi é 😀", "long " * 2000)):
        batch = Client(redis_url).submit([{"custom_id": f"aé{number}", "prompt": text}], f"b{number}")
        [ours] = [Job.fetch(job_id, connection, JSONSerializer) for job_id in batch.job_ids()]
        data = Queue.prepare_data(
            ours.func_name,
            args=ours.args,
            timeout=-1,
            result_ttl=ours.result_ttl,
            failure_ttl=ours.failure_ttl,
            description=ours.description,
            job_id=f"theirs-{number}",
            meta=ours.meta,
            retry=Retry(max=3),
        )
        [theirs] = Queue("mlxq", connection=connection, serializer=JSONSerializer).enqueue_many([data])

        # then RQ finds the same in both
        hashes = [connection.hgetall(job.key) for job in (ours, theirs)]
        for fields in hashes:
            fields[b"data"] = json.loads(zlib.decompress(fields[b"data"]))
            fields[b"meta"] = json.loads(fields[b"meta"])
            assert utcparse(fields.pop(b"created_at").decode()) <= utcparse(fields.pop(b"enqueued_at").decode())
        assert hashes[0] == hashes[1]
    waiting = [job_id.decode() for job_id in connection.lrange("rq:queue:mlxq", 0, -1)]
    assert waiting[1::2] == ["theirs-0", "theirs-1"]
    assert connection.smembers("rq:queues") == {b"rq:queue:mlxq"}


def test_stock_rq_worker_runs_ours_to_the_end_of_the_queue(connection: Redis, redis_url: str) -> None:
    job = enqueue_plain(connection)

    with rq_worker(redis_url, "--burst", kind="FakeWorker") as process:
        output = ended(process)

    assert process.returncode == 0, output
    line = Job.fetch(job.id, connection=connection, serializer="json").return_value()
    assert line is not None
    assert line["custom_id"] == "plain"
    assert "hello" not in output


def test_the_worker_class_can_be_named_by_its_package(connection: Redis, redis_url: str) -> None:
    command = (*RQ, "worker", "-u", redis_url, "-w", "mlxq_worker.BatchWorker", "-S", "json", "--burst", "mlxq")

    done = run(*command, MLXQ_MODEL="/no/such/model")

    assert done.returncode == 2
    assert "/no/such/model" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_bad_variable_is_named(redis_url: str) -> None:
    with rq_worker(redis_url, "--burst", MLXQ_LEASE_S="soon") as process:
        output = ended(process)

    assert process.returncode == 2
    [line] = output.splitlines()
    assert "MLXQ_LEASE_S must be a number of seconds, not 'soon'" in line


def test_a_worker_without_the_rights_of_one_says_so_in_a_line(mortal_redis: MortalRedis) -> None:
    url = user_with_rights(mortal_redis.url, "producer")

    with rq_worker(url, kind="FakeWorker") as process:
        output = ended(process)

    assert process.returncode == 1
    assert "has no permissions to run the" in output.splitlines()[-1]
    assert "Traceback" not in output


def test_rq_info_and_worker_all_show_what_a_busy_worker_does(connection: Redis, redis_url: str) -> None:
    batch = submit(connection, *("slow" for _ in range(20)), max_tokens=100_000)

    with rq_worker(redis_url, "--name", "busy-bee", kind="FakeWorker", MLXQ_CLAIM_AHEAD="2"):
        wait_until(lambda: connection.zcard("rq:wip:mlxq") == 8, "a full worker")
        wait_until(lambda: connection.hget("rq:worker:busy-bee", "state") == b"busy", "the state")
        info = rq(redis_url, "info")
        [worker] = Worker.all(connection=connection, serializer="json")
        executions = worker.get_current_executions()

    assert re.search(r"^mlxq .* 12, 8 executing, 0 finished, 0 failed$", info, re.MULTILINE), info
    assert re.search(r"busy-bee .*: busy mlxq\.", info), info
    assert len(executions) == 8
    assert {execution.job_id for execution in executions} == {batch.job_id(f"r{i}") for i in range(8)}


def test_sigterm_returns_what_has_not_ended_and_exits_cleanly(connection: Redis, redis_url: str) -> None:
    batch = submit(connection, *("slow" for _ in range(12)), max_tokens=100_000)

    with rq_worker(redis_url, MLXQ_GRACE_S="0.2", MLXQ_CLAIM_AHEAD="2") as process:
        wait_until(lambda: connection.zcard("rq:wip:mlxq") == 8, "a full worker")
        process.send_signal(signal.SIGTERM)
        output = ended(process)

    assert process.returncode == 0, output
    assert queue_of(connection).job_ids == [batch.job_id(f"r{i}") for i in range(12)]
    assert connection.smembers("rq:workers") == set()


def test_a_second_signal_ends_a_worker_that_still_loads_its_model(connection: Redis, redis_url: str) -> None:
    with rq_worker(redis_url, kind="LoadingWorker") as process:
        wait_until(lambda: connection.exists("loading"), "the load to begin")
        wait_until(lambda: process.send_signal(signal.SIGTERM) or process.poll() is not None, "the worker to end")
        output = ended(process)

    assert process.returncode == -signal.SIGTERM, output
    assert "Stopping once the model is loaded" in output


def test_killing_one_of_two_workers_loses_nothing_and_doubles_nothing(connection: Redis, redis_url: str) -> None:
    # given more work than the slow one of them gets done
    batch = submit(connection, *("hello" for _ in range(60)), max_tokens=50)
    quick = {"MLXQ_LEASE_S": "5", "MLXQ_MAINTENANCE_S": "0.5"}

    with rq_worker(redis_url, "--name", "victim", **quick) as victim:
        wait_until(lambda: batch.counts().num_finished >= 4, "the victim to work")
        wait_until(lambda: connection.zcard("rq:wip:mlxq") >= 4, "the victim to hold jobs")
        victim.kill()
        victim.wait()
        held = let_leases_lapse(connection)
        with rq_worker(redis_url, "--name", "survivor", kind="FakeWorker", **quick):
            wait_until(lambda: batch.counts().num_ended == 60, "all jobs")

    assert held > 0
    assert batch.counts().num_finished == 60
    assert sorted(events(connection, batch).values()) == [1] * 60
    assert len(list(batch.as_completed())) == 60


@pytest.mark.parametrize("word", ["die", "hang"])
def test_a_job_that_kills_its_worker_three_times_fails_and_its_neighbours_finish(
    connection: Redis,
    redis_url: str,
    word: str,
) -> None:
    batch = submit(connection, "one", word, "three", "four")
    quick = {"MLXQ_LEASE_S": "5", "MLXQ_MAINTENANCE_S": "0.2", "MLXQ_STEP_TIMEOUT_S": "1"}

    for _ in range(MAX_STRIKES):
        with rq_worker(redis_url, kind="FakeWorker", **quick) as process:
            process.wait(DEADLINE_S)
        let_leases_lapse(connection)
    with rq_worker(redis_url, kind="FakeWorker", **quick):
        wait_until(lambda: batch.counts().num_ended == 4, "all answers")

    answers = {found.custom_id: found for found in batch.as_completed()}
    assert [name for name, found in answers.items() if found.status == "failed"] == ["r1"]
    assert answer(connection, batch.job_id("r1"))["error"]["code"] == "worker_crashed"


def test_a_worker_ends_when_its_parent_is_gone(connection: Redis, redis_url: str) -> None:
    submit(connection, "slow", max_tokens=100_000)
    script = (
        "import sys; from tests.support.redis_at import redis_at; from tests.support.fake_engine import SlowWorker;"
        "from mlxq_worker.config import WorkerConfig;"
        "config = WorkerConfig(model='fake', grace_s=0.1, parent_pid=int(sys.argv[2]));"
        "SlowWorker(['mlxq'], connection=redis_at(sys.argv[1]), serializer='json', config=config).work()"
    )
    with (
        subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as parent,
        running(sys.executable, "-c", script, redis_url, str(parent.pid)) as process,
    ):
        wait_until(lambda: connection.zcard("rq:wip:mlxq") == 1, "the worker to work")
        parent.kill()
        parent.wait(DEADLINE_S)
        output = ended(process)

    assert process.returncode == 0, output
    assert queue_of(connection).count == 1
