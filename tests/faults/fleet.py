"""The workers of a run: real `mlxq worker` processes with short leases, started again whenever they end."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

from tests.faults.diary import Diary
from tests.processes import MLXQ, environment

LEASE_S = 3.0
NUM_ROWS = 4
"""Few, so that the work lasts; twice as many jobs are held."""
RESTART_PAUSE_S = 1.0
"""After a worker has ended by itself, as one does that finds no Redis when it starts."""
NO_REDIS = "Error: Redis at "
"""How the last words of such a worker begin."""
UNASKED_END = "workers that ended for another reason"


class Worker:
    """One place in the fleet; the processes in it come and go."""

    def __init__(self, name: str, url: str, log: Path, diary: Diary) -> None:
        self.name = name
        self.log = log
        self._variables = {"MLXQ_URL": url, "MLXQ_LEASE_S": f"{LEASE_S}", "MLXQ_MAINTENANCE_S": "1"}
        self._variables["MLXQ_PARENT_PID"] = str(os.getpid())  # we are its supervisor
        self._diary = diary
        self._process: subprocess.Popen[bytes] | None = None
        self._thaw_at_s: float | None = None
        self._start_at_s = 0.0

    def tend(self) -> None:
        """Start it if it doesn't run, thaw it if it is time."""
        if self._thaw_at_s is not None and self._diary.now_s >= self._thaw_at_s:
            self._thaw()
        if self._process is not None and (code := self._process.poll()) is not None:
            self._ended(code)
        if self._process is None and self._diary.now_s >= self._start_at_s:
            self._start()

    def kill(self) -> None:
        if self._process is not None:
            self._diary.note(f"kill -9 {self.name}, process {self._process.pid}", count="worker kills")
            self._stop()

    def freeze(self, lasts_s: float) -> None:
        if self._process is not None and self._thaw_at_s is None:
            self._diary.note(f"freeze {self.name}, process {self._process.pid}, for {lasts_s:.1f} s", count="freezes")
            self._process.send_signal(signal.SIGSTOP)
            self._thaw_at_s = self._diary.now_s + lasts_s

    def close(self) -> None:
        """End it in peace, and wait for that."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGCONT)
        self._process.terminate()
        try:
            self._process.wait(20)
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
            self._thaw_at_s = None

    def _thaw(self) -> None:
        if self._process is not None:
            self._diary.note(f"{self.name} goes on")
            self._process.send_signal(signal.SIGCONT)
        self._thaw_at_s = None

    def _ended(self, code: int) -> None:
        last_words = self.log.read_text(errors="replace").splitlines()[-1:]
        note = " ".join([f"{self.name} ended by itself with code {code}:", *last_words])
        is_start = bool(last_words) and last_words[0].startswith(NO_REDIS)
        self._diary.note(note, count="starts without Redis" if is_start else UNASKED_END)
        self._process = None
        self._thaw_at_s = None
        self._start_at_s = self._diary.now_s + RESTART_PAUSE_S


class Fleet:
    """All workers; use it as a context manager, which ends them in peace."""

    def __init__(self, count: int, url: str, directory: Path, diary: Diary) -> None:
        self.workers = [
            Worker(f"worker {index}", url, directory / f"worker-{index}.log", diary) for index in range(count)
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
