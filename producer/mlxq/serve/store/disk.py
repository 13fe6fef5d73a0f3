"""The data directory of `mlxq serve`: where files lie, and what of them is moved or removed in one step.

    records.sqlite3         `mlxq.serve.store.database`
    lock                    who uses the directory: one process alone, or several that share a Redis
    uploads/{random}        what is still being sent
    files/{file id}         what clients can fetch
    batches/{batch id}/     a batch that has not ended: input.jsonl, output.jsonl, errors.jsonl, lock

Only ids that this program has drawn become names here, and each is looked at again before it does. All is this user's
alone. Knows no records.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mlxq.errors import ConfigError
from mlxq.files.output.durable import force_to_disk, open_locked, sync_directory
from mlxq.files.paths import file_errors

_ID = re.compile(r"(file-|batch_)[0-9a-f]{32}")
ABANDONED_S = 24 * 3600
"""Age, since the last write, of an upload that nobody is sending any more."""


class DataDirectory:
    """The files in one directory, which is made if it isn't there.

    Raises:
        InputFileError: it can't be used; every method that writes raises it, too.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with file_errors(path, "use"):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            for name in ("uploads", "files", "batches"):
                (path / name).mkdir(mode=0o700, exist_ok=True)

    @property
    def records(self) -> Path:
        """The file of the records, readable by this user alone."""
        path = self.path / "records.sqlite3"
        with file_errors(path, "open"):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        return path

    def lock(self, *, alone: bool) -> int:
        """A descriptor that keeps others away until it is closed: everybody, or those that want to be alone.

        Raises:
            ConfigError: another process has the directory in a way that doesn't go with this one.
        """
        with file_errors(self.path, "lock"):
            fd = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(fd, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(fd)
                raise ConfigError(
                    f"another mlxq serve uses {self.path}: those that share a directory share a Redis, by --url"
                ) from None
        return fd

    def new_upload(self) -> Path:
        """A name for what is being sent."""
        return self.path / "uploads" / secrets.token_hex(16)

    def file(self, file_id: str) -> Path:
        """Where the content of a file lies."""
        return self.path / "files" / _checked(file_id)

    def keep_upload(self, upload: Path, file_id: str) -> None:
        """Make what was sent a file, whose name and content survive a power cut."""
        target = self.file(file_id)
        with file_errors("the uploaded file", "store"):
            with upload.open("rb") as content:
                force_to_disk(content.fileno())
            upload.replace(target)
            sync_directory(target)

    @contextmanager
    def work_on(self, batch_id: str) -> Iterator[None]:
        """Keep other processes off a batch while the block runs, whatever they believe of their leases.

        Raises:
            FileInUse: another one is at it.
            InputFileError: the batch is gone, as one is that has ended.
        """
        fd = open_locked(self._batch(batch_id) / "lock", os.O_RDWR | os.O_CREAT)
        try:
            yield
        finally:
            os.close(fd)

    def batch_input(self, batch_id: str) -> Path:
        return self._batch(batch_id) / "input.jsonl"

    def batch_output(self, batch_id: str) -> Path:
        return self._batch(batch_id) / "output.jsonl"

    def batch_errors(self, batch_id: str) -> Path:
        return self._batch(batch_id) / "errors.jsonl"

    def begin_batch(self, batch_id: str, input_file_id: str) -> bool:
        """Give a batch its input, which it keeps when the file is deleted. `False` if the file is gone."""
        source, target = self.file(input_file_id), self.batch_input(batch_id)
        with file_errors("the input file", "use"):
            target.parent.mkdir(mode=0o700)
            try:
                _link(source, target)
            except FileNotFoundError:
                target.parent.rmdir()
                return False
            sync_directory(target)
            sync_directory(target.parent)
        return True

    def hand_over(self, result: Path, file_id: str) -> int | None:
        """Make a batch's output a file; its size, or `None` if there is none. May be repeated after a kill."""
        target = self.file(file_id)
        with file_errors(f"the result {file_id}", "store"):
            with suppress(FileNotFoundError):  # it was handed over before, or there is none
                if result.stat().st_size == 0:
                    result.unlink()
                else:
                    result.replace(target)
                    sync_directory(target)
            return target.stat().st_size if target.is_file() else None

    def end_batch(self, batch_id: str) -> None:
        """Remove what a batch needed while it was worked on."""
        shutil.rmtree(self._batch(batch_id), ignore_errors=True)

    def remove_file(self, file_id: str) -> None:
        """Remove the content of a file; none is fine."""
        with file_errors(f"the file {file_id}", "remove"):
            self.file(file_id).unlink(missing_ok=True)

    def sweep(
        self, is_known: Callable[[str], bool], has_ended: Callable[[str], bool], now: float | None = None
    ) -> None:
        """Remove what kills have left: uploads that nobody sends any more, files and batches that have no record, and
        what batches that have ended needed.

        Args:
            is_known: whether a record has this id, of a file or a batch.
            has_ended: whether a record says so of the batch with this id.
            now: Unix seconds.
        """
        oldest = (time.time() if now is None else now) - ABANDONED_S
        for folder in ("uploads", "files", "batches"):
            for path in (self.path / folder).iterdir():
                with suppress(FileNotFoundError):  # another process sweeps, too
                    is_left = path.stat().st_mtime < oldest and not is_known(path.name)
                    if folder != "batches":
                        if is_left:
                            path.unlink()
                    elif is_left or has_ended(path.name):
                        shutil.rmtree(path)

    def _batch(self, batch_id: str) -> Path:
        return self.path / "batches" / _checked(batch_id)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EMLINK):
            raise
        shutil.copyfile(source, target)  # a file system without links, or with too many of them


def _checked(name: str) -> str:
    """An id as a name on the disk.

    Raises:
        ValueError: it is none of ours; whoever lets a client's words get here has a bug.
    """
    if not _ID.fullmatch(name):
        raise ValueError("this is no id of a file or a batch")
    return name
