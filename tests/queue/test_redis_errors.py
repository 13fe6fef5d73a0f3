"""A real Redis that takes no writes for longer than a lease, by what brings it to that in real life; and a full one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from tests.support.fake_engine import FakeWorker
from tests.support.fake_worker import FakeWorker as EchoWorker
from tests.support.io_rig import LEASE_S, IoRig
from tests.support.processes import MLXQ, ended, running
from tests.support.queued_jobs import num_strikes, status, submit
from tests.support.redis_at import redis_at
from tests.support.redis_errors import RedisErrors
from tests.support.waiting import wait_until

from mlxq.cli import main
from mlxq.errors import QueueNotReady
from mlxq.queue.client import Client
from mlxq.requests.openai import text_request
from mlxq_worker.config import EngineConfig, WorkerConfig
from mlxq_worker.jobs.store import JobStore
from mlxq_worker.supervision.dead_workers import DeadWorkers

ERRORS = ("MISCONF", "OOM", "BUSY", "READONLY", "NOREPLICAS", *(["full disk"] if sys.platform == "linux" else []))
NUM_LINES = 12
"""Only Linux can limit the files of another process."""


class FailingRedis:
    """A server of the test's own. `errors` are what it can be brought to answer with."""

    def __init__(self, program: str, directory: Path) -> None:
        self.url = f"unix://{directory / 'redis.sock'}"
        options = {"port": "0", "unixsocket": str(directory / "redis.sock"), "dir": str(directory), "save": ""}
        options |= {"appendonly": "yes", "lua-time-limit": "100"}
        command = [program, *(part for name, value in options.items() for part in (f"--{name}", value))]
        self._server = subprocess.Popen(command, stdout=subprocess.DEVNULL, restore_signals=False)
        self.connection = redis_at(self.url)
        wait_until(self._answers, "the server")
        self.errors = RedisErrors(self.url, self._server.pid, directory)

    def _answers(self) -> bool:
        try:
            return bool(self.connection.ping())
        except RedisConnectionError:
            return False

    def close(self) -> None:
        self.connection.close()
        self._server.kill()
        self._server.wait()


@pytest.fixture
def redis(redis_program: str, tmp_path: Path) -> Iterator[FailingRedis]:
    redis = FailingRedis(redis_program, tmp_path)
    yield redis
    redis.close()


def claimed_by(rig: IoRig, redis: FailingRedis) -> bool:
    return redis.connection.scard(rig.worker.executions_key) > 0


@pytest.mark.parametrize("error", ERRORS)
def test_nobody_takes_the_jobs_of_a_worker_that_could_not_beat(redis: FailingRedis, error: str) -> None:
    # given a worker that holds jobs, and one that has none
    rigs = [IoRig(redis.url)]
    rigs[0].start()
    batch = submit(redis.connection, "hello", "hello", "hello")
    wait_until(lambda: claimed_by(rigs[0], redis), "the claim")
    rigs.append(IoRig(redis.url))
    rigs[1].start()

    # when Redis takes no writes until the leases have run out, and a third one starts as soon as it does
    redis.errors.begin(error)
    expired = time.monotonic() + 2.5 * LEASE_S
    wait_until(lambda: time.monotonic() > expired, "the leases to run out")
    redis.errors.end()
    rigs.append(IoRig(redis.url))
    rigs[2].start()
    rigs[0].decode(3)
    wait_until(lambda: batch.counts().is_done, "the answers")
    for rig in rigs:
        rig.close()

    assert [rig.consumer.outbox.num_ended for rig in rigs] == [3, 0, 0]
    assert (batch.counts().num_finished, num_strikes(redis.connection)) == (3, 0)


@pytest.mark.parametrize("error", ERRORS)
def test_a_worker_that_starts_meanwhile_waits_and_one_that_is_to_stop_stops(redis: FailingRedis, error: str) -> None:
    batch = submit(redis.connection, "hello")
    config = WorkerConfig(model="fake", engine=EngineConfig(max_num_seqs=4))
    with redis_at(redis.url) as connection:
        stopped = FakeWorker(["mlxq"], connection=connection, serializer="json", config=config)
        patient = FakeWorker(["mlxq"], connection=connection, serializer="json", config=config)

        redis.errors.begin(error)
        stopped.request_stop(15, None)
        has_worked = stopped.work(burst=True)
        redis.errors.end()
        patient.work(burst=True)

    assert (has_worked, batch.counts().num_finished) == (False, 1)


@pytest.mark.parametrize(("has_died", "strikes"), [(False, 0), (True, 3)])
def test_what_a_worker_could_not_give_back_when_it_ended_gets_a_strike_only_if_it_died(
    redis: FailingRedis, has_died: bool, strikes: int
) -> None:
    batch = submit(redis.connection, "hello", "hello", "hello")
    gone = JobStore(redis.connection, "gone", ["mlxq"])
    gone.claim(3, time.time())
    supervisor = DeadWorkers(redis.connection, ["mlxq"])

    redis.errors.begin("MISCONF")
    supervisor.release("gone", has_died=has_died)
    redis.errors.end()
    supervisor.release_silent()
    JobStore(redis.connection, "neighbour", ["mlxq"]).recover_expired(time.time())

    waiting = redis.connection.lrange("rq:queue:mlxq", 0, -1) + redis.connection.zrange("mlxq:delayed:mlxq", 0, -1)
    assert [job.decode() for job in waiting] == list(batch.job_ids()) or has_died
    assert (len(waiting), num_strikes(redis.connection)) == (3, strikes)


@pytest.mark.parametrize("error", ERRORS)
def test_a_worker_that_nobody_looks_after_and_that_is_stopped_meanwhile_costs_its_jobs_no_strike(
    redis: FailingRedis, error: str
) -> None:
    # given one of which nothing is left but leases that run out, since it could give nothing back
    stopped = IoRig(redis.url, close_s=0.0)
    stopped.start()
    batch = submit(redis.connection, "hello", "hello", "hello")
    wait_until(lambda: claimed_by(stopped, redis), "the claim")

    redis.errors.begin(error)
    stopped.close()
    redis.errors.end()
    neighbour = IoRig(redis.url)
    neighbour.start()
    neighbour.decode(3)
    wait_until(lambda: batch.counts().is_done, "the answers")
    neighbour.close()

    assert (batch.counts().num_finished, num_strikes(redis.connection)) == (3, 0)


class Ended:
    """A worker that had a job when Redis began to refuse its beats, and was gone some time later; and a neighbour."""

    def __init__(self, redis: FailingRedis, *, could_beat: bool) -> None:
        self._redis = redis.connection
        submit(redis.connection, "hello")
        worker, self._now = self.store("ended"), time.time()
        claimed = worker.claim(1, self._now).jobs
        worker.beat(claimed, self._now)
        redis.errors.begin("MISCONF")
        with pytest.raises(ResponseError, match="MISCONF"):
            worker.beat(claimed, self._now)
        redis.errors.end()
        if could_beat:
            worker.beat(claimed, self._now)

    def store(self, name: str) -> JobStore:
        return JobStore(self._redis, name, ["mlxq"], lease_clock="caller")

    def runs_out(self) -> int:
        """Its lease does, under the eyes of the neighbour; returns the strikes that the job has then."""
        for seconds in range(0, 200, 2):
            self.store("neighbour").beat([], self._now + seconds)
            self.store("neighbour").recover_expired(self._now + seconds)
        assert self._redis.llen("rq:queue:mlxq") + self._redis.zcard("mlxq:delayed:mlxq") == 1
        return num_strikes(self._redis)


@pytest.mark.parametrize("could_beat", [True, False])
def test_redis_is_an_excuse_for_those_only_who_have_not_been_heard_of_since(
    redis: FailingRedis, could_beat: bool
) -> None:
    assert Ended(redis, could_beat=could_beat).runs_out() == could_beat


@pytest.mark.parametrize("is_seen", [True, False])
def test_redis_is_no_excuse_for_a_worker_that_was_seen_to_die(redis: FailingRedis, is_seen: bool) -> None:
    """By its own supervisor. Another one, of the same machine, can't tell how it ended."""
    ended = Ended(redis, could_beat=False)

    ended.store("supervisor").abandon("ended", time.time(), is_seen=is_seen)

    assert ended.runs_out() == is_seen


def test_a_run_gives_back_what_its_dead_worker_held_once_redis_lets_it(redis: FailingRedis, tmp_path: Path) -> None:
    # given a run whose worker dies while Redis takes no writes
    lines = [json.dumps({"id": f"r{i}", "prompt": "Count to 40", "max_tokens": 200}) for i in range(NUM_LINES)]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    files = ("-i", str(tmp_path / "in.jsonl"), "-o", str(tmp_path / "out.jsonl"))
    with running(*MLXQ, "run", "--max-num-seqs", "2", *files, MLXQ_URL=redis.url, MLXQ_LEASE_S="90") as run:
        wait_until(lambda: redis.connection.zcard("rq:wip:mlxq"), "the claim")
        [worker] = redis.connection.smembers("rq:workers:mlxq")
        pid = int(redis.connection.hget(worker, "pid"))

        os.kill(pid, signal.SIGSTOP)  # no more answers: the run has nothing to write, and only sees its worker die
        redis.errors.begin("MISCONF")
        os.kill(pid, signal.SIGKILL)
        assert run.stdout is not None
        said = next(line for line in run.stdout if "MISCONF" in line)
        redis.errors.end()
        said += ended(run)

    assert run.returncode == 0, said
    assert "died with" in said, "else their leases were waited for"
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == NUM_LINES


@pytest.mark.parametrize("error", ERRORS)
def test_a_run_that_starts_meanwhile_waits_and_says_so(redis: FailingRedis, tmp_path: Path, error: str) -> None:
    (tmp_path / "in.jsonl").write_text('{"id": "a", "prompt": "hello"}\n')
    files = ("-i", str(tmp_path / "in.jsonl"), "-o", str(tmp_path / "out.jsonl"))

    redis.errors.begin(error)
    with running(*MLXQ, "run", "--workers", "0", *files, MLXQ_URL=redis.url) as run:
        assert run.stdout is not None
        said = next(line for line in run.stdout if "Waiting" in line)
        redis.errors.end()
        with EchoWorker(redis.url):
            said += ended(run)

    assert run.returncode == 0, said
    assert "Waiting until it can again" in said
    assert "Redis answers again" in said


# --- A Redis that is full -------------------------------------------------------------------------------------


def mlxq(redis: FailingRedis, *arguments: object) -> str:
    result = CliRunner().invoke(main, [*map(str, arguments), "--url", redis.url])
    assert result.exit_code == 0, result.output
    return result.stdout


def work_off(redis: FailingRedis) -> None:
    config = WorkerConfig(model="fake", engine=EngineConfig(max_num_seqs=4))
    FakeWorker(["mlxq"], connection=redis.connection, serializer="json", config=config).work(burst=True)


def test_a_full_redis_takes_no_new_requests_and_says_so(redis: FailingRedis) -> None:
    redis.errors.begin("OOM")

    with pytest.raises(QueueNotReady, match="takes no more writes"):
        Client(redis.url).submit([text_request("hello", custom_id="a")])


def test_a_full_redis_can_be_collected_from_and_what_is_collected_can_be_deleted(
    redis: FailingRedis, tmp_path: Path
) -> None:
    batch = submit(redis.connection, *["hello"] * 5)
    work_off(redis)
    redis.errors.begin("OOM")

    mlxq(redis, "collect", batch.id, "-o", tmp_path / "out.jsonl")
    collector = batch.collector()
    collector.forget(list(collector.next_answers(0.0)))

    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 5
    assert not list(redis.connection.scan_iter("rq:job:*"))


def test_a_full_redis_lets_what_its_own_tools_ended_be_counted(redis: FailingRedis) -> None:
    batch = submit(redis.connection, "hello", "hello")
    [lost, _] = batch.job_ids()
    redis.connection.delete(f"rq:job:{lost}")
    redis.connection.delete("rq:queue:mlxq")
    redis.errors.begin("OOM")

    report = json.loads(mlxq(redis, "status", batch.id, "--json"))

    assert report["batch"]["num_failed"] == 1


def test_a_batch_in_a_full_redis_can_be_cancelled(redis: FailingRedis) -> None:
    batch = submit(redis.connection, *["hello"] * 5)
    store = JobStore(redis.connection, "w", ["mlxq"])
    [running] = store.claim(1, time.time()).jobs
    redis.errors.begin("OOM")

    mlxq(redis, "cancel", batch.id)

    counts = batch.counts()
    assert (counts.cancelled, counts.num_cancelled, redis.connection.llen("rq:queue:mlxq")) == (True, 4, 0)
    assert store.cancelled_batches([batch.id]) == {batch.id}
    assert store.beat([running], time.time()) == ["held"]


def test_a_running_job_in_a_full_redis_can_be_cancelled(redis: FailingRedis) -> None:
    batch = submit(redis.connection, "hello")
    [job_id] = batch.job_ids()
    store = JobStore(redis.connection, "w", ["mlxq"])
    claimed = store.claim(1, time.time()).jobs
    redis.errors.begin("OOM")

    mlxq(redis, "cancel", job_id)

    assert (status(redis.connection, job_id), store.beat(claimed, time.time())) == ("canceled", ["canceled"])


def test_a_full_redis_still_gets_the_answers_of_what_is_running(redis: FailingRedis) -> None:
    rig = IoRig(redis.url)
    rig.start()
    batch = submit(redis.connection, "hello", "hello")
    wait_until(lambda: claimed_by(rig, redis), "the claim")

    redis.errors.begin("OOM")
    rig.decode(2)
    wait_until(lambda: batch.counts().is_done, "the answers")
    rig.close()

    assert batch.counts().num_finished == 2
