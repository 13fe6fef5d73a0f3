"""Any interleaving of two workers, a producer and time: no job is lost, none has two ends, and the books agree.

A state machine plays claims, beats, ends, retries, cancellations, crashes, lost replies and expiring leases against a
real Redis, on a clock that only the test moves, and says before each call what must come of it. The scripts are also
played with a line of theirs broken, to see that the machine notices.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from redis import Redis
from tests.support.queued_jobs import answer, events, status
from tests.support.thorough import sample_of

from mlxq import keys
from mlxq.queue.client import Client
from mlxq.requests.openai import text_request
from mlxq_worker.jobs import endings, store
from mlxq_worker.jobs.claimed import ClaimedJob
from mlxq_worker.jobs.endings import Ending
from mlxq_worker.jobs.store import FIRST_DELAY_S, MAX_STRIKES, SUSPECT_STRIKES, JobStore, LeaseState

pytestmark = [pytest.mark.slow, pytest.mark.thorough]

LEASE_S = 90.0
DELAYED = keys.delayed(keys.DEFAULT_QUEUE)

# Not shrunk: that takes minutes. Ask for it with `Phase.shrink` when a story is hard to read.
SETTINGS = settings(
    max_examples=sample_of(400, 40),
    stateful_step_count=30,
    deadline=None,
    derandomize=True,
    phases=(Phase.generate,),
    database=None,
    suppress_health_check=list(HealthCheck),
)
HUNT = settings(SETTINGS, max_examples=600, print_blob=False)
"""For broken scripts: the first failure will do, however long its story."""


@dataclass
class Expected:
    """What the test knows about one job. `owner` is the execution that may write its end, `ended_by` the one that
    has."""

    strikes: int = 0
    owner: str | None = None
    worker: str | None = None
    lease_end: float = 0.0
    due: float | None = None
    is_cancelled: bool = False
    outcome: str | None = None
    ended_by: str | None = None
    note: str = ""

    @property
    def is_leased(self) -> bool:
        return self.owner is not None and not self.is_cancelled

    def end(self, outcome: str, note: str = "") -> None:
        self.outcome = "cancelled" if self.is_cancelled else outcome
        self.note = note
        self.ended_by = self.owner
        self.let_go()

    def let_go(self) -> None:
        self.owner = self.worker = None


@dataclass
class Worker:
    """A worker process as it sees itself: `hand` is what it believes to hold."""

    name: str
    store: JobStore = field(repr=False)
    hand: list[ClaimedJob] = field(default_factory=list, repr=False)


holds_jobs = precondition(lambda self: any(worker.hand for worker in self.workers.values()))
"""So that most of what happens matters."""
has_owners = precondition(lambda self: any(job.owner for job in self.jobs.values()))
WORKERS = st.sampled_from(["a", "b"])
PLACES = st.integers(0, 5)


class Fleet(RuleBasedStateMachine):
    """Two workers, one batch. `redis` and `script`, which gives the workers their scripts, are set by `play`."""

    redis: Redis
    script: Callable[[str], str]

    def __init__(self) -> None:
        super().__init__()
        self.redis.flushall()
        self.now = time.time()  # RQ, too, looks at what has expired, by the real clock
        self.batch = Client(self.redis).open("batch")
        self.jobs: dict[str, Expected] = {}
        self.num_starts = 0
        self.workers = {place: self.new_worker(place) for place in "ab"}
        self.ghosts: list[tuple[Worker, ClaimedJob]] = []

    @initialize()
    def begin(self) -> None:
        self.submit(count=4)
        for place in self.workers:
            self.claim(place, limit=1, is_heard=True)

    def new_worker(self, place: str) -> Worker:
        self.num_starts += 1
        name = f"{place}{self.num_starts}"
        store = JobStore(
            self.redis, name, [keys.DEFAULT_QUEUE], lease_s=LEASE_S, lease_clock="caller", script=self.script
        )
        return Worker(name, store)

    # --- What can happen --------------------------------------------------------------------------------------

    @precondition(lambda self: sum(not (job.owner or job.outcome) for job in self.jobs.values()) < 3)
    @rule(count=st.integers(1, 4))
    def submit(self, count: int) -> None:
        first = len(self.jobs)
        lines = [text_request("hello", custom_id=f"r{number}") for number in range(first, first + count)]
        assert self.batch.add(lines) == count
        self.jobs |= {self.batch.job_id(line.request.custom_id): Expected() for line in lines}

    @rule(place=WORKERS, limit=st.integers(1, 4), is_heard=st.booleans())
    def claim(self, place: str, limit: int, is_heard: bool) -> None:
        worker = self.workers[place]
        if any(job.strikes >= SUSPECT_STRIKES for job in worker.hand):
            return  # a worker that runs a suspect asks for nothing
        for expected in self.jobs.values():
            if expected.due is not None and expected.due <= self.now:
                expected.due = None
        taken = worker.store.claim(limit, self.now, num_held=len(worker.hand)).jobs
        assert len(taken) <= limit
        assert len({job.job_id for job in taken}) == len(taken)
        for job in taken:
            expected = self.jobs[job.job_id]
            assert (expected.owner, expected.outcome, expected.due) == (None, None, None)
            assert expected.strikes == job.strikes
            assert job.strikes < SUSPECT_STRIKES or len(taken) == 1 > len(worker.hand), "suspects run alone"
            self.hand_over(job, worker)
        if is_heard:
            worker.hand += taken

    @holds_jobs
    @rule(place=WORKERS)
    def beat(self, place: str) -> None:
        worker = self.workers[place]
        states = worker.store.beat(worker.hand, self.now) if worker.hand else []
        assert states == [self.state_of(job) for job in worker.hand]
        for job, state in zip(worker.hand, states, strict=True):
            expected = self.jobs[job.job_id]
            if state == "held" and expected.lease_end - self.now < LEASE_S * 2 / 3:
                expected.lease_end = self.now + LEASE_S
        worker.hand = [job for job, state in zip(worker.hand, states, strict=True) if state != "lost"]

    @holds_jobs
    @rule(place=WORKERS, index=PLACES, succeeds=st.booleans(), is_repeated=st.booleans())
    def end(self, place: str, index: int, succeeds: bool, is_repeated: bool) -> None:
        worker = self.workers[place]
        if worker.hand:
            job = worker.hand.pop(index % len(worker.hand))
            self.write(worker, job, "finished" if succeeds else "failed", is_repeated)

    @precondition(lambda self: self.ghosts)
    @rule(data=st.data())
    def end_late(self, data: st.DataObject) -> None:
        """A process that was thought dead was only frozen."""
        worker, job = data.draw(st.sampled_from(self.ghosts))
        self.write(worker, job, "finished", is_repeated=False)

    @holds_jobs
    @rule(place=WORKERS)
    def raise_step(self, place: str) -> None:
        worker = self.workers[place]
        back = [job for job in worker.hand if job.strikes + 1 < MAX_STRIKES]
        for job in worker.hand:
            if job not in back:
                self.write(worker, job, "failed", is_repeated=False)
        worker.store.release(back, self.now, strikes=1)
        self.went_back(back, strikes=1)
        worker.hand = []

    @holds_jobs
    @rule(place=WORKERS)
    def give_back(self, place: str) -> None:
        worker = self.workers[place]
        worker.store.release(worker.hand, self.now)
        self.went_back(worker.hand, strikes=0)
        worker.hand = []

    @has_owners
    @rule(place=WORKERS)
    def look_for_strays(self, place: str) -> None:
        worker = self.workers[place]
        known = {job.execution_id for job in worker.hand}
        strays = [job for job in self.jobs.values() if job.worker == worker.name and job.owner not in known]
        num_leased = sum(job.is_leased for job in strays)
        assert worker.store.release_strays(worker.hand, self.now) == num_leased
        for expected in strays:
            expected.let_go()

    @holds_jobs
    @rule(place=WORKERS)
    def crash(self, place: str) -> None:
        worker = self.workers[place]
        self.ghosts += [(worker, job) for job in worker.hand]
        self.workers[place] = self.new_worker(place)

    @has_owners
    @rule(seconds=st.sampled_from([1.5, 31.0, 91.0, 91.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @has_owners
    @rule(place=WORKERS, is_heard=st.booleans())
    def recover(self, place: str, is_heard: bool) -> None:
        worker = self.workers[place]
        expired = [job for job in self.jobs.values() if job.is_leased and job.lease_end <= self.now]
        doomed = [job for job in expired if job.strikes + 1 >= MAX_STRIKES]
        recovered = worker.store.recover_expired(self.now)
        for expected in expired:
            self.strike(expected, 1)
        assert recovered.num_requeued == len(expired) - len(doomed)
        assert [self.jobs[job.job_id] in doomed for job in recovered.struck_out] == [True] * len(doomed)
        for job in recovered.struck_out:
            self.hand_over(job, worker)
            if is_heard:
                self.write(worker, job, "failed", is_repeated=False)

    @precondition(lambda self: sum(job.is_cancelled for job in self.jobs.values()) < len(self.jobs) // 4)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        job_id = data.draw(st.sampled_from(sorted(self.jobs)))
        expected = self.jobs[job_id]
        can_cancel = expected.outcome is None and not expected.is_cancelled
        assert self.batch.cancel_job(job_id) == can_cancel
        if can_cancel:
            expected.is_cancelled = True
            if expected.owner is None:
                expected.end("cancelled")

    # --- What must then hold ----------------------------------------------------------------------------------

    @invariant()
    def every_job_is_in_one_place(self) -> None:
        waiting = Counter(job_id.decode() for job_id in self.redis.lrange("rq:queue:mlxq", 0, -1))
        leases = dict(self.redis.zrange("rq:wip:mlxq", 0, -1, withscores=True))
        unowned = {job_id: job for job_id, job in self.jobs.items() if not (job.owner or job.outcome)}
        assert waiting == Counter(job_id for job_id, job in unowned.items() if job.due is None and not job.is_cancelled)
        delayed = {entry.decode(): due for entry, due in self.redis.zrange(DELAYED, 0, -1, withscores=True)}
        for job_id, job in unowned.items():
            assert job.is_cancelled or delayed.get(job_id) == (job.due and pytest.approx(job.due, abs=1e-3))
        assert leases == {
            f"{job_id}:{job.owner}".encode(): pytest.approx(job.lease_end, abs=1e-3)
            for job_id, job in self.jobs.items()
            if job.is_leased
        }

    @invariant()
    def every_end_is_told_once(self) -> None:
        told = events(self.redis, self.batch)
        assert told == Counter(f"{job_id}:{job.outcome}" for job_id, job in self.jobs.items() if job.outcome)

    def teardown(self) -> None:
        """All workers die; a last one must bring everything that is left to an end."""
        for place in self.workers:
            self.crash(place)
        last = self.workers["a"]
        for _ in range(2 * len(self.jobs)):  # each time the first one in the queue, at least, ends
            self.now += LEASE_S + 1
            self.recover("a", is_heard=True)
            self.claim("a", limit=4, is_heard=True)
            while last.hand:
                self.write(last, last.hand.pop(), "finished", is_repeated=False)
        self.end_cancelled()
        self.check_books()

    def end_cancelled(self) -> None:
        """Of a job that was cancelled in the hand of a worker that died, Redis forgets the execution in time."""
        for job_id, expected in self.jobs.items():
            if expected.outcome is None:
                self.redis.delete(f"rq:executions:{job_id}", f"rq:execution:{job_id}:{expected.owner}")
                expected.end("cancelled")

    def check_books(self) -> None:
        if not self.jobs:
            return
        self.batch.seal()
        counts = self.batch.counts()
        outcomes = Counter(job.outcome for job in self.jobs.values())
        assert counts.is_done
        assert counts.num_finished == outcomes["finished"]
        assert counts.num_failed == outcomes["failed"]
        assert counts.num_cancelled == outcomes["cancelled"]
        self.every_end_is_told_once()
        self.every_job_is_in_one_place()
        for job_id, job in self.jobs.items():
            assert status(self.redis, job_id) == {"cancelled": "canceled"}.get(str(job.outcome), job.outcome)
            assert not job.note or answer(self.redis, job_id)["error"]["message"] == job.note

    # --- Helpers ----------------------------------------------------------------------------------------------

    def write(self, worker: Worker, job: ClaimedJob, outcome: str, is_repeated: bool) -> None:
        """End a job as this worker would; it is written if the execution owns it, and not otherwise. Who has written it
        and says so again is told the same."""
        expected, note = self.jobs[job.job_id], f"ended by {worker.name} at {self.now:.0f}"
        may_write = expected.owner == job.execution_id
        ending = ended(job, outcome, note)
        for _ in range(1 + is_repeated):
            assert worker.store.end([ending], self.now) == [may_write or expected.ended_by == job.execution_id]
        if may_write:
            expected.end(outcome, note)

    def hand_over(self, job: ClaimedJob, worker: Worker) -> None:
        expected = self.jobs[job.job_id]
        expected.owner, expected.worker = job.execution_id, worker.name
        expected.lease_end = self.now + LEASE_S

    def went_back(self, claims: list[ClaimedJob], strikes: int) -> None:
        for job in claims:
            expected = self.jobs[job.job_id]
            if expected.owner == job.execution_id:
                self.strike(expected, 0 if expected.is_cancelled else strikes)

    def strike(self, expected: Expected, strikes: int) -> None:
        """Back it goes, at once or after a while that doubles with every strike."""
        expected.strikes += strikes
        expected.let_go()
        if strikes and expected.strikes < MAX_STRIKES:
            expected.due = self.now + FIRST_DELAY_S * 2 ** (expected.strikes - 1)

    def state_of(self, job: ClaimedJob) -> LeaseState:
        expected = self.jobs[job.job_id]
        if expected.owner != job.execution_id:
            return "lost"
        return "canceled" if expected.is_cancelled else "held"


def ended(job: ClaimedJob, outcome: str, note: str) -> Ending:
    """An end with a note in it, so that the answer in Redis says who wrote it."""
    failed = endings.gave_up(job, "note", note)
    if outcome == "failed":
        return failed
    return Ending(job=job, outcome="finished", rq_status="finished", answer=failed.answer)


def play(redis: Redis, rules: settings, script: Callable[[str], str] = store.script) -> None:
    machine = type("FleetOnThisRedis", (Fleet,), {"redis": redis, "script": staticmethod(script)})
    run_state_machine_as_test(machine, settings=rules)


def test_no_interleaving_loses_or_doubles_a_job(connection: Redis) -> None:
    play(connection, SETTINGS)


MUTANTS = {
    "an end without a lease": ("finish", "if not holds_lease(p.queue, p.job, p.execution) then", "if false then"),
    "a repeated end that counts twice": ("finish", "'mlxq_ended_by') == p.execution", "'mlxq_ended_by') == ''"),
    "a release without a lease": (
        "release",
        "if not held or not is_ours('hash', job_key(p.job)) then return 0 end",
        "",
    ),
    "a recovery that leaves the lease": ("recover", "close_execution(queue, job, lease.execution, lease.worker)", ""),
    "a beat that extends nothing": ("beat", "extend_lease(queue, job, execution) end", "end"),
    "a recovery without a strike": ("recover", "add_strikes(job, 1)", "strikes_of(job)"),
    "no delay after a strike": ("release", "p.strikes > 0 and add_strikes(p.job, p.strikes) or 0", "0"),
    "a lost event": ("finish", "redis.call('XADD', batch.events, '*', unpack(event))", ""),
}


@pytest.mark.parametrize(("script", "line", "broken"), MUTANTS.values(), ids=MUTANTS)
def test_the_machine_notices(connection: Redis, script: str, line: str, broken: str) -> None:
    with_broken = with_line(script, line, broken)

    with pytest.raises(AssertionError):
        play(connection, HUNT, with_broken)


def with_line(script: str, line: str, broken: str) -> Callable[[str], str]:
    """The workers' scripts, with one line of one of them replaced."""
    text = store.script(script)
    assert line in text
    return lambda name: text.replace(line, broken) if name == script else store.script(name)
