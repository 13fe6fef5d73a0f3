"""Keeps one worker process running: starts it, starts it again when it has died, passes on that it should end.

Never imports mlx and never forks: a worker is a fresh interpreter. What it is told beside its command line goes
through its environment (see `WorkerConfig`): who looks after it, its name in Redis, and where to say that it is ready.
Each look at it is one `check`; nothing here runs by itself.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import IO, Self
from uuid import uuid4

from mlxq.errors import WorkerFailed
from mlxq_worker import exits
from mlxq_worker.metrics.report import ReportReader
from mlxq_worker.processes import end_process
from mlxq_worker.supervision.restarts import Restarts
from mlxq_worker.supervision.totals import RestartReason, Totals

STOP_TIMEOUT_S = 15.0
SHOWN_LINES = 10
SHOWN_BYTES = 8192
ERROR = "\nError: "
"""How the last words of a command that can't work begin."""


class WorkerGaveUp(WorkerFailed):
    """The worker has said itself that it can't work."""

    exit_code = 2


class WorkerFoundNoRedis(WorkerGaveUp):
    """Redis wasn't there when the worker started."""

    exit_code = 3


class Life:
    """One process from its start to its end.

    Args:
        command: what to run.
        variables: laid over this process's environment.
        output: where it writes, standard error included.
        totals: hears its figures; `None` if nobody wants them.
    """

    def __init__(
        self, command: Sequence[str], variables: Mapping[str, str], output: IO[bytes] | IO[str], totals: Totals | None
    ) -> None:
        self.name = uuid4().hex
        self.ready_at: float | None = None
        self.width = 0
        self._ready_pipe, ready_fd = os.pipe()
        os.set_blocking(self._ready_pipe, False)
        self._totals = totals
        self._reports = ReportReader() if totals is not None else None
        supervision = {"MLXQ_PARENT_PID": str(os.getpid()), "MLXQ_NAME": self.name, "MLXQ_READY_FD": str(ready_fd)}
        passed = [ready_fd]
        if self._reports is not None:
            passed.append(self._reports.writer_fd)
            supervision["MLXQ_REPORTS_FD"] = str(self._reports.writer_fd)
        try:
            self.process = subprocess.Popen(
                command,
                env={**os.environ, **variables, **supervision},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=passed,
                start_new_session=True,  # a terminal's Ctrl-C is ours to pass on, once
            )
        finally:
            for fd in passed:
                os.close(fd)

    def look(self, now: float) -> int | None:
        """Its exit code once it has ended; notes when it is ready, and for how many rows at once."""
        code = self.process.poll()
        if self.ready_at is None and self._says_ready():
            self.ready_at = now
        if self._totals is not None and self._reports is not None:
            self._totals.is_up(code is None and self.ready_at is not None)
            if report := self._reports.read():
                self._totals.reported(report)
        return code

    def close(self) -> None:
        os.close(self._ready_pipe)
        if self._totals is not None and self._reports is not None:
            self._reports.close()
            self._totals.ended()

    def _says_ready(self) -> bool:
        try:
            said = os.read(self._ready_pipe, 32)
        except BlockingIOError:
            return False
        self.width = int(said or 0)  # nothing once it has closed its end
        return bool(said)


class WorkerProcess:
    """One worker in all its lives. Use it as a context manager; it starts with the first `check`.

    Args:
        command: what to run.
        variables: laid over this process's environment.
        verbose: let it write to our stderr; otherwise its last lines are kept for the error message.
        tell: hears of a death after which it is started again.
        on_end: called whenever a process that may have claimed jobs has ended, with the worker's name in Redis and
            whether it has died: then it was not asked to end, or didn't do so by itself.
        stop_timeout_s: how long `stop` waits before it kills.
        totals: what its figures add up to; `None` if nobody wants them.
    """

    def __init__(
        self,
        command: Sequence[str],
        variables: Mapping[str, str],
        *,
        verbose: bool = False,
        tell: Callable[[str], object],
        on_end: Callable[[str, bool], object],
        stop_timeout_s: float = STOP_TIMEOUT_S,
        totals: Totals | None = None,
    ) -> None:
        self._command = list(command)
        self._variables = dict(variables)
        # Unbuffered, since the process writes through a descriptor that shares our position.
        self._log: IO[bytes] | None = None if verbose else tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
        self._tell = tell
        self._on_end = on_end
        self._stop_timeout_s = stop_timeout_s
        self._totals = totals
        self._life: Life | None = None
        self._restarts = Restarts()
        self._has_worked = False
        self._start_at = 0.0

    @property
    def process(self) -> subprocess.Popen[bytes] | None:
        """The process of the life that it is in, if it is in one."""
        return self._life.process if self._life is not None else None

    @property
    def is_running(self) -> bool:
        return self._life is not None and self._life.process.poll() is None

    @property
    def is_ready(self) -> bool:
        """Whether it has its model, as of the last `check`."""
        return self._life is not None and self._life.ready_at is not None

    @property
    def width(self) -> int:
        """How many rows it decodes at once; 0 while it isn't ready."""
        return self._life.width if self._life is not None else 0

    def rest(self) -> None:
        """It has ended because it was asked to: the next `check` starts it at once, as if it had never died."""
        self._start_at = 0.0
        self._restarts = Restarts()

    def check(self, now: float | None = None) -> bool:
        """Start the process if it is not there, after a pause that grows with every death in a row.

        Args:
            now: seconds on the monotonic clock.

        Returns:
            Whether it has just ended in peace, as it does when somebody asks it to; the next `check` starts it again.

        Raises:
            WorkerFoundNoRedis: it says that Redis isn't there, which it has never been.
            WorkerGaveUp: it says that it can't work.
            WorkerFailed: it has died too often before it was ready.
        """
        now = time.monotonic() if now is None else now
        if self._life is not None and (code := self._life.look(now)) is not None:
            return self._ended(self._life, code, now)
        if self._life is None and now >= self._start_at:
            self._start()
        return False

    def send(self, signum: signal.Signals) -> None:
        """Pass a signal on to the process, if there is one."""
        if self._life is not None:
            self._life.process.send_signal(signum)

    def stop(self) -> None:
        """End the process; more than once is fine. In peace if it can: one that is not ready has claimed no job, and
        would look up only once it has loaded its model."""
        if self._life is None:
            return
        self._life.look(time.monotonic())
        end_process(self._life.process, self._stop_timeout_s if self._life.ready_at is not None else 0.0)
        self._close(self._life, time.monotonic())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
        if self._log is not None:
            self._log.close()

    def _start(self) -> None:
        if self._log is not None:
            self._log.seek(0)
            self._log.truncate()  # what the one before wrote must not pass for this one's last words
        self._life = Life(self._command, self._variables, sys.stderr if self._log is None else self._log, self._totals)

    def _close(self, life: Life, now: float) -> None:
        life.look(now)
        life.close()
        self._life = None
        if life.ready_at is not None:
            self._on_end(life.name, life.process.returncode not in exits.IN_PEACE)

    def _ended(self, life: Life, code: int, now: float) -> bool:
        self._has_worked |= life.ready_at is not None and code != exits.NO_RIGHTS
        self._close(life, now)
        if code == exits.START_AGAIN:
            self._count_restart("recycled")
            return False
        if code in (exits.USAGE, exits.GAVE_UP) or (code in exits.WAITS and not self._has_worked):
            gave_up = WorkerFoundNoRedis if code == exits.NO_REDIS else WorkerGaveUp
            raise gave_up(f"the worker can't work: {self._reason(code)}")
        ready_s = None if life.ready_at is None else now - life.ready_at
        if code in exits.WAITS:
            ready_s = 0.0  # not its fault: it waits for Redis, however long that takes
        death = f"last with {_named(code)}:{self._last_words() or ' its output went to stderr'}"
        pause_s = self._restarts.pause_s(ready_s, death)
        self._start_at = now + pause_s
        if code != exits.DONE:
            self._count_restart("no_redis" if code in exits.WAITS else "died")
            self._tell(f"A worker ended with {_named(code)} and is started again; what it had in hand is done again.")
        return code == exits.DONE

    def _count_restart(self, reason: RestartReason) -> None:
        if self._totals is not None:
            self._totals.restarts(reason)

    def _reason(self, code: int) -> str:
        return self._last_words().rpartition(ERROR)[2].strip() or f"it ended with {_named(code)}, and has said why"

    def _last_words(self) -> str:
        """Its last lines, each after a newline."""
        if self._log is None:
            return ""
        self._log.seek(max(0, self._log.seek(0, os.SEEK_END) - SHOWN_BYTES))
        lines = self._log.read().decode(errors="replace").splitlines()[-SHOWN_LINES:]
        return "".join(f"\n{line}" for line in lines)


def _named(code: int) -> str:
    """A negative code is the signal that ended the process."""
    try:
        return signal.Signals(-code).name if code < 0 else f"code {code}"
    except ValueError:
        return f"signal {-code}"
