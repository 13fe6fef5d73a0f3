"""The supervisor over real processes: what it passes on, when it ends, and what it saves from a worker that died."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from rq.registry import StartedJobRegistry
from rq.utils import utcformat
from rq.worker import Worker, WorkerStatus
from tests.support.fake_engine import FakeWorker
from tests.support.queued_jobs import enqueue_plain, events, status, submit
from tests.support.redis_at import redis_at
from tests.support.supervised import command
from tests.support.waiting import wait_until

from mlxq_worker.config import WorkerConfig
from mlxq_worker.jobs.presence import ENTRY_TTL_S, MACHINE, Presence
from mlxq_worker.jobs.store import JobStore
from mlxq_worker.supervision.dead_workers import DeadWorkers
from mlxq_worker.supervision.supervisor import STOP_MARGIN_S, Supervisor
from mlxq_worker.supervision.worker_process import WorkerProcess

GRACE_S = 5.0
COUNTS_SIGNALS = """
import os, signal, sys, time
stops = []
signal.signal(signal.SIGTERM, lambda *_: stops.append(1))
os.write(int(os.environ['MLXQ_READY_FD']), b'1')
open(sys.argv[1], 'w').close()
while len(stops) < int(sys.argv[2]):
    time.sleep(0.01)
"""


class NoDeadWorkers(DeadWorkers):
    """Of nothing: for tests without jobs."""

    def __init__(self) -> None:
        self.released: list[str] = []

    def release(self, worker_name: str, has_died: bool = True) -> None:
        self.released.append(worker_name)

    def release_if_due(self, now: float) -> None:
        pass


def counting(signal_file: Path, enough: int) -> list[str]:
    """A process that ends once it has got so many signals, and writes the file when it is ready for them."""
    return [sys.executable, "-S", "-c", COUNTS_SIGNALS, str(signal_file), str(enough)]


@contextmanager
def supervising(
    worker_command: list[str], dead_workers: DeadWorkers, variables: dict[str, str] | None = None
) -> Iterator[tuple[Supervisor, WorkerProcess]]:
    told = logging.getLogger("mlxq.supervisor").warning
    with WorkerProcess(
        worker_command, variables or {}, verbose=True, tell=told, on_end=dead_workers.release
    ) as process:
        yield Supervisor(process, dead_workers, GRACE_S), process


def turn_until(supervisor: Supervisor, condition: Any, what: str) -> None:
    wait_until(lambda: supervisor.turn(time.monotonic()) or condition(), what)
    assert condition(), f"the supervisor ended before: {what}"


# --- Passing on -----------------------------------------------------------------------------------------------


def test_it_ends_when_its_worker_is_done() -> None:
    with supervising([sys.executable, "-S", "-c", "pass"], NoDeadWorkers()) as (supervisor, _):
        wait_until(lambda: supervisor.turn(time.monotonic()), "the end")


@pytest.mark.parametrize("count", [1, 2])
def test_every_signal_is_passed_on_once(tmp_path: Path, count: int) -> None:
    ready = tmp_path / "ready"
    with supervising(counting(ready, count), NoDeadWorkers()) as (supervisor, process):
        turn_until(supervisor, ready.exists, "the worker to be ready")
        for _ in range(count):
            supervisor.request_stop()
        wait_until(lambda: supervisor.turn(time.monotonic()), "the end")
        assert not process.is_running


def test_one_signal_is_not_passed_on_twice(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    with supervising(counting(ready, 2), NoDeadWorkers()) as (supervisor, process):
        turn_until(supervisor, ready.exists, "the worker to be ready")
        supervisor.request_stop()
        for _ in range(20):
            assert not supervisor.turn(0.0)
            time.sleep(0.01)
        assert process.is_running


def test_a_worker_that_outlasts_its_grace_by_far_is_killed(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    with supervising(counting(ready, 99), NoDeadWorkers()) as (supervisor, _):
        turn_until(supervisor, ready.exists, "the worker to be ready")
        supervisor.request_stop()
        assert not supervisor.turn(0.0)
        assert not supervisor.turn(GRACE_S + STOP_MARGIN_S - 1)
        wait_until(lambda: supervisor.turn(GRACE_S + STOP_MARGIN_S), "the end")


def test_a_signal_while_it_waits_to_start_again_ends_it() -> None:
    with supervising([sys.executable, "-S", "-c", "raise SystemExit(3)"], NoDeadWorkers()) as (supervisor, process):
        supervisor.turn(time.monotonic())
        wait_until(lambda: not process.is_running, "the death")
        supervisor.turn(time.monotonic())
        supervisor.request_stop()
        assert supervisor.turn(time.monotonic())


# --- What a dead worker held ----------------------------------------------------------------------------------


def test_a_request_that_kills_its_worker_fails_alone_and_is_not_waited_for(
    connection: Redis, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    # given leases much longer than this test
    batch = submit(connection, "one", "two", "three die", "four", "five", "six")
    dead_workers = DeadWorkers(connection, ["mlxq"])
    variables = {"MLXQ_URL": redis_url, "MLXQ_MODEL": "fake", "MLXQ_MAX_NUM_SEQS": "4", "MLXQ_LEASE_S": "90"}

    with supervising(command(FakeWorker), dead_workers, variables) as (supervisor, _):
        turn_until(supervisor, lambda: batch.counts().num_ended == 6, "all answers")

    answers = {found.custom_id: found for found in batch.as_completed()}
    assert [name for name, found in answers.items() if found.status == "failed"] == ["r2"]
    assert answers["r2"].line["error"]["code"] == "worker_crashed"
    assert sorted(events(connection, batch).values()) == [1] * 6
    deaths = [record.message for record in caplog.records if "died with" in record.message]
    assert len(deaths) == 3
    assert all(batch.job_id("r2") in death for death in deaths)
    assert batch.job_id("r0") not in deaths[-1], "the last time it ran alone"


def a_dead_worker(connection: Redis, name: str, *, hostname: str = "", pid: int = 0, silent_s: float = 60.0) -> str:
    """A worker's entry, as RQ writes it, and one job that it has claimed; returns the job's id."""
    ended = subprocess.Popen([sys.executable, "-S", "-c", "pass"])
    ended.wait()
    job = enqueue_plain(connection)
    assert JobStore(connection, name, ["mlxq"]).claim(1, time.time()).jobs
    beat = time.strftime("%Y-%m-%dT%H:%M:%S.000000Z", time.gmtime(time.time() - silent_s))
    entry = {"hostname": hostname or socket.gethostname(), "pid": pid or ended.pid, "last_heartbeat": beat}
    connection.hset(f"rq:worker:{name}", mapping=entry)
    for workers in ("rq:workers", "rq:workers:mlxq"):
        connection.sadd(workers, f"rq:worker:{name}")
    return str(job.id)


def recover(connection: Redis) -> int:
    return JobStore(connection, "another", ["mlxq"]).recover_expired(time.time()).num_requeued


def test_what_a_reboot_left_behind_is_found_and_given_back_at_once(
    connection: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    job_id = a_dead_worker(connection, "left-behind")
    dead_workers = DeadWorkers(connection, ["mlxq"])

    dead_workers.release_silent()
    dead_workers.release_silent()

    assert [record.message for record in caplog.records] == [f"Worker left-behind died with 1 jobs in hand: {job_id}"]
    assert recover(connection) == 1
    assert status(connection, job_id) == "queued"
    assert Worker.all(connection=connection) == []
    assert not connection.exists("rq:worker:left-behind", "rq:worker:left-behind:executions")


STRANGER = "rq:worker:a-stranger"
WRITTEN_BY_STRANGERS: dict[str, Callable[[Redis], object]] = {
    "a worker of another type": lambda redis: (redis.delete(STRANGER), redis.set(STRANGER, "x")),
    "executions of another type": lambda redis: redis.set(f"{STRANGER}:executions", "x"),
    "workers of another type": lambda redis: redis.set("rq:workers:first", "x"),
    "a name that is no text": lambda redis: redis.sadd("rq:workers:mlxq", b"rq:worker:a\xff"),
    "no names of workers": lambda redis: redis.sadd("rq:workers:mlxq", "", "worker", "rq:worker:", "rq:job:x"),
    "a name of two lines": lambda redis: redis.sadd("rq:workers:mlxq", "rq:worker:a\nb"),
    "a host that is no text": lambda redis: redis.hset(STRANGER, "hostname", b"\xff"),
    "a machine that is no text": lambda redis: redis.hset(STRANGER, MACHINE, b"\xff"),
    "a pid that only looks like a number": lambda redis: redis.hset(STRANGER, "pid", "²"),
    "a pid beyond all pids": lambda redis: redis.hset(STRANGER, "pid", "9" * 40),
    "a beat that is no date": lambda redis: redis.hset(STRANGER, "last_heartbeat", "yesterday"),
}


@pytest.mark.parametrize("write", WRITTEN_BY_STRANGERS.values(), ids=WRITTEN_BY_STRANGERS)
def test_what_strangers_have_written_among_the_workers_costs_none_of_them(
    connection: Redis, write: Callable[[Redis], object]
) -> None:
    a_dead_worker(connection, "left-behind")
    connection.hset(STRANGER, mapping=connection.hgetall("rq:worker:left-behind"))
    connection.sadd("rq:workers:mlxq", STRANGER)
    write(connection)

    DeadWorkers(connection, ["first", "mlxq"]).release_silent()

    assert recover(connection) == 1


@pytest.mark.parametrize(
    "sign_of_life",
    [{"pid": os.getpid()}, {"hostname": "another-host"}],
    ids=["its process is there", "it is on another host"],
)
def test_a_worker_that_may_live_keeps_its_jobs(connection: Redis, sign_of_life: dict[str, Any]) -> None:
    a_dead_worker(connection, "alive", **sign_of_life)

    DeadWorkers(connection, ["mlxq"]).release_silent()

    assert recover(connection) == 0


def test_a_worker_may_live_that_has_not_been_silent_for_long(
    connection: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlxq_worker.supervision.dead_workers.SILENT_ELSEWHERE_S", 3600.0)
    dead_workers = DeadWorkers(connection, ["mlxq"])

    a_dead_worker(connection, "calm", silent_s=60.0)
    dead_workers.release_silent()
    assert recover(connection) == 0

    a_dead_worker(connection, "silent", silent_s=7200.0)
    dead_workers.release_silent()
    assert recover(connection) == 1


class Host:
    """What stands in Redis of a worker whose process isn't there, as a real one wrote it; `clock_s` is how far its
    host's clock is off."""

    def __init__(self, connection: Redis, *, machine: str | None = None, clock_s: float = 0.0) -> None:
        self._connection, self._clock_s = connection, clock_s
        config = WorkerConfig(model="fake")
        self._worker = FakeWorker(["mlxq"], connection=connection, serializer="json", config=config)
        self._worker.register_birth()
        self._presence = Presence(self._worker)
        self.job = enqueue_plain(connection)
        JobStore(connection, self._worker.name, ["mlxq"]).claim(1, time.time() + clock_s)
        ended = subprocess.Popen([sys.executable, "-S", "-c", "pass"])
        ended.wait()
        self._fields = {"pid": ended.pid} | ({} if machine is None else {MACHINE: machine})

    def beat(self, silent_s: float = 0.0) -> None:
        """Its last sign of life was so long ago."""
        self._presence.beat(WorkerStatus.BUSY, 0.0)
        beat = utcformat(datetime.fromtimestamp(time.time() + self._clock_s - silent_s, UTC))
        self._connection.hset(self._worker.key, mapping=self._fields | {"last_heartbeat": beat})
        self._connection.pexpire(self._worker.key, int((ENTRY_TTL_S - silent_s) * 1000))

    def close(self) -> None:
        self._presence.close()


@pytest.mark.parametrize("clock_s", [-3600.0, -30.0, 0.0, 30.0, 3600.0])
def test_hosts_of_one_name_do_not_take_each_other_for_dead_whatever_their_clocks_say(
    connection: Redis, clock_s: float
) -> None:
    """Not even those that were copied with their machine id, as long as they beat."""
    hosts = [Host(connection, machine="another", clock_s=clock_s), Host(connection, clock_s=clock_s)]
    hosts[0].beat(silent_s=20.0)  # which may be cut off
    hosts[1].beat(silent_s=1.0)

    DeadWorkers(connection, ["mlxq"]).release_silent()

    assert recover(connection) == 0
    assert [status(connection, host.job.id) for host in hosts] == ["started", "started"]
    for host in hosts:
        host.close()


@pytest.mark.parametrize("clock_s", [-3600.0, -30.0, 0.0, 30.0, 3600.0])
def test_a_dead_worker_of_this_machine_is_found_whatever_its_clock_said(connection: Redis, clock_s: float) -> None:
    host = Host(connection, clock_s=clock_s)
    host.beat(silent_s=8.0)

    DeadWorkers(connection, ["mlxq"]).release_silent()

    assert recover(connection) == 1
    host.close()


def test_rqs_clean_up_leaves_the_jobs_of_a_dead_worker_to_whoever_takes_them_over(connection: Redis) -> None:
    """A monitor that looks every few seconds would fail them while the next worker still loads its model."""
    job_id = a_dead_worker(connection, "left-behind")
    DeadWorkers(connection, ["mlxq"]).release("left-behind")

    StartedJobRegistry("mlxq", connection=connection, serializer="json").cleanup()

    assert status(connection, job_id) == "started"
    assert recover(connection) == 1


def test_a_queue_that_is_not_ours_is_left_alone(connection: Redis) -> None:
    a_dead_worker(connection, "left-behind")

    DeadWorkers(connection, ["other"]).release("left-behind")

    assert recover(connection) == 0


def test_a_worker_that_was_wrongly_taken_for_dead_keeps_its_jobs_by_its_next_beat(connection: Redis) -> None:
    job = enqueue_plain(connection)
    store = JobStore(connection, "alive", ["mlxq"])
    jobs = store.claim(1, time.time()).jobs

    DeadWorkers(connection, ["mlxq"]).release("alive")

    assert store.beat(jobs, time.time()) == ["held"]
    assert recover(connection) == 0
    assert status(connection, job.id) == "started"


def test_a_redis_that_is_away_costs_a_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    dead_workers = DeadWorkers(redis_at("redis://localhost:1"), ["mlxq"])

    dead_workers.release("gone")
    dead_workers.release_silent()

    assert "wait for their leases" in caplog.text
