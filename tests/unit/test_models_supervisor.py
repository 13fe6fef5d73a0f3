"""The supervisor of several models over real processes: one at a time, drained before the next, whoever fails left out.

What the queues hold and what time it is, the tests say.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from tests.support.waiting import wait_until

from mlxq.errors import QueueNotReady, QueueUnavailable, WorkerFailed
from mlxq.queue.overview import QueueState
from mlxq_worker.supervision.dead_workers import DeadWorkers
from mlxq_worker.supervision.model_policy import Policy
from mlxq_worker.supervision.models_supervisor import ASIDE_S, ModelsSupervisor, ServedModel
from mlxq_worker.supervision.worker_process import WorkerGaveUp, WorkerProcess

GRACE_S = 5.0
POLICY = Policy(max_wait_s=100, min_turn_s=10, drain_s=30, idle_unload_s=50)
WORKS = """
import os, signal, sys, time
log, patience = open(sys.argv[1], "a", buffering=1), int(sys.argv[2])
stops = []
def stop(*_):
    stops.append(1)
    print("hears", file=log)
signal.signal(signal.SIGTERM, stop)
os.write(int(os.environ["MLXQ_READY_FD"]), b"8")
print("begins", file=log)
while len(stops) < patience:
    time.sleep(0.005)
print("ends", file=log)
"""
GIVES_UP = "import sys; sys.exit(78)"


class NoDeadWorkers(DeadWorkers):
    """Of nothing: for tests without jobs."""

    def __init__(self) -> None:
        self.died: list[bool] = []

    def release(self, worker_name: str, has_died: bool = True) -> None:
        self.died.append(has_died)

    def release_if_due(self, now: float) -> None:
        pass


class Rig:
    """A supervisor of some models whose queues hold what `waiting` and `running` say, and whose clock is `now`."""

    def __init__(self, supervisor: ModelsSupervisor, models: Sequence[ServedModel], log: Path) -> None:
        self.supervisor = supervisor
        self.models = {model.name: model for model in models}
        self.log = log
        self.now = 1000.0

    def turn(self, seconds: float = 0.0) -> bool:
        self.now += seconds
        return self.supervisor.turn(self.now)

    def loads(self, name: str) -> None:
        """Turn, with a second for each look, until this model has its turn."""
        self.turns_until(lambda: self.supervisor.loaded == name and self.is_ready(name), f"{name} to be loaded")
        self.turn()

    def is_ready(self, name: str) -> bool:
        return self.models[name].process.is_ready

    def turns_until(self, condition: Callable[[], bool], what: str) -> None:
        def turned() -> bool:
            self.turn(0.001)
            return condition()

        wait_until(turned, what)

    @property
    def running(self) -> list[str]:
        return [name for name, model in self.models.items() if model.process.is_running]

    def hears(self, num_signals: int) -> None:
        """Two at once would arrive as one."""
        wait_until(lambda: self.lives().count("hears") == num_signals, "the signal to arrive")

    def lives(self) -> list[str]:
        return self.log.read_text().split()


class Queues:
    """What the supervisor sees of them."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self.waiting: dict[str, int] = {}
        self.running: dict[str, int] = {}
        self.error: Exception | None = None

    def __call__(self) -> list[QueueState]:
        if self.error is not None:
            raise self.error
        return [
            QueueState(
                name=name,
                waiting=self.waiting.get(name, 0),
                running=self.running.get(name, 0),
                failed=0,
                oldest_waiting_s=None,
                workers=(),
            )
            for name in self.names
        ]


@contextmanager
def supervising(
    folder: Path, queues: Queues, scripts: dict[str, str] | None = None, *, patience: int = 1, burst: bool = False
) -> Iterator[Rig]:
    log = folder / "lives"
    log.touch()
    dead_workers = NoDeadWorkers()
    with ExitStack() as stack:
        models = []
        for name in queues.names:
            script = (scripts or {}).get(name, WORKS)
            command = [sys.executable, "-S", "-c", script, str(log), str(patience)]
            process = WorkerProcess(command, {}, verbose=True, tell=print, on_end=dead_workers.release)
            models.append(ServedModel(name, stack.enter_context(process)))
        supervisor = ModelsSupervisor(models, POLICY, queues, dead_workers, GRACE_S, burst=burst)
        yield Rig(supervisor, models, log)


def test_a_model_is_loaded_when_somebody_asks_for_it_and_unloaded_when_nobody_does_any_more(tmp_path: Path) -> None:
    queues = Queues("a", "b")
    with supervising(tmp_path, queues) as rig:
        rig.turn(1)
        assert rig.running == []

        queues.waiting = {"b": 1}
        rig.turn(1)
        rig.loads("b")
        queues.waiting, queues.running = {}, {"b": 1}
        rig.turn(POLICY.idle_unload_s + 1)
        assert rig.supervisor.loaded == "b"
        queues.running = {}
        rig.turn(1)
        rig.turn(POLICY.idle_unload_s)
        rig.turns_until(lambda: rig.supervisor.loaded is None, "the end of its turn")

        assert rig.running == []
        queues.waiting = {"b": 1}
        rig.turn(1)
        rig.loads("b")  # at once, however often it was unloaded


def test_the_next_model_is_started_once_the_one_before_has_ended(tmp_path: Path) -> None:
    # given one that is loaded and busy, and another that waits
    queues = Queues("a", "b")
    queues.waiting = {"a": 9, "b": 3}
    with supervising(tmp_path, queues, patience=2) as rig:
        rig.turn(1)
        rig.loads("a")
        for _ in range(3):
            rig.turn(POLICY.max_wait_s / 4)
            assert rig.running == ["a"]

        # when that has waited long enough; the first needs another signal to end
        rig.turn(POLICY.max_wait_s / 4 + 1)
        for _ in range(20):
            rig.turn(0.1)
            assert rig.running == ["a"]
            assert rig.supervisor.loaded == "a"
        rig.hears(1)
        rig.models["a"].process.send(signal.SIGTERM)
        rig.loads("b")

        # then
        assert rig.running == ["b"]
        assert rig.lives() == ["begins", "hears", "hears", "ends", "begins"]


def test_one_that_does_not_end_when_its_turn_is_over_is_killed(tmp_path: Path) -> None:
    queues = Queues("a", "b")
    queues.waiting = {"a": 1}
    with supervising(tmp_path, queues, patience=99) as rig:
        rig.turn(1)
        rig.loads("a")
        queues.waiting = {"b": 1}
        rig.turn(1)
        rig.turn(POLICY.drain_s)
        assert rig.running == ["a"]
        rig.turn(60)
        rig.loads("b")
        assert rig.running == ["b"]


def test_a_model_that_cannot_work_costs_no_other_and_is_tried_again(tmp_path: Path) -> None:
    queues = Queues("broken", "good")
    queues.waiting = {"broken": 9, "good": 1}
    with supervising(tmp_path, queues, {"broken": GIVES_UP}) as rig:
        rig.turn(1)
        assert rig.supervisor.loaded == "broken"
        rig.turns_until(lambda: rig.supervisor.loaded is None, "it to give up")
        rig.turn(1)
        rig.loads("good")
        queues.waiting = {"broken": 9}
        rig.turn(1)
        assert rig.supervisor.loaded == "good"
        rig.turn(ASIDE_S)
        rig.turns_until(lambda: rig.supervisor.loaded == "broken", "another try")


def test_with_no_model_that_can_work_it_ends_with_the_last_ones_error(tmp_path: Path) -> None:
    queues = Queues("broken", "too")
    queues.waiting = {"broken": 1, "too": 1}
    with (
        supervising(tmp_path, queues, dict.fromkeys(queues.names, GIVES_UP)) as rig,
        pytest.raises(WorkerGaveUp, match="the worker can't work"),
    ):
        wait_until(lambda: rig.turn(0.5), "the error")


def test_a_burst_ends_once_all_queues_are_empty_also_with_a_model_that_cannot_work(tmp_path: Path) -> None:
    queues = Queues("a", "broken")
    queues.waiting = {"a": 1}
    with supervising(tmp_path, queues, {"broken": GIVES_UP}, burst=True) as rig:
        rig.turn(1)
        rig.loads("a")
        queues.waiting = {}
        wait_until(lambda: rig.turn(0.5), "the end")
        assert rig.running == []

        queues.waiting = {"broken": 1}
        with pytest.raises(WorkerFailed):
            wait_until(lambda: rig.turn(0.5), "the error")


def test_a_redis_that_was_never_there_ends_it_and_one_that_goes_away_is_waited_for(tmp_path: Path) -> None:
    queues = Queues("a")
    queues.error = QueueUnavailable("not there")
    with supervising(tmp_path, queues) as rig, pytest.raises(QueueUnavailable):
        rig.turn(1)
    queues.error = QueueNotReady("loading")
    with supervising(tmp_path, queues) as rig:
        assert not rig.turn(1)
        queues.error = None
        assert not rig.turn(1)
        queues.error = QueueUnavailable("gone")
        assert not rig.turn(1)


@pytest.mark.parametrize("is_draining", [False, True])
def test_asked_to_stop_it_gives_running_rows_their_grace_and_then_asks_again(is_draining: bool, tmp_path: Path) -> None:
    queues = Queues("a", "b")
    queues.waiting = {"a": 1}
    with supervising(tmp_path, queues, patience=2) as rig:
        rig.turn(1)
        rig.loads("a")
        if is_draining:
            queues.waiting = {"b": 1}
            rig.turn(1)
        rig.supervisor.request_stop()
        for _ in range(20):
            assert not rig.turn(0.1)
        rig.hears(1)
        assert not rig.turn(0.1)
        assert rig.lives() == ["begins", "hears"]
        rig.turn(GRACE_S)
        wait_until(lambda: rig.turn(0.0), "the end")
        assert rig.lives() == ["begins", "hears", "hears", "ends"]
