"""The user of a run: calls `mlxq run` over a growing file, again after every kill, until all is answered."""

from __future__ import annotations

import subprocess
from bisect import bisect_right
from collections import Counter
from pathlib import Path

from tests.faults import workload
from tests.faults.diary import Diary
from tests.faults.workload import Files, Line
from tests.support.processes import MLXQ, environment

MAX_INFLIGHT = 200
RERUN_PAUSE_S = 1.0
FAILED_RUNS = "runs that didn't answer everything"


class Producer:
    """Feeds the lines into the input file portion by portion, as their time comes, and runs `mlxq run` over it.

    Use it as a context manager, which kills what still runs.

    Args:
        portion_times_s: when the portions come, in order; they are of equal size.
    """

    def __init__(
        self, lines: list[Line], files: Files, url: str, portion_times_s: list[float], log: Path, diary: Diary
    ) -> None:
        self._lines = lines
        self._files = files
        self._command = (*MLXQ, "run", "--workers", "0", "--max-inflight", str(MAX_INFLIGHT), *files.options)
        self._variables = {"MLXQ_URL": url}
        self._portion_times_s = portion_times_s
        self._log = log
        self._diary = diary
        self._process: subprocess.Popen[bytes] | None = None
        self._num_fed = 0
        self._num_bytes_before = 0
        self._start_at_s = 0.0
        self._has_failed = False

    @property
    def is_done(self) -> bool:
        return self._process is None and self._num_fed == len(self._lines) and not self._has_failed

    @property
    def gets_answers(self) -> bool:
        """Whether `mlxq run` is in the middle of its work."""
        return self._process is not None and self._num_output_bytes() > self._num_bytes_before

    def tend(self) -> None:
        """Start `mlxq run` if it doesn't run and has something to do."""
        if self._process is not None and (code := self._process.poll()) is not None:
            self._ended(code)
        is_due = self._has_failed or self._num_due() > self._num_fed
        if self._process is None and is_due and self._diary.now_s >= self._start_at_s:
            self._start()

    def kill(self) -> None:
        if self._process is not None:
            self._diary.note(f"kill -9 the producer, process {self._process.pid}", count="producer kills")
            self._stop()
            self._try_again()

    def __enter__(self) -> Producer:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop()

    def _num_due(self) -> int:
        """How many lines of the input there are by now."""
        num_portions = bisect_right(self._portion_times_s, self._diary.now_s)
        return len(self._lines) * num_portions // len(self._portion_times_s)

    def _num_output_bytes(self) -> int:
        return self._files.output.stat().st_size if self._files.output.exists() else 0

    def _start(self) -> None:
        self._num_fed = self._num_due()
        self._num_bytes_before = self._num_output_bytes()
        workload.write(self._files.input, self._lines[: self._num_fed])
        self._diary.note(f"mlxq run over {self._num_fed} lines", count="runs")
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                env=environment(**self._variables),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _ended(self, code: int) -> None:
        self._process = None
        failures = Counter(_code(line) for line in workload.read(self._files.errors))
        self._diary.counts.update({f"lines failed as {name} and tried again": n for name, n in failures.items()})
        self._diary.note(f"mlxq run ended with code {code}" + "".join(f", {n} {name}" for name, n in failures.items()))
        self._has_failed = False
        if code != 0:
            self._diary.counts[FAILED_RUNS] += 1
            self._try_again()

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _try_again(self) -> None:
        self._has_failed = True
        self._start_at_s = self._diary.now_s + RERUN_PAUSE_S


def _code(line: Line) -> str:
    """Why the request of an error line failed."""
    error = line["error"] or line["response"]["body"]["error"]
    return str(error["code"])
