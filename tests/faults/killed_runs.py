"""`mlxq run` killed with signal 9 at random points of a file, and started again until it has come to its end, for each
format of output.

    python -m tests.faults.killed_runs

After each kill the output file says what is finished; here and there its last bytes are torn off first, as a power cut
does. Nothing of that may be asked of a worker again. In the end every id is there once, in a table in the order of the
input. The same once more with each option that asks again for answers that hit their limit, as all do here: killed and
started again, it asks once for each, and for all of them again when it has come to its end. Runs are forks of one
process that has imported the command; they share a Redis with a worker that answers at once. Exit code 1 if anything is
lost, doubled or computed again.
"""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import click
from pyarrow import parquet
from tests.support.fake_worker import FakeWorker
from tests.support.file_runs import prompt
from tests.support.processes import environment
from tests.support.redis_at import redis_at
from tests.support.tries import Tries, last_try
from tests.support.waiting import wait_until

from mlxq.files.output.answer_table import answers_path, is_table
from mlxq.files.output.done import load_done
from mlxq.files.output.result_file import ResultWriter
from mlxq.files.output.stored import read_lines
from mlxq_worker.supervision.redis_server import private_redis

FORMATS = ("jsonl", "jsonl.gz", "jsonl.zst", "csv", "parquet")
RETRIES = ("--continue-length", "--max-tokens-on-retry 2x", "--retry-finish-reason length")
MAX_INFLIGHT = 200
LIMITED = {"max_tokens": 3}
TORN_BYTES = 20
LOG = "runs.log"
MAX_LOG_CHARS = 3000

NURSERY = """
import os, sys
from mlxq.cli import main
for command in sys.stdin:
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        main(command.rstrip("\\n").split("\\0"))
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""
"""Reads command lines, and says of each the process that runs it, and how that has ended."""


@click.command(help=__doc__)
@click.option("--lines", "num_lines", type=click.IntRange(10), default=20_000, show_default=True)
@click.option("--kills", type=click.IntRange(1), default=10, show_default=True)
@click.option("--format", "formats", multiple=True, type=click.Choice(FORMATS), default=FORMATS)
@click.option("--retry", "retries", multiple=True, type=click.Choice(["", *RETRIES]), default=["", *RETRIES])
@click.option("--seed", type=int, default=0, show_default=True)
def main(num_lines: int, kills: int, formats: Sequence[str], retries: Sequence[str], seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder, private_redis() as redis, nursery(Path(folder)) as runs:
        told = [(name, retry) for retry in retries for name in formats]
        wrong = [
            what
            for name, retry in told
            for what in tell(runs, redis.url, Path(folder), name, num_lines, kills, seed, retry)
        ]
        if wrong:
            print((Path(folder) / LOG).read_text()[-MAX_LOG_CHARS:], file=sys.stderr)
    sys.exit(1 if wrong else 0)


def tell(
    runs: Nursery, url: str, folder: Path, name: str, num_lines: int, kills: int, seed: int, retry: str = ""
) -> list[str]:
    """The story of one format, of which a line is printed. Returns what is wrong."""
    output = folder / f"as-{name.replace('.', '-')}{retry.partition(' ')[0]}.{name}"
    story = Story(runs, url, output, num_lines, random.Random(f"{seed} {name}{retry}"), retry)
    wrong = story.tell(kills)
    told = f"{name} {retry}".strip()
    print(f"{told}: {story}; {', '.join(wrong) or 'nothing lost, doubled or computed again'}", flush=True)
    return wrong


class Nursery:
    """Starts `mlxq` as forks of one process; one at a time runs."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._pid: int | None = None

    def start(self, *arguments: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("\0".join(arguments) + "\n")
        self._process.stdin.flush()
        self._pid = int(self._read())

    def kill(self) -> None:
        assert self._pid is not None
        with suppress(ProcessLookupError):  # it has just come to its end
            os.kill(self._pid, signal.SIGKILL)

    def exit_code(self) -> int:
        """Once it has ended; that of a killed one is negative."""
        self._pid = None
        return int(self._read())

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()


@contextmanager
def nursery(folder: Path) -> Iterator[Nursery]:
    """A process that runs are forked from; they tell a log in this folder how they go."""
    command, pipe = [sys.executable, "-c", NURSERY], subprocess.PIPE
    with (
        (folder / LOG).open("w") as log,
        subprocess.Popen(command, env=environment(), stdin=pipe, stdout=pipe, stderr=log, text=True) as process,
    ):
        try:
            yield Nursery(process)
        finally:
            process.kill()


@dataclass
class Story:
    """One file, its runs and their kills, and what is wrong in the end."""

    runs: Nursery
    url: str
    output: Path
    num_lines: int
    rng: random.Random
    retry: str = ""
    num_kills: int = 0
    num_torn: int = 0
    num_computed: int = 0

    def __str__(self) -> str:
        again = self.num_computed - self.num_lines
        return f"{self.num_lines} lines, {self.num_kills} kills, {self.num_torn} torn ends, {again} computed again"

    @property
    def ids(self) -> list[str]:
        return [f"r{number}" for number in range(self.num_lines)]

    @property
    def answers(self) -> Path:
        return answers_path(self.output) if is_table(self.output) else self.output

    def tell(self, kills: int) -> list[str]:
        """Go through all of it. Returns what is wrong."""
        with redis_at(self.url) as redis:
            redis.flushall()
        given = self.output.with_name(f"{self.output.name}.in.jsonl")
        given.write_text("".join(f"{json.dumps(prompt(custom_id) | LIMITED)}\n" for custom_id in self.ids))
        points = sorted(self.rng.sample(range(1, self.num_lines * 9 // 10), kills))
        wrong: list[str] = []
        options = self.retry.split()
        finished: list[tuple[int, frozenset[str]]] = []  # how many were computed by then, and which were finished
        with FakeWorker(self.url, Tries()) as worker:
            if options:
                wrong += self._run_to_its_end(given)
            num_before = len(worker.custom_ids)
            for point in points:
                self._start(given, *options)
                wait_until(lambda: len(worker.custom_ids) >= num_before + point, f"{point} answers")  # noqa: B023 - ends before the next
                time.sleep(self.rng.random() / 50)
                self.runs.kill()
                self.num_kills += self.runs.exit_code() == -signal.SIGKILL
                left = self._finished()
                lost = frozenset().union(*(ids for _, ids in finished)) - left
                wrong += [f"{len(lost)} finished rows were lost"] if lost else []
                self._tear()
                torn = left - (still := self._finished())  # it may be what an earlier run had finished
                finished = [(count, ids - torn) for count, ids in finished]
                finished.append((len(worker.custom_ids), still))
            wrong += self._run_to_its_end(given, *options)
            computed = list(worker.custom_ids)
            if options:
                wrong += self._run_to_its_end(given, *options)
                is_over = sorted(worker.custom_ids[len(computed) :]) == sorted(self.ids)
                wrong += [] if is_over else ["the pass after the last didn't ask for each once"]
        self.num_computed = len(computed) - num_before
        again = {i for count, ids in finished for i in computed[count:] if i in ids}
        wrong += [f"{len(again)} finished rows were computed again"] if again else []
        return wrong + self._wrong_ids()

    def _run_to_its_end(self, given: Path, *options: str) -> list[str]:
        self._start(given, *options)
        code = self.runs.exit_code()
        return [f"the last run ended with {code}"] if code else []

    def _start(self, given: Path, *options: str) -> None:
        window = ("--workers", "0", "--max-inflight", str(MAX_INFLIGHT))
        self.runs.start("run", "-i", str(given), "-o", str(self.output), "--url", self.url, *window, *options)

    def _tear(self) -> None:
        """Every other time, if there is something to tear."""
        size = self.answers.stat().st_size if self.answers.exists() else 0
        if self.num_kills % 2 == 0 and size > TORN_BYTES:
            os.truncate(self.answers, size - TORN_BYTES)
            self.num_torn += 1

    def _finished(self) -> frozenset[str]:
        if not self.answers.exists():
            return frozenset()
        copy = self.answers.with_name(f"copy.{self.answers.name}")
        shutil.copy(self.answers, copy)
        with ResultWriter(copy):  # repairs it, as the next run does
            pass
        tries = {line["custom_id"]: last_try(line) for line in read_lines(copy)}
        return frozenset(custom_id for custom_id, last in tries.items() if last > bool(self.retry))

    def _wrong_ids(self) -> list[str]:
        """What is wrong with the files that there are in the end."""
        wrong = []
        done = load_done(self.answers)
        found = sorted((custom_id for custom_id, _ in done.items()), key=lambda custom_id: int(custom_id[1:]))
        if (found, done.num_lines) != (self.ids, self.num_lines):
            wrong.append(f"{self.answers.name} has {done.num_lines} lines for {len(found)} ids")
        if is_table(self.output) and (rows := _ids_of_table(self.output)) != self.ids:
            wrong.append(f"{self.output.name} has {len(rows)} rows, or others, or in another order")
        return wrong


def _ids_of_table(path: Path) -> list[str]:
    if path.suffix == ".parquet":
        return list(parquet.read_table(path).column("custom_id").to_pylist())
    with path.open(newline="") as rows:
        return [row["custom_id"] for row in csv.DictReader(rows)]


if __name__ == "__main__":
    main()
