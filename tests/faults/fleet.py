"""The workers of a run: real `mlxq worker` processes with short leases, started again whenever they end.

The first one is supervised, as a user starts it: two processes, of which the one that decodes is started again by the
other. The rest are bare, as if their whole machine went down: only their leases tell of their death.
"""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

from redis import Redis
from redis.exceptions import RedisError
from tests.faults.diary import Diary
from tests.support.processes import MLXQ, environment
from tests.support.waiting import DEADLINE_S

LEASE_S = 3.0
PATIENT_LEASE_S = 15.0
"""Where nobody is to die: no worker of a busy machine is too slow to keep a lease that is so long."""
NUM_ROWS = 4
"""Few, so that the work lasts; twice as many jobs are held."""
RESTART_PAUSE_S = 1.0
"""After a worker has ended by itself, as one does that finds no Redis when it starts."""
NO_REDIS = "Error: Redis at "
"""How the last words of such a worker begin."""
UNASKED_END = "workers that ended for another reason"


class Worker:
    """One place in the fleet; the processes in it come and go."""

    def __init__(self, name: str, connection: Redis, variables: dict[str, str], log: Path, diary: Diary) -> None:
        self.name = name
        self.log = log
        self._redis = connection
        self._variables = variables
        self._diary = diary
        self._process: subprocess.Popen[bytes] | None = None
        self._frozen_pid: int | None = None
        self._thaw_at_s = 0.0
        self._start_at_s = 0.0

    @property
    def engine_pid(self) -> int | None:
        """The process that decodes, if it is there."""
        return self._process.pid if self._process is not None else None

    def num_held(self) -> int:
        """How many jobs it has claimed and not ended, as far as Redis can be asked."""
        try:
            return sum(
                int(self._redis.scard(b"%b:executions" % key))
                for key in self._redis.smembers("rq:workers")
                if self._redis.hget(key, "pid") == b"%d" % (self.engine_pid or 0)
            )
        except RedisError:
            return 0

    def tend(self) -> None:
        """Start it if it doesn't run, thaw it if it is time."""
        if self._frozen_pid is not None and self._diary.now_s >= self._thaw_at_s:
            self._diary.note(f"{self.name} goes on")
            self._thaw()
        if self._process is not None and (code := self._process.poll()) is not None:
            self._ended(code)
        if self._process is None and self._diary.now_s >= self._start_at_s:
            self._start()

    def kill(self) -> bool:
        """End the process that decodes. Returns whether there was one."""
        if (pid := self.engine_pid) is None:
            return False
        num_held = self.num_held()
        self._diary.note(f"kill -9 {self.name}, process {pid}, which holds {num_held} jobs", count="worker kills")
        self._diary.counts["jobs in killed hands"] += num_held
        _send(pid, signal.SIGKILL)
        self._reap()
        return True

    def freeze(self, lasts_s: float) -> bool:
        """Stop the process that decodes for a while. Returns whether there was one that went on."""
        if (pid := self.engine_pid) is None or self._frozen_pid is not None:
            return False
        self._diary.note(f"freeze {self.name}, process {pid}, for {lasts_s:.1f} s", count="freezes")
        _send(pid, signal.SIGSTOP)
        self._frozen_pid, self._thaw_at_s = pid, self._diary.now_s + lasts_s
        return True

    def close(self) -> None:
        """End it in peace, and wait for that."""
        self._thaw()
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            self._diary.note(f"{self.name} doesn't end after SIGTERM", count="workers that didn't end")
            self._stop()

    def _start(self) -> None:
        command = (*MLXQ, "worker", "--model", "demo", "--max-num-seqs", str(NUM_ROWS))
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                env=environment(**self._variables),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _reap(self) -> None:
        self._stop()
        self._frozen_pid = None

    def _thaw(self) -> None:
        if self._frozen_pid is not None:
            _send(self._frozen_pid, signal.SIGCONT)
            self._frozen_pid = None

    def _ended(self, code: int) -> None:
        last_words = self.log.read_text(errors="replace").splitlines()[-1:]
        note = " ".join([f"{self.name} ended by itself with code {code}:", *last_words])
        is_start = bool(last_words) and last_words[0].startswith(NO_REDIS)
        self._diary.note(note, count="starts without Redis" if is_start else UNASKED_END)
        self._process = None
        self._start_at_s = self._diary.now_s + RESTART_PAUSE_S


class SupervisedWorker(Worker):
    """Two processes. A killed supervisor leaves the other one behind, which notices and ends by itself."""

    @property
    def engine_pid(self) -> int | None:
        if self._process is None:
            return None
        children = subprocess.run(("pgrep", "-P", f"{self._process.pid}"), capture_output=True, text=True, check=False)
        return next(map(int, children.stdout.split()), None)

    def kill_supervisor(self) -> None:
        if self._process is not None:
            self._diary.note(f"kill -9 the supervisor of {self.name}", count="supervisor kills")
            self._stop()

    def _reap(self) -> None:
        self._frozen_pid = None  # its supervisor sees to the rest


class Fleet:
    """All workers; use it as a context manager, which ends them in peace."""

    def __init__(
        self, count: int, url: str, connection: Redis, directory: Path, diary: Diary, *, lease_s: float = LEASE_S
    ) -> None:
        variables = {"MLXQ_URL": url, "MLXQ_LEASE_S": f"{lease_s}", "MLXQ_MAINTENANCE_S": "1"}
        bare = {**variables, "MLXQ_PARENT_PID": f"{os.getpid()}"}  # we are their supervisor
        logs = [directory / f"worker-{index}.log" for index in range(count)]
        self.supervised = SupervisedWorker("worker 0", connection, variables, logs[0], diary)
        self.workers: list[Worker] = [
            self.supervised,
            *(Worker(f"worker {index}", connection, bare, logs[index], diary) for index in range(1, count)),
        ]

    def tend(self) -> None:
        for worker in self.workers:
            worker.tend()

    def logs(self) -> str:
        """All that the workers have written."""
        return "".join(worker.log.read_text(errors="replace") for worker in self.workers if worker.log.exists())

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *exception: object) -> None:
        for worker in self.workers:
            worker.close()


def _send(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):  # it may have ended a moment ago
        os.kill(pid, number)
