"""Everything that faults happen to, kept running: one loop causes what is due and starts again what has ended."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from tests.faults.diary import Diary
from tests.faults.fleet import Fleet
from tests.faults.producer import Producer
from tests.faults.schedule import Fault
from tests.faults.server import DurableRedis

TICK_S = 0.05
MAX_WAIT_FOR_ANSWERS_S = 4.0
"""How long a fault that is due waits for the answers to come in that it is to disturb."""
MAX_WAIT_FOR_JOBS_S = 120.0
"""How long a worker's death waits for it to hold jobs: on a busy machine it takes long to load its model."""


@dataclass(slots=True)
class Scene:
    """A queue, its workers and a user. `restart_at_s` is when Redis comes back, while it is away, and `recover_at_s`
    when it stops to answer with errors."""

    server: DurableRedis
    fleet: Fleet
    producer: Producer
    diary: Diary
    restart_at_s: float | None = None
    recover_at_s: float | None = None

    def play(self, faults: list[Fault], is_over: Callable[[], bool]) -> None:
        """Cause each fault when its time comes and there is work to disturb, then leave everything alone until it is
        over."""
        waiting = list(faults)
        while waiting or not is_over():
            if self.restart_at_s is not None and self.diary.now_s >= self.restart_at_s:
                self._restart_redis()
            if self.recover_at_s is not None and self.diary.now_s >= self.recover_at_s:
                self.server.recover()
                self.recover_at_s = None
                self.diary.note("Redis is well again")
            while waiting and self._is_due(waiting[0]) and self._cause(waiting[0]):
                waiting.pop(0)
            self.fleet.tend()
            self.producer.tend()
            time.sleep(TICK_S)

    def _is_due(self, fault: Fault) -> bool:
        if self.recover_at_s is not None:  # one thing after the other
            return False
        late_s = self.diary.now_s - fault.at_s
        if late_s >= 0 and fault.kind == "kill worker":
            return self._is_too_late(fault) or self.fleet.workers[fault.target].num_held() > 0
        if fault.kind == "cut connections" and self.restart_at_s is not None:  # there are none to cut
            return False
        return late_s >= (0 if self.producer.gets_answers else MAX_WAIT_FOR_ANSWERS_S)

    def _cause(self, fault: Fault) -> bool:
        """Cause it. Returns whether that is done: a process that isn't there is waited for, unless it is too late."""
        match fault.kind:
            case "kill worker":
                return self.fleet.workers[fault.target].kill() or self._is_too_late(fault)
            case "kill supervisor":
                self.fleet.supervised.kill_supervisor()
            case "freeze worker":
                return self.fleet.workers[fault.target].freeze(fault.lasts_s) or self._is_too_late(fault)
            case "kill producer":
                self.producer.kill()
            case "kill Redis":
                self._kill_redis(fault.lasts_s)
            case "cut connections":
                self._cut_connections()
            case "MISCONF" | "OOM" | "BUSY" | "read-only replica" | "full disk":
                self.server.fail_with(fault.kind)
                self.recover_at_s = self.diary.now_s + fault.lasts_s
                self.diary.note(f"Redis: {fault.kind}, for {fault.lasts_s:.1f} s", count=fault.kind)
        return True

    def _is_too_late(self, fault: Fault) -> bool:
        return self.diary.now_s - fault.at_s >= MAX_WAIT_FOR_JOBS_S

    def _kill_redis(self, lasts_s: float) -> None:
        self.diary.note(f"kill -9 Redis, for {lasts_s:.1f} s", count="Redis kills")
        self.server.kill()
        self.restart_at_s = self.diary.now_s + lasts_s

    def _restart_redis(self) -> None:
        self.server.start()
        self.restart_at_s = None
        self.diary.note("Redis is back")

    def _cut_connections(self) -> None:
        if (count := self.server.cut_connections()) is not None:
            self.diary.note(f"cut {count} connections", count="cuts")
