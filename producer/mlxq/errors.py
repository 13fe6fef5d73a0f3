"""Every error that mlxq raises on purpose, one subclass per decision that a caller can take.

    MlxqError
    ├── RequestError            one request is wrong: fix that line (names the field)
    ├── InputFileError          a whole file can't be read or written: fix the path or the options
    │   ├── NoSuchFile          it is to be read, and isn't there: fix the path
    │   └── FileInUse           another run has it: wait for that one
    ├── ConfigError             an option or a variable has a bad value: fix it and start again
    ├── ModelError              the model can't be loaded or used: choose another
    │   └── EosError            its end-of-sequence ids are missing or impossible
    ├── WorkerFailed            the worker process keeps ending: read its last lines
    └── QueueError              the queue can't do this
        ├── QueueUnavailable    Redis can't be reached: try again later
        │   ├── QueueNotReady   it is there, and can't do this now: wait
        │   └── LoginRefused    it wants another user or password: fix the URL
        └── BatchNotFound       no such batch: check the id

A command that ends on one of them has its `exit_code`: 2 where a restart changes nothing before somebody has fixed
something, 3 where it may, since Redis is away, and 1 for the rest. Nothing here imports anything, so that every module
can.
"""

from __future__ import annotations


class MlxqError(Exception):
    """Root of all errors that mlxq raises on purpose."""

    exit_code = 1


class RequestError(MlxqError):
    """One request can't be accepted. It costs only itself.

    Args:
        message: what is wrong and what would be right, in one sentence.
        param: the field at fault as a path into the body, e.g. ``messages[0].role``; ``None`` for the whole line.
        code: a short stable word for programs, e.g. ``unknown_field``.
        status_code: the HTTP status that an online server would answer with; always 4xx.
    """

    def __init__(
        self, message: str, *, param: str | None = None, code: str = "invalid_value", status_code: int = 400
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code
        self.status_code = status_code


class InputFileError(MlxqError):
    """A file as a whole can't be read or written."""


class NoSuchFile(InputFileError):
    """A file that is to be read isn't there."""

    exit_code = 2


class FileInUse(InputFileError):
    """Another run has the file open."""


class ConfigError(MlxqError):
    """An option or an environment variable has a value that can't be used."""

    exit_code = 2


class ModelError(MlxqError):
    """The model can't be loaded or used."""

    exit_code = 2


class EosError(ModelError):
    """The model's end-of-sequence ids are missing, or one of them can't be right."""


class WorkerFailed(MlxqError):
    """A worker process that somebody looks after ended again and again, or can't start at all."""


class QueueError(MlxqError):
    """The queue can't do what was asked."""


class QueueUnavailable(QueueError):
    """Redis can't be reached, or not used."""

    exit_code = 3


class QueueNotReady(QueueUnavailable):
    """Redis is there and can't do this now: it loads, is full or busy, can't write to its disk, or is a replica."""


class LoginRefused(QueueUnavailable):
    """Redis refuses the user or the password."""

    exit_code = 2


class BatchNotFound(QueueError):
    """No batch with this id is known to this Redis."""
