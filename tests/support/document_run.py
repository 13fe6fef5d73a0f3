"""Runs the blocks of one document, as a reader would who types them one after the other into one folder.

`mlxq`, `python` and `rq` are those of this process. A Redis at the address that the documents name is the test's own;
only `mlxq run` isn't told of it, since it has one for itself where no variable is set. What `mlxq serve` listens on is
a free port, whatever a document calls it.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.support.documents import BACKGROUND, EXIT_CODE, FILE, NOT_RUN, OUTPUT, PART_OF, Block
from tests.support.ports import free_port
from tests.support.processes import ended, run, running
from tests.support.waiting import DEADLINE_S

ADDRESS = "redis://localhost:6379/0"
"""What documents call the Redis on the reader's machine."""

SERVED = "127.0.0.1:8080"
"""Where `mlxq serve` is, if no option says otherwise."""

PYTHON = shlex.quote(sys.executable)
PROGRAMS = {
    "mlxq": f'[ "$1" = run ] || export REDIS_URL="$TEST_REDIS_URL"\nexec {PYTHON} -m mlxq "$@"',
    "rq": f'export RQ_REDIS_URL="$TEST_REDIS_URL"\nexec {PYTHON} -m rq.cli "$@"',
    "python": f'exec {PYTHON} "$@"',
}


def path_with_programs(folder: Path) -> str:
    """What PATH has to be for `PROGRAMS`, which are put into a new folder."""
    folder.mkdir()
    for name, script in PROGRAMS.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    return os.pathsep.join((str(folder), os.environ["PATH"]))


class Reader:
    """Somebody with a folder, a shell, and a Redis at `redis_url`. Keeps what the last command has printed."""

    def __init__(self, folder: Path, redis_url: str) -> None:
        self.folder = folder / "work"
        self.folder.mkdir()
        self._redis_url = redis_url
        port = free_port()
        self._served = f"127.0.0.1:{port}"
        self._variables = {
            "PATH": path_with_programs(folder / "bin"),
            "TEST_REDIS_URL": redis_url,
            "COLUMNS": "120",
            "MLXQ_PORT": str(port),
        }
        self._printed = ""

    def follow(self, blocks: Iterable[Block]) -> None:
        """Do what every block says, and find what it shows; in the end, what runs in the background is told to end.

        Raises:
            AssertionError: a command ended otherwise than it should, or something shown isn't there.
        """
        with ExitStack() as stack:
            started = []
            for block in blocks:
                if block.mark == BACKGROUND:
                    command = ("bash", "-c", self._of_the_test(block.code).strip())
                    started.append(stack.enter_context(running(*command, cwd=self.folder, **self._variables)))
                elif block.mark != NOT_RUN:
                    self._do(block)
            for process in started:
                assert process.poll() is None, ended(process)
                process.terminate()
                assert process.wait(timeout=DEADLINE_S) == 0

    def _do(self, block: Block) -> None:
        if block.is_command:
            self._run(block)
        elif block.mark == FILE:
            assert block.value is not None
            (self.folder / block.value).write_text(block.code)
        elif block.mark == OUTPUT:
            assert self._printed.split() == block.code.split(), f"line {block.line}: this was printed:\n{self._printed}"
        elif block.mark == PART_OF:
            assert block.value is not None
            shown = json.loads(block.code)
            lines = (self.folder / block.value).read_text().splitlines()
            assert any(is_part(shown, json.loads(line)) for line in lines), f"line {block.line}: {lines}"

    def _run(self, block: Block) -> None:
        shell = ("bash", "-euo", "pipefail", "-c") if block.language == "sh" else (sys.executable, "-c")
        done = run(*shell, self._of_the_test(block.code), cwd=self.folder, **self._variables)
        expected = int(block.value or 0) if block.mark == EXIT_CODE else 0
        assert done.returncode == expected, f"line {block.line}: {done.stdout}\n{done.stderr}"
        self._printed = done.stdout

    def _of_the_test(self, code: str) -> str:
        return code.replace(ADDRESS, self._redis_url).replace(SERVED, self._served)


def is_part(shown: Any, whole: Any) -> bool:
    """Whether all that is shown is in the whole: objects may leave members out, at any depth."""
    if isinstance(shown, dict) and isinstance(whole, dict):
        return all(name in whole and is_part(value, whole[name]) for name, value in shown.items())
    if isinstance(shown, list) and isinstance(whole, list):
        return len(shown) == len(whole) and all(map(is_part, shown, whole))
    return bool(shown == whole)
