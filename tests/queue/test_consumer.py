"""`Consumer` turn by turn on a clock that the tests move, with a real Redis and no decode thread."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from queue import Empty
from unittest.mock import Mock

import pytest
from redis import Redis
from redis import exceptions as redis_errors
from tests.support.fake_engine import FakeEngine, FakePreparer, FakeWorker
from tests.support.queued_jobs import answer, enqueue_plain, events, status, submit
from tests.support.row_results import row_result
from tests.support.row_specs import name_of

from mlxq.contract import StopDetails, StopType
from mlxq_worker.config import EngineConfig, WorkerConfig
from mlxq_worker.engine.api import RowError, RowId
from mlxq_worker.jobs.consumer import Consumer
from mlxq_worker.jobs.leases import COME_BACK_S
from mlxq_worker.jobs.presence import Presence
from mlxq_worker.jobs.store import JobStore
from mlxq_worker.messages import Admit, Cancel, Channel, Drained, Ready, RowEnded, ToDecode

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
        self.consumer.receive(Ready(FakePreparer()), START)

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


def test_the_first_row_that_fails_cancels_the_jobs_others_and_says_how_it_ends(
    connection: Redis,
    ours: Rig,
) -> None:
    job = enqueue_plain(connection, "rows=3")
    ours.consumer.turn(START + 1)  # claims
    ours.consumer.turn(START + 1)  # prepares
    [admitted] = [message for message in ours.sent() if isinstance(message, Admit)]
    first, second, third = (spec.row_id for spec in admitted.specs)

    ours.consumer.receive(ended(first, "error", "nan_logits"), START + 1)
    [cancel] = ours.sent()
    ours.consumer.receive(ended(second, "error", "no_token_allowed"), START + 1)
    ours.consumer.receive(ended(third, "cancelled"), START + 1)
    ours.consumer.turn(START + 2)

    assert isinstance(cancel, Cancel)
    assert set(cancel.row_ids) == {second, third}
    assert answer(connection, job.id)["error"]["code"] == "nan_logits"
