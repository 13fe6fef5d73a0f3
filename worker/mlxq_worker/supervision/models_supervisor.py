"""The process that `mlxq worker --models` is: it has one worker process at a time, and swaps the model in it.

What is to be loaded says `model_policy`; here the queues are looked at, the worker whose turn is over is drained, and
the next one is started once that has ended, so that memory is never that of two models. A worker that dies is started
again as under `supervisor`; a model that can't work at all is left aside for a while, and costs no other. Never imports
mlx.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType

from mlxq.errors import QueueNotReady, QueueUnavailable, WorkerFailed
from mlxq.queue.overview import QueueState
from mlxq_worker.supervision.dead_workers import DeadWorkers
from mlxq_worker.supervision.model_policy import Backlog, Loaded, Policy, next_model
from mlxq_worker.supervision.supervisor import STOP_MARGIN_S, logger, turn_until_done
from mlxq_worker.supervision.totals import Totals
from mlxq_worker.supervision.worker_process import WorkerFoundNoRedis, WorkerProcess
from mlxq_worker.timing import Every

LOOK_S = 1.0
"""Between two looks at the queues."""
ASIDE_S = 600.0
"""For how long a model that can't work is left aside."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One of the models: its process, which isn't started yet and is ended by whoever gives it; and what adds up its
    figures, if somebody watches."""

    name: str
    process: WorkerProcess
    totals: Totals | None = None


class ModelsSupervisor:
    """Gives models their turns until somebody asks it to stop, or with `burst` until nothing is left to do.

    Args:
        models: their processes run with a grace of `policy.drain_s`.
        look: how the queue of each of these models stands, in their order.
        grace_s: how long running rows may go on once we are asked to stop.
    """

    def __init__(
        self,
        models: Sequence[ServedModel],
        policy: Policy,
        look: Callable[[], Sequence[QueueState]],
        dead_workers: DeadWorkers,
        grace_s: float,
        *,
        burst: bool = False,
    ) -> None:
        self._models: Mapping[str, ServedModel] = {model.name: model for model in models}
        self._policy = policy
        self._look = look
        self._dead_workers = dead_workers
        self._grace_s = grace_s
        self._burst = burst
        self._look_timer = Every(LOOK_S)
        self._loaded: ServedModel | None = None
        self._turn_since: float | None = None  # when it was ready first; `None` while it still loads
        self._busy_at = 0.0
        self._is_away: bool | None = None  # Redis; `None` while it has never been seen
        self._waiting_since: dict[str, float] = {}
        self._aside_until: dict[str, float] = {}
        self._aside_for: dict[str, WorkerFailed] = {}
        self._leave_by: float | None = None  # its turn is over: when its worker is killed
        self._num_signals = 0
        self._num_passed_on = 0
        self._hurry_at = float("inf")
        self._kill_at = float("inf")
        self.num_swaps = 0

    def run(self, sleep: Callable[[float], object] = time.sleep) -> None:
        """Returns once it is done, or was asked to end.

        Raises:
            WorkerFailed: no model can work, or Redis has never been there.
        """
        turn_until_done(self.turn, self._on_signal, sleep)

    @property
    def loaded(self) -> str | None:
        """The model that has its turn, also while it is loading or draining."""
        return self._loaded.name if self._loaded is not None else None

    def why_not_ready(self) -> str | None:
        """What keeps us from answering the next request; `None` if nothing does. With nothing loaded that is loaded
        which is asked for."""
        if self._loaded is None or self._loaded.totals is None or self._leave_by is not None:
            return None
        return self._loaded.totals.why_not_ready()

    def request_stop(self) -> None:
        self._num_signals += 1

    def turn(self, now: float) -> bool:
        """One iteration; returns whether there is nothing more to look after."""
        for model in self._models.values():
            if model.totals is not None:
                model.totals.turned()
        if self._num_signals:
            return self._stop(now)
        self._dead_workers.release_if_due(now)
        if self._loaded is not None:
            self._look_after(self._loaded, now)
        return self._leave_by is None and self._look_timer.is_due(now) and self._decide(now)

    # --- One worker -------------------------------------------------------------------------------------------

    def _look_after(self, model: ServedModel, now: float) -> None:
        try:
            if self._leave_by is not None:
                self._drain(model, now, self._leave_by)
            elif model.process.check(now):  # somebody else has asked it to end: it is started again
                logger.info("The worker of %s has ended in peace", model.name)
            elif self._turn_since is None and model.process.is_ready:
                self._turn_since = self._busy_at = now
        except WorkerFoundNoRedis:
            raise
        except WorkerFailed as error:
            self._put_aside(model, error, now)

    def _drain(self, model: ServedModel, now: float, leave_by: float) -> None:
        if model.process.process is not None and now >= leave_by:
            logger.error("The worker of %s doesn't end: killing it", model.name)
            model.process.send(signal.SIGKILL)
        if model.process.process is not None and model.process.check(now):
            model.process.rest()
        if model.process.process is None:
            logger.info("%s is unloaded", model.name)
            self._unload()

    def _put_aside(self, model: ServedModel, error: WorkerFailed, now: float) -> None:
        """
        Raises:
            WorkerFailed: now all are put aside.
        """
        self._aside_until[model.name] = now + ASIDE_S
        self._aside_for[model.name] = error
        self._unload()
        if len(self._aside_until) == len(self._models):
            raise error
        logger.error("%s can't be served, and is tried again in %.0f s: %s", model.name, ASIDE_S, error)

    def _unload(self) -> None:
        self._loaded = self._turn_since = self._leave_by = None

    def _load(self, model: ServedModel, now: float) -> None:
        logger.info("Loading %s, whose queue has waited %.0f s", model.name, self._waited_s(model.name, now))
        self._loaded, self._turn_since = model, None
        self._waiting_since.pop(model.name, None)
        self.num_swaps += 1

    # --- Whose turn it is -------------------------------------------------------------------------------------

    def _decide(self, now: float) -> bool:
        """Look at the queues, and begin what is to be done; returns whether a burst is over.

        Raises:
            QueueUnavailable: Redis isn't there, and never was.
        """
        try:
            states = dict(zip(self._models, self._look(), strict=True))
        except QueueUnavailable as error:
            if self._is_away is None and not isinstance(error, QueueNotReady):
                raise
            if not self._is_away:
                logger.warning("The queues can't be looked at, and nothing is swapped until they can: %s", error)
            self._is_away = True
            return False
        self._is_away = False
        self._forgive(now)
        backlogs = [self._backlog(name, state, now) for name, state in states.items()]
        is_over = self._burst and not any(each.waiting or each.running for each in self._served(backlogs))
        if self._loaded is not None and self._turn_since is None:
            return False  # it is still loading
        chosen = None if is_over else next_model(self._served(backlogs), self._state(now), self._policy)
        if chosen != self.loaded:
            if self._loaded is not None:
                self._begin_to_leave(self._loaded, chosen, now)
            elif chosen is not None:
                self._load(self._models[chosen], now)
        if is_over and self._loaded is None:
            self._raise_if_left(backlogs)
            return True
        return False

    def _served(self, backlogs: Sequence[Backlog]) -> list[Backlog]:
        return [each for each in backlogs if each.model not in self._aside_until]

    def _raise_if_left(self, backlogs: Sequence[Backlog]) -> None:
        for each in backlogs:
            if each.waiting and (error := self._aside_for.get(each.model)):
                raise error

    def _forgive(self, now: float) -> None:
        for name in [name for name, until in self._aside_until.items() if now >= until]:
            del self._aside_until[name]

    def _backlog(self, name: str, state: QueueState, now: float) -> Backlog:
        waiting, running = state.waiting or 0, state.running or 0
        if name == self.loaded and (waiting or running):
            self._busy_at = now
        if waiting and name != self.loaded:
            self._waiting_since.setdefault(name, now)
        else:
            self._waiting_since.pop(name, None)
        return Backlog(model=name, waiting=waiting, running=running, waited_s=self._waited_s(name, now))

    def _waited_s(self, name: str, now: float) -> float:
        return now - self._waiting_since.get(name, now)

    def _state(self, now: float) -> Loaded | None:
        if self._loaded is None or self._turn_since is None:
            return None
        return Loaded(
            model=self._loaded.name,
            width=self._loaded.process.width,
            turn_s=now - self._turn_since,
            idle_s=now - self._busy_at,
        )

    def _begin_to_leave(self, model: ServedModel, chosen: str | None, now: float) -> None:
        why = "nothing is left to do" if chosen is None else f"it is {chosen}'s turn"
        logger.info("Draining %s: %s", model.name, why)
        self._leave_by = now + self._policy.drain_s + STOP_MARGIN_S
        model.process.send(signal.SIGTERM)

    # --- The end ----------------------------------------------------------------------------------------------

    def _on_signal(self, _signum: int, _frame: FrameType | None) -> None:
        self.request_stop()

    def _stop(self, now: float) -> bool:
        """Running rows get `grace_s` after the first signal; then, or after another one, all goes back at once."""
        if self._loaded is None or not self._loaded.process.is_running:
            return True
        process = self._loaded.process
        if self._num_passed_on == 0:
            self._hurry_at, self._kill_at = now + self._grace_s, now + self._grace_s + STOP_MARGIN_S
            if self._leave_by is not None:  # it has been asked already, and another time would be once more
                self._num_passed_on = 1
        if now >= self._hurry_at:
            self._hurry_at = float("inf")
            self._num_signals = max(self._num_signals, 2)
        if self._num_passed_on < self._num_signals:  # one a turn: two at once would arrive as one
            process.send(signal.SIGTERM)
            self._num_passed_on += 1
        if now >= self._kill_at:
            logger.error("The worker doesn't end: killing it")
            process.send(signal.SIGKILL)
            self._kill_at = float("inf")
        return not process.is_running
