"""`Consumer` turn by turn on a clock that the tests move, with a real Redis and no decode thread."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from queue import Empty
from typing import Any
from unittest.mock import Mock

import pytest
from redis import Redis
from redis import exceptions as redis_errors
from rq.job import Job
from rq.registry import StartedJobRegistry
from tests.support import io_rig
from tests.support.fake_engine import FakeEngine, FakePreparer, FakeWorker
from tests.support.queued_jobs import answer, enqueue_plain, events, queue_of, status, submit
from tests.support.row_results import row_result
from tests.support.row_specs import name_of
from tests.support.waiting import wait_until

from mlxq import keys
from mlxq.contract import Request, StopDetails, StopType
from mlxq_worker.config import EngineConfig, WorkerConfig
from mlxq_worker.engine.api import RowError, RowId, RowSpec
from mlxq_worker.jobs.claimed import MAX_DATA_BYTES
from mlxq_worker.jobs.consumer import Consumer
from mlxq_worker.jobs.leases import COME_BACK_S
from mlxq_worker.jobs.presence import Presence
from mlxq_worker.jobs.store import Claim, JobStore, Recovered
from mlxq_worker.messages import Admit, Channel, Drained, Ready, RowEnded, ToDecode

LEASE_S = 90.0
START = 1_700_000_000.0


class Rig:
    """A consumer whose model is loaded, and the end of its channel where the decode thread would be."""

    def __init__(self, connection: Redis, **config: float) -> None:
        complete = WorkerConfig(model="fake", lease_s=LEASE_S, engine=EngineConfig(max_num_seqs=4), **config)
        self._worker = FakeWorker(["mlxq"], connection=connection, serializer="json", config=complete)
        self._worker.register_birth()
        self.name = self._worker.name
        self._presence = Presence(self._worker)
        self._channel = Channel.open()
        store = JobStore(connection, self._worker.name, complete.queues, lease_s=LEASE_S, lease_clock="caller")
        self.consumer = Consumer(store, self._presence, self._channel, complete)
        self.consumer.receive(Ready(FakePreparer(), 4), START)

    def decode(self, now: float) -> None:
        """Decode what the decode thread has been told to, and write how it ended."""
        engine = FakeEngine()
        for message in self.sent():
            if isinstance(message, Admit):
                engine.admit(*message.specs)
        while engine.rows:
            for result in engine.step(now).finished:
                self.consumer.receive(RowEnded(result), now)
        self.consumer.turn(now)

    def sent(self) -> list[ToDecode]:
        """What the decode thread has been told since the last look."""
        messages: list[ToDecode] = []
        while True:
            try:
                messages.append(self._channel.to_decode.get_nowait())
            except Empty:
                return messages

    def close(self) -> None:
        self._presence.close()


@pytest.fixture(autouse=True)
def uptime(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """For how many seconds Redis has been running: since long ago, unless a test says otherwise."""
    seconds = [1e6]
    monkeypatch.setattr(JobStore, "uptime_s", lambda _: seconds[0])
    return seconds


@pytest.fixture
def ours(connection: Redis) -> Iterator[Rig]:
    ours = Rig(connection)
    yield ours
    ours.close()


@pytest.fixture
def neighbour(connection: Redis) -> Iterator[Rig]:
    neighbour = Rig(connection)
    yield neighbour
    neighbour.close()


def admitted(messages: list[ToDecode]) -> list[str]:
    return [name_of(spec.row_id) for message in messages if isinstance(message, Admit) for spec in message.specs]


def strikes(connection: Redis, job_id: str) -> int:
    return int(connection.hget(f"rq:job:{job_id}", "mlxq_strikes") or 0)


def live(rig: Rig, since: float, until: float) -> None:
    """A turn every second, the one at `until` included."""
    for now in range(int(since), int(until) + 1):
        rig.consumer.turn(now)


def test_a_row_that_takes_longer_than_its_lease_stays_with_its_worker(
    connection: Redis,
    ours: Rig,
    neighbour: Rig,
) -> None:
    job = enqueue_plain(connection)
    ours.consumer.turn(START)

    for now in range(int(START), int(START + 3 * LEASE_S), 20):
        ours.consumer.turn(now)
        neighbour.consumer.turn(now)

    assert (status(connection, job.id), strikes(connection, job.id)) == ("started", 0)
    assert (len(admitted(ours.sent())), admitted(neighbour.sent())) == (1, [])


def test_the_jobs_of_a_worker_that_is_gone_are_taken_over_once_their_leases_have_run_out(
    connection: Redis,
    ours: Rig,
    neighbour: Rig,
) -> None:
    job = enqueue_plain(connection)
    ours.consumer.turn(START)

    live(neighbour, START, START + LEASE_S - 1)
    too_early = admitted(neighbour.sent())
    live(neighbour, START + LEASE_S, START + LEASE_S + 13)

    assert (too_early, len(admitted(neighbour.sent()))) == ([], 1)
    assert strikes(connection, job.id) == 1


def test_the_answer_of_a_worker_that_was_taken_for_dead_comes_too_late_and_is_counted(
    connection: Redis,
    ours: Rig,
    neighbour: Rig,
) -> None:
    # given a job that went to a neighbour and was ended there while its first worker was frozen
    batch = submit(connection, "hello")
    for seconds in range(2):
        ours.consumer.turn(START + seconds)
    live(neighbour, START, START + LEASE_S + 13)
    neighbour.decode(START + LEASE_S + 14)

    ours.decode(START + LEASE_S + 15)

    assert [
        (consumer.num_ended, consumer.num_late) for consumer in (neighbour.consumer.outbox, ours.consumer.outbox)
    ] == [(1, 0), (0, 1)]
    assert list(events(connection, batch).values()) == [1]
    assert batch.counts().num_finished == 1


def test_after_an_outage_the_other_workers_get_time_to_extend_their_leases(
    connection: Redis,
    ours: Rig,
    neighbour: Rig,
) -> None:
    job = enqueue_plain(connection)
    ours.consumer.turn(START)
    back = START + LEASE_S + 10

    neighbour.consumer.reconnected(back, away_s=15)
    neighbour.consumer.turn(back)
    ours.consumer.reconnected(back + 12, away_s=27)
    ours.consumer.turn(back + 12)
    neighbour.consumer.turn(back + COME_BACK_S + 1)

    assert (status(connection, job.id), strikes(connection, job.id)) == ("started", 0)


def test_a_worker_that_starts_after_an_outage_gives_the_others_the_same_time(
    connection: Redis,
    ours: Rig,
    neighbour: Rig,
    uptime: list[float],
) -> None:
    job = enqueue_plain(connection)
    ours.consumer.turn(START)
    back = START + LEASE_S + 10

    uptime[0] = 1
    neighbour.consumer.turn(back)
    early = strikes(connection, job.id)
    uptime[0] = COME_BACK_S
    live(neighbour, back + 1, back + COME_BACK_S)

    assert (early, strikes(connection, job.id)) == (0, 1)


def test_the_jobs_of_a_worker_that_is_known_to_be_dead_are_taken_over_in_any_case(
    connection: Redis,
    ours: Rig,
    neighbour: Rig,
    uptime: list[float],
) -> None:
    job = enqueue_plain(connection)
    ours.consumer.turn(START)
    uptime[0] = 1

    JobStore(connection, "supervisor", ["mlxq"]).abandon(ours.name, START + LEASE_S + 10)
    neighbour.consumer.turn(START + LEASE_S + 10)

    assert strikes(connection, job.id) == 1


def test_the_jobs_of_a_worker_that_does_not_come_back_are_taken_over_later(
    connection: Redis,
    ours: Rig,
    neighbour: Rig,
) -> None:
    job = enqueue_plain(connection)
    ours.consumer.turn(START)
    back = START + LEASE_S + 10

    neighbour.consumer.reconnected(back, away_s=15)
    for seconds in range(int(COME_BACK_S) + 2):
        neighbour.consumer.turn(back + seconds)

    assert strikes(connection, job.id) == 1


def test_a_connection_that_breaks_again_and_again_keeps_nobody_from_taking_over_jobs(
    connection: Redis,
    ours: Rig,
    neighbour: Rig,
) -> None:
    job = enqueue_plain(connection)
    ours.consumer.turn(START)
    expired = START + LEASE_S + 1
    live(neighbour, START, START + LEASE_S - 1)

    for seconds in range(0, 20, 5):
        neighbour.consumer.reconnected(expired + seconds, away_s=0.2)
        neighbour.consumer.turn(expired + seconds)
        neighbour.consumer.turn(expired + seconds + 4)

    assert strikes(connection, job.id) == 1


@pytest.mark.parametrize("has_idled", [True, False], ids=["has idled", "has just started"])
def test_after_a_while_in_which_nobody_could_beat_nobody_takes_the_jobs_of_those_who_come_back(
    connection: Redis, ours: Rig, neighbour: Rig, has_idled: bool
) -> None:
    # given a neighbour that knows of no outage, for it tried nothing meanwhile
    job = enqueue_plain(connection)
    ours.consumer.turn(START)
    if has_idled:
        neighbour.consumer.turn(START)
    back = START + 2 * LEASE_S

    live(neighbour, back, back + COME_BACK_S - 2)
    ours.consumer.turn(back + COME_BACK_S - 1)
    live(neighbour, back + COME_BACK_S, back + COME_BACK_S + 20)

    assert (status(connection, job.id), strikes(connection, job.id)) == ("started", 0)


def test_who_does_not_come_back_after_such_a_while_is_dead(connection: Redis, ours: Rig, neighbour: Rig) -> None:
    job = enqueue_plain(connection)
    ours.consumer.turn(START)
    back = START + 2 * LEASE_S

    live(neighbour, back, back + COME_BACK_S - 1)
    early = strikes(connection, job.id)
    live(neighbour, back + COME_BACK_S, back + COME_BACK_S + 20)

    assert (early, strikes(connection, job.id)) == (0, 1)


def test_a_burst_is_not_over_while_jobs_may_have_to_be_taken_over(connection: Redis, ours: Rig) -> None:
    job = enqueue_plain(connection)
    ours.consumer.turn(START)
    neighbour, back = Rig(connection, burst=True), START + 2 * LEASE_S

    live(neighbour, back, back + COME_BACK_S - 1)
    is_over = Drained() in neighbour.sent()
    live(neighbour, back + COME_BACK_S, back + COME_BACK_S + 20)
    neighbour.close()

    assert (is_over, strikes(connection, job.id)) == (False, 1)


def test_what_has_ended_and_cannot_be_written_stays_ours(connection: Redis, ours: Rig, neighbour: Rig) -> None:
    # given an answer whose writing is refused for longer than a lease, while everything else goes on
    batch = submit(connection, "hello")
    live(ours, START, START + 1)
    refused = redis_errors.OutOfMemoryError("command not allowed when used memory > 'maxmemory'.")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JobStore, "end", Mock(side_effect=refused))
        with pytest.raises(redis_errors.OutOfMemoryError):
            ours.decode(START + 2)
        for now in range(int(START) + 3, int(START + 2 * LEASE_S)):
            with suppress(redis_errors.OutOfMemoryError):
                ours.consumer.turn(now)
            neighbour.consumer.turn(now)

    ours.consumer.turn(START + 2 * LEASE_S)

    assert (ours.consumer.outbox.num_ended, neighbour.consumer.outbox.num_ended) == (1, 0)
    assert strikes(connection, *batch.job_ids()) == 0


def ended(row_id: RowId, kind: StopType, error_code: RowError | None = None) -> RowEnded:
    details = StopDetails(type=kind)
    return RowEnded(row_result(row_id=row_id, stop_details=details, error_code=error_code))


@pytest.mark.parametrize("how", ["Redis was away", "we were frozen"])
def test_jobs_that_rqs_clean_up_failed_meanwhile_are_ours_again_with_what_had_ended(
    connection: Redis, ours: Rig, how: str
) -> None:
    # given one job that ended while nobody could be told, and one whose row goes on
    jobs = [enqueue_plain(connection) for _ in range(2)]
    ours.consumer.turn(START)
    ours.consumer.turn(START + 1)
    first, second = (spec.row_id for message in ours.sent() if isinstance(message, Admit) for spec in message.specs)
    ours.consumer.receive(ended(first, "max_tokens"), START + 2)

    # when somebody has cleaned up before we are back
    StartedJobRegistry(queue=queue_of(connection)).cleanup(timestamp=START + LEASE_S + 5)
    assert [status(connection, job.id) for job in jobs] == ["failed", "failed"]
    if how == "Redis was away":
        ours.consumer.reconnected(START + LEASE_S + 6, LEASE_S)
    ours.consumer.turn(START + LEASE_S + 6)

    # then both end as answered
    assert [status(connection, job.id) for job in jobs] == ["finished", "started"]
    ours.consumer.receive(ended(second, "max_tokens"), START + LEASE_S + 7)
    ours.consumer.turn(START + LEASE_S + 7)
    assert status(connection, jobs[1].id) == "finished"
    assert connection.zcard("rq:failed:mlxq") == 0
    assert (ours.consumer.outbox.num_ended, ours.consumer.outbox.num_late) == (2, 0)


def test_a_job_that_somebody_else_failed_is_not_taken_back(connection: Redis, ours: Rig, neighbour: Rig) -> None:
    # given a job that a neighbour took over, and failed
    job = enqueue_plain(connection, prompt="nan")
    ours.consumer.turn(START)
    for seconds in range(10, 60, 2):
        neighbour.consumer.turn(START + LEASE_S + seconds)
    neighbour.decode(START + LEASE_S + 60)
    assert status(connection, job.id) == "failed"

    ours.consumer.reconnected(START + LEASE_S + 61, LEASE_S)
    ours.consumer.turn(START + LEASE_S + 61)

    assert status(connection, job.id) == "failed"
    assert connection.zcard("rq:wip:mlxq") == 0


@pytest.mark.parametrize(
    ("job_timeout", "own", "expected"),
    [(7, None, 7.0), (7, 3.0, 3.0), (7, 30.0, 7.0), (-1, 30.0, 30.0), (-1, None, None)],
)
def test_a_row_has_no_longer_than_rqs_job_timeout(
    connection: Redis, ours: Rig, job_timeout: int, own: float | None, expected: float | None
) -> None:
    body = {"prompt": "hello"} | ({} if own is None else {"timeout": own})
    line = {"custom_id": "a", "url": "/v1/completions", "body": body}
    queue_of(connection).enqueue(keys.FUNCTION_NAME, line, job_timeout=job_timeout)

    ours.consumer.turn(START)
    ours.consumer.turn(START + 1)

    [spec] = [spec for message in ours.sent() if isinstance(message, Admit) for spec in message.specs]
    assert spec.timeout_s == expected


def test_a_job_timeout_that_can_not_be_honoured_fails_its_job_by_name(connection: Redis, ours: Rig) -> None:
    batch = submit(connection, "hello")
    connection.hset(f"rq:job:{batch.job_id('r0')}", "timeout", "soon")

    for seconds in range(3):
        ours.consumer.turn(START + seconds)

    [found] = batch.as_completed()
    assert found.line["response"]["body"]["error"]["param"] == "job_timeout"


# --- Bytes ----------------------------------------------------------------------------------------------------


def enqueue_heavy(connection: Redis, num_bytes: int) -> Job:
    """A job whose data doesn't shrink when RQ compresses it."""
    job = enqueue_plain(connection)
    connection.hset(job.key, "data", random.Random(num_bytes).randbytes(num_bytes))
    return job


def test_jobs_of_sixty_megabytes_are_claimed_one_at_a_time_and_their_neighbours_with_them(
    connection: Redis, ours: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    claimed: list[list[int]] = []
    claim = JobStore.claim

    def watched(self: JobStore, *args: Any, **options: Any) -> Claim:
        found = claim(self, *args, **options)
        claimed.append([job.num_data_bytes for job in found.jobs])
        return found

    monkeypatch.setattr(JobStore, "claim", watched)
    heavy = [enqueue_heavy(connection, 60_000_000) for _ in range(4)]
    small = [enqueue_plain(connection) for _ in range(3)]

    for seconds in range(20):
        ours.consumer.turn(START + seconds)
    ours.decode(START + 21)

    assert [status(connection, job.id) for job in heavy] == ["failed"] * 4  # it is no JSON
    assert [status(connection, job.id) for job in small] == ["finished"] * 3
    assert max(map(sum, claimed)) < 2 * 60_000_000
    assert sum(60_000_000 in sizes for sizes in claimed) == 4


class SlowPreparer(FakePreparer):
    """Takes longer than two leases for what isn't short; `look` is what others see then."""

    def __init__(self, connection: Redis, look: Callable[[], object]) -> None:
        self._redis = connection
        self._look = look
        self.seen: list[object] = []

    def prepare(self, request: Request, request_id: str) -> tuple[RowSpec, ...]:
        if len(str(request.prompt)) > 100:
            first = self._lease_end()
            wait_until(lambda: self._lease_end() > first + 2 * io_rig.LEASE_S, "beats")
            self.seen.append(self._look())
        return super().prepare(request, request_id)

    def _lease_end(self) -> float:
        return min(end for _, end in self._redis.zrange("rq:wip:mlxq", 0, -1, withscores=True))


def test_a_job_that_takes_longer_than_a_lease_to_prepare_costs_nobody_its_lease(
    connection: Redis, redis_url: str
) -> None:
    jobs = [enqueue_plain(connection), enqueue_plain(connection, random.Random(0).randbytes(30_000).hex())]
    neighbour = JobStore(connection, "neighbour", ["mlxq"], lease_s=io_rig.LEASE_S)
    preparer = SlowPreparer(connection, lambda: neighbour.recover_expired(time.time()))
    rig = io_rig.IoRig(redis_url)

    rig.start(preparer)
    rig.decode(2)
    rig.close()

    assert preparer.seen == [Recovered(num_requeued=0, num_excused=0, struck_out=[], num_doubtful=0)]
    assert [status(connection, job.id) for job in jobs] == ["finished", "finished"]


def test_the_data_of_a_job_that_has_too_much_stays_in_redis(connection: Redis, ours: Rig) -> None:
    heavy = enqueue_heavy(connection, MAX_DATA_BYTES + 1)
    neighbour = enqueue_plain(connection)
    before = sent_bytes(connection)

    for seconds in range(3):
        ours.consumer.turn(START + seconds)
    ours.decode(START + 4)

    assert sent_bytes(connection) - before < 1_000_000
    assert answer(connection, heavy.id)["response"]["body"]["error"]["code"] == "job_too_large"
    assert status(connection, neighbour.id) == "finished"


@pytest.mark.parametrize("field", ["meta", "enqueued_at", "timeout", "webhooks"])
def test_what_stands_beside_the_data_may_be_of_any_size(connection: Redis, ours: Rig, field: str) -> None:
    job = enqueue_plain(connection)
    connection.hset(job.key, field, b"7" * 10_000_000)
    before = sent_bytes(connection)

    for seconds in range(3):
        ours.consumer.turn(START + seconds)
    ours.decode(START + 4)

    assert connection.hget(job.key, "status") in (b"finished", b"failed")
    assert sent_bytes(connection) - before < 1_000_000


def sent_bytes(connection: Redis) -> int:
    return int(connection.info("stats")["total_net_output_bytes"])


def test_a_row_that_dies_cancels_no_other_and_the_first_dead_one_says_how_its_job_ends(
    connection: Redis,
    ours: Rig,
) -> None:
    job = enqueue_plain(connection, "rows=3")
    ours.consumer.turn(START + 1)  # claims
    ours.consumer.turn(START + 1)  # prepares
    [admitted] = [message for message in ours.sent() if isinstance(message, Admit)]
    first, second, third = (spec.row_id for spec in admitted.specs)

    ours.consumer.receive(ended(second, "error", "no_token_allowed"), START + 1)
    ours.consumer.receive(ended(first, "error", "nan_logits"), START + 1)
    in_between = (ours.sent(), status(connection, job.id))
    ours.consumer.receive(ended(third, "error", "no_token_allowed"), START + 1)
    ours.consumer.turn(START + 2)

    assert in_between == ([], "started")
    assert answer(connection, job.id)["error"]["code"] == "nan_logits"
