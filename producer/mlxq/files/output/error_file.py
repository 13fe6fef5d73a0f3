"""The file of failures: those of this run go behind those of earlier ones, and take the place of what they are about.

A failure stays until its request has an answer or fails again, or until a run over the same input has come to its end
without that request. So a run that never gets to a request loses nothing, and neither does one over another input: each
failure says which input it is of. Knows nothing of answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mlxq.errors import InputFileError
from mlxq.files.output.result_file import open_writer
from mlxq.files.output.rewriting import drop_lines
from mlxq.files.output.stored import read_lines
from mlxq.results import read_back
from mlxq.storage.id_table import IdTable


class ErrorFile:
    """Appends failures to a file; closing it removes the old ones that are settled. Use it as a context manager.

    Of the old failures only the ids are kept, on the disk. What isn't a regular file has no old ones.

    Args:
        path: there is no such file afterwards if it would be empty.
        keep: go on from what it holds; otherwise it starts empty.
        source: the input that is being run, under a name that no other has; `None` if it has none.

    Raises:
        InputFileError: the file can't be used, holds something else, or another run is using it.
    """

    def __init__(self, path: Path, *, keep: bool, source: str | None = None) -> None:
        self._path = path
        self._source = source
        self._num_old = 0
        self._old, self._settled = IdTable(), IdTable()  # the old ones' values say whether they are of this source
        with ExitStack() as stack:
            self._writer = stack.enter_context(open_writer(path, keep=keep))
            for line in read_lines(path) if path.is_file() else ():
                self._note_old(line)
            stack.pop_all()

    @property
    def num_unsettled(self) -> int:
        """Requests that failed in an earlier run and were not settled in this one."""
        return len(self._old) - len(self._settled)

    def append(self, line: Mapping[str, Any]) -> None:
        """Write a failure; it settles the old ones of its id."""
        self._writer.append(line if self._source is None else {**line, "mlxq": {"input": self._source}})
        self.settle(line["custom_id"])

    def settle(self, custom_id: str) -> None:
        """Have `close` remove the old failures of this request: it has another outcome now."""
        if custom_id in self._old:
            self._settled.add(custom_id)

    def settle_all(self, custom_ids: Sequence[str]) -> None:
        """`settle` each of them."""
        if len(self._old):
            for custom_id in custom_ids:
                self.settle(custom_id)

    def settle_source(self) -> None:
        """The input was read to its end, and all of it has an outcome: what is left of it was repaired or removed."""
        for custom_id, is_of_source in self._old.items():
            if is_of_source:
                self._settled.add(custom_id)

    def sync(self) -> None:
        """Force what was written to the disk."""
        self._writer.sync()

    def close(self) -> None:
        """Sync, and remove what is settled, in one atomic step."""
        self._writer.close()
        if len(self._settled):
            drop_lines(self._path, self._settled, first=self._num_old)
        if self._path.is_file() and self._path.stat().st_size == 0:
            self._path.unlink()

    def _note_old(self, line: Mapping[str, Any]) -> None:
        self._num_old += 1
        if self._source is not None and read_back.input_of(line) == self._source:
            self._old.put(line["custom_id"], True)
        else:
            self._old.add(line["custom_id"], False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # What goes wrong after an error, on a full disk for example, leaves old lines for the next run to remove.
        with suppress(InputFileError) if error else nullcontext():
            self.close()
