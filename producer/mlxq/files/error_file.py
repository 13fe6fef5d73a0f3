"""The file of failures: those of this run go behind those of earlier ones, and take the place of what they are about.

A failure stays until its request has an answer or fails again, so a run that never gets to a request loses nothing,
and neither does one into whose input it doesn't belong. Knows nothing of answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mlxq.errors import InputFileError
from mlxq.files.result_file import drop_lines, open_writer, result_ids


class ErrorFile:
    """Appends failures to a file; closing it removes the old ones that are settled. Use it as a context manager.

    Of the old failures only the ids are kept in memory. What isn't a regular file has no old ones.

    Args:
        path: there is no such file afterwards if it would be empty.
        keep: go on from what it holds; otherwise it starts empty.

    Raises:
        InputFileError: the file can't be used, holds something else, or another run is using it.
    """

    def __init__(self, path: Path, *, keep: bool) -> None:
        self._path = path
        self._settled: set[str] = set()
        with ExitStack() as stack:
            self._writer = stack.enter_context(open_writer(path, keep=keep))
            self._old_bytes = path.stat().st_size if path.is_file() else 0
            self._old = result_ids(path) if path.is_file() else set()
            stack.pop_all()

    @property
    def num_unsettled(self) -> int:
        """Requests that failed in an earlier run and were not settled in this one."""
        return len(self._old) - len(self._settled)

    def append(self, line: Mapping[str, Any]) -> None:
        """Write a failure; it settles the old ones of its id."""
        self._writer.append(line)
        self.settle(line["custom_id"])

    def settle(self, custom_id: str) -> None:
        """Have `close` remove the old failures of this request: it has another outcome now."""
        if custom_id in self._old:
            self._settled.add(custom_id)

    def sync(self) -> None:
        """Force what was written to the disk."""
        self._writer.sync()

    def close(self) -> None:
        """Sync, and remove what is settled, in one atomic step."""
        self._writer.close()
        if self._settled:
            drop_lines(self._path, self._settled, before=self._old_bytes)
        if self._path.is_file() and self._path.stat().st_size == 0:
            self._path.unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # What goes wrong after an error, on a full disk for example, leaves old lines for the next run to remove.
        with suppress(InputFileError) if error else nullcontext():
            self.close()
