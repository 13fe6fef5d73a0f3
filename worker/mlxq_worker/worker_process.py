"""Keeps one worker process running for another command: starts it, restarts it when it dies, stops it.

Never imports mlx and never forks: a worker is a fresh interpreter. Each look at it is one `check`; nothing here
runs by itself.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import IO, Self

from mlxq.errors import WorkerFailed

MAX_DEATHS = 5
"""In a row, without an answer in between. A request that kills its worker is given up before that."""
FIRST_PAUSE_S = 0.5
STOP_TIMEOUT_S = 15.0
SHOWN_LINES = 10
SHOWN_BYTES = 8192
GIVES_UP = "\nError: "
"""How a command says that it can't work, as opposed to that it crashed: trying again would not help."""


class WorkerProcess:
    """One supervised process. Use it as a context manager; it starts with the first `check`.

    Args:
        command: what to run.
        variables: laid over this process's environment.
        verbose: let it write to our stderr; otherwise its last lines are kept for the error message.
        tell: hears of a death after which it is started again.
    """

    def __init__(
        self,
        command: Sequence[str],
        variables: Mapping[str, str],
        *,
        verbose: bool = False,
        tell: Callable[[str], object],
    ) -> None:
        self._command = list(command)
        self._variables = dict(variables)
        # Unbuffered, since the process writes through a descriptor that shares our position.
        self._log: IO[bytes] | None = None if verbose else tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
        self._tell = tell
        self._process: subprocess.Popen[bytes] | None = None
        self._num_deaths = 0
        self._num_done_at_start = 0
        self._start_at = 0.0

    def check(self, num_done: int, now: float | None = None) -> None:
        """Start the process if it is not there, after a pause that grows with every death in a row.

        Args:
            num_done: requests answered so far; when that rose, the last death is forgiven.
            now: seconds on the monotonic clock.

        Raises:
            WorkerFailed: it says that it can't work, or has died too often.
        """
        now = time.monotonic() if now is None else now
        if self._process is not None and self._process.poll() is not None:
            self._bury(self._process.returncode, num_done, now)
        if self._process is None and now >= self._start_at:
            self._start(num_done)

    def stop(self) -> None:
        """End the process, in peace if it can; more than once is fine."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
        if self._log is not None:
            self._log.close()

    def _start(self, num_done: int) -> None:
        self._num_done_at_start = num_done
        if self._log is not None:
            self._log.seek(0)
            self._log.truncate()  # what the one before wrote must not pass for this one's last words
        self._process = subprocess.Popen(
            self._command,
            env={**os.environ, **self._variables},
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr if self._log is None else self._log,
            stderr=sys.stderr if self._log is None else self._log,
            start_new_session=True,  # Ctrl-C is ours to pass on, once what has ended is collected
        )

    def _bury(self, return_code: int, num_done: int, now: float) -> None:
        self._process = None
        self._num_deaths = 1 if num_done > self._num_done_at_start else self._num_deaths + 1
        self._start_at = now + FIRST_PAUSE_S * 2 ** (self._num_deaths - 1)
        last_words = self._last_words()
        if GIVES_UP in last_words:
            raise WorkerFailed(f"the worker can't work: {last_words.rpartition(GIVES_UP)[2].strip()}")
        if self._num_deaths >= MAX_DEATHS:
            count = f"{self._num_deaths} times in a row, last with code {return_code}"
            raise WorkerFailed(f"the worker died {count}:{last_words or ' its output went to stderr'}")
        self._tell(f"A worker ended with code {return_code} and is started again; what it had in hand is done again.")

    def _last_words(self) -> str:
        """Its last lines, each after a newline."""
        if self._log is None:
            return ""
        self._log.seek(max(0, self._log.seek(0, os.SEEK_END) - SHOWN_BYTES))
        lines = self._log.read().decode(errors="replace").splitlines()[-SHOWN_LINES:]
        return "".join(f"\n{line}" for line in lines)
