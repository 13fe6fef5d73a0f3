"""Tries each new grammar out in a process of its own before the worker compiles it.

The compiler's own limits don't cover everything: a small schema with `multipleOf` takes it minutes, and rules that
refer to each other thousands deep overflow its stack, which ends the process. Here that costs one request. The process
is started for the first grammar, again after each that ended it, and ends with the worker.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import asdict

from mlxq_worker.schema.openness import Probe
from mlxq_worker.text.compiler import TokenizerData, error_in

COMPILE_S = 1.0
"""Of processor time, so that what is refused doesn't depend on what else the machine does."""
_STACK_BYTES = 1024 * 1024
"""Less than any thread of the worker has."""


class GrammarTrial:
    """Tells whether a grammar can be compiled, and outlives those that can't."""

    def __init__(self, tokenizer: TokenizerData) -> None:
        self._tokenizer = tokenizer
        self._process: subprocess.Popen[str] | None = None
        self._end: Callable[[], object] = lambda: None

    def error_in(self, source: str, probes: Sequence[Probe] = ()) -> str | None:
        """Why no row can be held to this grammar, or `None` if rows can; see `compiler.error_in`."""
        process = self._running()
        if reply := _ask(process, {"source": source, "probes": [asdict(probe) for probe in probes]}):
            error: str | None = json.loads(reply)
            return error
        return _cause_of_death(process.wait())

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            self._end()
            self._process = _start()
            self._end = weakref.finalize(self, _end, self._process)
            if not _ask(self._process, asdict(self._tokenizer)):
                raise RuntimeError(f"the process that tries grammars out ends at once, with {self._process.wait()}")
        return self._process


def _start() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", __name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # where the compiler panics it quotes the request
        text=True,
        start_new_session=True,  # a Ctrl-C is for the worker, which ends it in time
    )


def _ask(process: subprocess.Popen[str], value: object) -> str:
    """The line that comes back; empty if the process has died."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(json.dumps(value) + "\n")
        process.stdin.flush()
    except BrokenPipeError:
        return ""
    return process.stdout.readline()


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def _cause_of_death(status: int) -> str:
    if status == -signal.SIGPROF:
        return f"it takes more than {COMPILE_S:g} s of computing; make it smaller, with fewer and simpler parts"
    return "the compiler breaks down on it; make it smaller, with rules that refer to each other less deeply"


# --- In the other process -------------------------------------------------------------------------------------


def _serve() -> None:
    """Compile one grammar for each line, and say what is wrong with it, or null. Ends with the input."""
    told = json.loads(sys.stdin.readline())
    tokenizer = TokenizerData(told["json"], told["num_ids"], tuple(told["eos_ids"])).build()
    print(flush=True)
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, COMPILE_S)  # nothing handles it, so it ends the process
        asked = json.loads(line)
        error = error_in(tokenizer, asked["source"], (Probe(**probe) for probe in asked["probes"]))
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(error), flush=True)


if __name__ == "__main__":
    threading.stack_size(_STACK_BYTES)
    server = threading.Thread(target=_serve)
    server.start()
    server.join()
