"""Redis refuses one command, in every way in which it can, and everybody waits and goes on: workers and commands.

The table is each operation x each way in which its refusal arrives, and each of these gets every error of Redis, one
after the other. Whoever is refused in the middle of a pipeline says all of it again, so each case also asks that
nothing was done twice.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner
from redis import Redis
from redis.exceptions import ResponseError
from tests.support.fake_engine import FakeWorker
from tests.support.fake_worker import FakeWorker as AnsweringThread
from tests.support.io_rig import IoRig
from tests.support.queued_jobs import num_strikes, submit
from tests.support.redis_at import redis_at
from tests.support.redis_replies import REPLIES
from tests.support.refusing_redis import Command, Refusal, RefusingRedis
from tests.support.waiting import wait_until

from mlxq.cli import main
from mlxq.queue import scripts
from mlxq.queue.batch import Batch
from mlxq_worker.config import EngineConfig, WorkerConfig
from mlxq_worker.jobs.store import JobStore, script

NUM_JOBS = 3
ERRORS = {code: reply for code, reply in REPLIES.items() if code != "EXECABORT"}
Matches = Callable[[Command], bool]
Wrap = Callable[[str], str]


def runs(name: str) -> Matches:
    """A call of one of the worker's scripts."""
    sha = hashlib.sha1(script(name).encode()).hexdigest().encode()
    return lambda command: command[0] == b"EVALSHA" and command[1] == sha


def evaluates(name: str) -> Matches:
    """A call of one of the producers' scripts."""
    text = scripts.source(name).encode()
    return lambda command: command[0] == b"EVAL" and command[1] == text


def sends(name: bytes, key: bytes) -> Matches:
    return lambda command: command[0] == name and command[1].startswith(key)


def checks_health(command: Command) -> bool:
    """What redis-py sends on a new connection, and before a command after a quiet while."""
    return command[0] == b"PING"


def plain(error: str) -> str:
    return error


def in_script(error: str) -> str:
    return f"{error} script: 6a1f2e, on @user_script:12."


def in_old_script(error: str) -> str:
    return f"ERR Error running script (call to f_6a1f2e): @user_script:12: @user_script: 12: -{error}"


@dataclass(frozen=True, slots=True)
class Way:
    """How refusals arrive, and which."""

    wrap: Wrap = plain
    at_exec: bool = False
    errors: tuple[str, ...] = tuple(ERRORS.values())


PLAIN, IN_SCRIPT, IN_OLD_SCRIPT, AT_EXEC = Way(), Way(in_script), Way(in_old_script), Way(at_exec=True)
BY_SCRIPT = {"plain": PLAIN, "script": IN_SCRIPT, "script before 7": IN_OLD_SCRIPT}
BY_TRANSACTION = {"queued": PLAIN, "at EXEC": AT_EXEC}
ONE_BY_ONE = {f"plain, {code}": Way(errors=(error,)) for code, error in ERRORS.items()}
"""For what is sent once in each command."""


def table(operations: dict[str, tuple[Matches, dict[str, Way]]]) -> pytest.MarkDecorator:
    """Every operation x every way; of an operation in a transaction the ways are those of one."""
    cases = [
        pytest.param(matches, way, id=f"{operation}, {way_name}")
        for operation, (matches, ways) in operations.items()
        for way_name, way in ways.items()
    ]
    return pytest.mark.parametrize(("matches", "way"), cases)


@pytest.fixture
def refusing(redis_url: str) -> Iterator[RefusingRedis]:
    with RefusingRedis(redis_url) as refusing:
        yield refusing


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlxq.files.outages.FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr("mlxq.files.outages.MAX_PAUSE_S", 0.001)


def refuse(refusing: RefusingRedis, matches: Matches, way: Way) -> Refusal:
    """Refuse it with each error in turn."""
    return refusing.refuse(matches, [way.wrap(error) for error in way.errors], at_exec=way.at_exec)


# --- Workers --------------------------------------------------------------------------------------------------


@pytest.fixture
def rig(refusing: RefusingRedis) -> Iterator[IoRig]:
    rig = IoRig(refusing.url)
    yield rig
    rig.close()


@table(
    {
        "claim": (runs("claim"), BY_SCRIPT),
        "beat": (runs("beat"), BY_SCRIPT),
        "show presence": (runs("present"), BY_SCRIPT),
        "end": (runs("finish"), BY_SCRIPT),
        "look for the dead": (runs("recover"), BY_SCRIPT),
        "look for cancellations": (sends(b"HGET", b"mlxq:batch:"), {"in a pipeline": PLAIN}),
        "register again": (sends(b"SADD", b"rq:workers"), BY_TRANSACTION),
    }
)
def test_a_worker_waits_and_goes_on_and_no_job_gets_a_strike(
    connection: Redis, refusing: RefusingRedis, rig: IoRig, matches: Matches, way: Way
) -> None:
    batch = submit(connection, *["hello"] * NUM_JOBS)
    connection.delete(rig.worker.key)  # as a Redis does that has lost its data

    refusal = refuse(refusing, matches, way)
    rig.start()
    rig.decode(NUM_JOBS)
    wait_until(lambda: batch.counts().is_done, "the answers")
    wait_until(lambda: refusal.was_used_up, "the refusals")

    assert (batch.counts().num_finished, num_strikes(connection)) == (NUM_JOBS, 0)


@table({"recover": (runs("recover"), {"script": IN_SCRIPT})})
def test_a_dead_workers_jobs_get_one_strike_however_often_taking_them_is_refused(
    connection: Redis, refusing: RefusingRedis, rig: IoRig, matches: Matches, way: Way
) -> None:
    submit(connection, *["hello"] * NUM_JOBS)
    dead = JobStore(connection, "dead", ["mlxq"])
    dead.claim(NUM_JOBS, 0.0)
    dead.abandon("dead", 0.0)

    refusal = refuse(refusing, matches, way)
    rig.start()
    wait_until(lambda: num_strikes(connection), "the jobs to be taken back")

    assert (num_strikes(connection), refusal.was_used_up) == (NUM_JOBS, True)


@table({"give back": (runs("release"), BY_SCRIPT)})
def test_a_worker_that_ends_gives_each_job_back_once(
    connection: Redis, refusing: RefusingRedis, rig: IoRig, matches: Matches, way: Way
) -> None:
    batch = submit(connection, *["hello"] * NUM_JOBS)
    rig.start()
    wait_until(lambda: connection.zcard("rq:wip:mlxq") == NUM_JOBS, "the claim")

    refusal = refuse(refusing, matches, way)
    rig.close()

    assert {job.decode() for job in connection.lrange("rq:queue:mlxq", 0, -1)} == set(batch.job_ids())
    assert connection.llen("rq:queue:mlxq") == NUM_JOBS
    assert (num_strikes(connection), refusal.was_used_up) == (0, True)


@pytest.mark.parametrize("operation", ["claim", "beat", "finish"])
def test_a_worker_that_loses_a_right_gives_its_jobs_back_without_a_strike(
    connection: Redis, refusing: RefusingRedis, operation: str
) -> None:
    """It ends: whoever has taken the right away has to give it again, which may take long."""
    batch = submit(connection, *["hello"] * NUM_JOBS)
    rig = IoRig(refusing.url)
    rig.start()
    wait_until(lambda: connection.zcard("rq:wip:mlxq") == NUM_JOBS, "the claim")

    denied = f"NOPERM User default has no permissions to run the '{operation}' command"
    refusal = refusing.refuse(runs(operation), [denied] * 99)
    if operation == "finish":
        rig.decode(NUM_JOBS)
    wait_until(lambda: refusal.num_refused, "the refusal")
    with pytest.raises(ResponseError, match="no permissions"):
        rig.close()

    assert {job.decode() for job in connection.lrange("rq:queue:mlxq", 0, -1)} == set(batch.job_ids())
    assert (connection.llen("rq:queue:mlxq"), num_strikes(connection)) == (NUM_JOBS, 0)


@table({"birth": (sends(b"HSET", b"rq:worker:"), BY_TRANSACTION)})
def test_a_worker_is_born_once_redis_can_register_it(
    connection: Redis, refusing: RefusingRedis, matches: Matches, way: Way
) -> None:
    batch = submit(connection, *["hello"] * NUM_JOBS)
    config = WorkerConfig(model="fake", engine=EngineConfig(max_num_seqs=4))
    refusal = refuse(refusing, matches, way)

    with redis_at(refusing.url) as redis:
        FakeWorker(["mlxq"], connection=redis, serializer="json", config=config).work(burst=True)

    assert (batch.counts().num_finished, refusal.was_used_up) == (NUM_JOBS, True)


# --- Commands -------------------------------------------------------------------------------------------------


def mlxq(url: str, *arguments: object) -> str:
    """What a command prints, and it must end well."""
    result = CliRunner().invoke(main, [*map(str, arguments), "--url", url])
    assert result.exit_code == 0, result.output
    return result.stdout


def answered(connection: Redis, num_jobs: int = NUM_JOBS) -> Batch:
    batch = submit(connection, *["hello"] * num_jobs)
    config = WorkerConfig(model="fake", engine=EngineConfig(max_num_seqs=4))
    FakeWorker(["mlxq"], connection=connection, serializer="json", config=config).work(burst=True)
    return batch


@table(
    {
        "connect": (checks_health, ONE_BY_ONE),
        "look at what is there": (sends(b"HMGET", b"mlxq:batch:"), {"plain": PLAIN}),
        "add": (evaluates("enqueue"), BY_SCRIPT),
        "seal": (sends(b"HSET", b"mlxq:batch:"), BY_TRANSACTION),
    }
)
def test_enqueuing_goes_on_and_adds_each_request_once(
    connection: Redis, refusing: RefusingRedis, tmp_path: Path, matches: Matches, way: Way
) -> None:
    lines = [json.dumps({"prompt": "hello", "custom_id": f"r{i}"}) for i in range(NUM_JOBS)]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))

    refusal = refuse(refusing, matches, way)
    batch_id = mlxq(refusing.url, "enqueue", "-i", tmp_path / "in.jsonl").strip()

    counts = Batch(connection, batch_id, "mlxq").counts()
    assert (counts.total, counts.sealed, connection.llen("rq:queue:mlxq")) == (NUM_JOBS, True, NUM_JOBS)
    assert refusal.was_used_up


@table(
    {
        "connect": (checks_health, ONE_BY_ONE),
        "find the batch": (sends(b"HGET", b"mlxq:batch:"), {"plain": PLAIN}),
        "count": (sends(b"HGETALL", b"mlxq:batch:"), {"plain": PLAIN}),
        "read what has ended": (lambda command: command[0] == b"XREAD", {"in a pipeline": PLAIN}),
        "fetch answers": (evaluates("answers"), BY_SCRIPT),
    }
)
def test_collecting_goes_on_and_writes_each_answer_once(
    connection: Redis, refusing: RefusingRedis, tmp_path: Path, matches: Matches, way: Way
) -> None:
    batch = answered(connection)

    refusal = refuse(refusing, matches, way)
    mlxq(refusing.url, "collect", batch.id, "-o", tmp_path / "out.jsonl")

    answers = [json.loads(line)["custom_id"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert sorted(answers) == [f"r{i}" for i in range(NUM_JOBS)]
    assert refusal.was_used_up


@table(
    {
        "read what has ended": (lambda command: command[0] == b"XREAD", {"in a pipeline": PLAIN}),
        "delete answers at its end": (evaluates("forget"), BY_SCRIPT),
    }
)
def test_a_run_goes_on_to_its_very_end_and_leaves_nothing_behind(
    connection: Redis, redis_url: str, refusing: RefusingRedis, tmp_path: Path, matches: Matches, way: Way
) -> None:
    (tmp_path / "in.jsonl").write_text('{"prompt": "hello"}\n' * NUM_JOBS)

    refusal = refuse(refusing, matches, way)
    with AnsweringThread(redis_url):
        mlxq(refusing.url, "run", "-i", tmp_path / "in.jsonl", "-o", tmp_path / "out.jsonl", "--workers", 0)

    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == NUM_JOBS
    assert (refusal.was_used_up, connection.keys("rq:job:*")) == (True, [])


@table(
    {
        "connect": (checks_health, ONE_BY_ONE),
        "ask for it": (evaluates("set_flag"), BY_SCRIPT),
        "take out": (evaluates("take_out"), BY_SCRIPT),
        "end what waits": (evaluates("end_queued"), BY_SCRIPT),
        "look at what waits": (sends(b"HMGET", b"rq:job:"), {"in a pipeline": PLAIN}),
    }
)
def test_cancelling_goes_on_and_ends_each_job_once(
    connection: Redis, refusing: RefusingRedis, matches: Matches, way: Way
) -> None:
    batch = submit(connection, *["hello"] * NUM_JOBS)

    refusal = refuse(refusing, matches, way)
    mlxq(refusing.url, "cancel", batch.id)

    counts = batch.counts()
    assert (counts.cancelled, counts.num_cancelled, connection.llen("rq:queue:mlxq")) == (True, NUM_JOBS, 0)
    assert refusal.was_used_up


@table({"stop": (evaluates("stop_running"), BY_SCRIPT)})
def test_cancelling_a_running_job_goes_on(
    connection: Redis, refusing: RefusingRedis, matches: Matches, way: Way
) -> None:
    batch = submit(connection, "hello")
    [job_id] = batch.job_ids()
    store = JobStore(connection, "w", ["mlxq"])
    claimed = store.claim(1, 0.0).jobs

    refusal = refuse(refusing, matches, way)
    mlxq(refusing.url, "cancel", job_id)

    assert (store.beat(claimed, 0.0), refusal.was_used_up) == (["canceled"], True)


@table(
    {
        "connect": (checks_health, ONE_BY_ONE),
        "list": (sends(b"ZREVRANGE", b"mlxq:batches"), {"in a pipeline": PLAIN}),
        "count": (sends(b"HGETALL", b"mlxq:batch:"), {"in a pipeline": PLAIN}),
        "measure the queue": (evaluates("queue_state"), {"in a pipeline, by a script": PLAIN}),
    }
)
def test_the_status_comes_once_redis_can_tell_it(
    connection: Redis, refusing: RefusingRedis, matches: Matches, way: Way
) -> None:
    batch = submit(connection, *["hello"] * NUM_JOBS)

    refusal = refuse(refusing, matches, way)
    report = json.loads(mlxq(refusing.url, "status", "--json"))

    assert [(each["batch_id"], each["total"]) for each in report["batches"]] == [(batch.id, NUM_JOBS)]
    assert refusal.was_used_up
