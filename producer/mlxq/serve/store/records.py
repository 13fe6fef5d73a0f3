"""What is known of one uploaded or produced file, and of one batch, and how OpenAI's API shows both.

Values only: nothing here reads or writes anything. Times are whole Unix seconds. The attributes of a record are what
is stored: one may be added with a default, none renamed.
"""

from __future__ import annotations

import secrets
from typing import Any, Final, Literal, get_args

import msgspec

Status = Literal["validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"]
Outcome = Literal["completed", "expired", "cancelled"]
Purpose = Literal["batch", "batch_output"]

STATUSES: Final[tuple[Status, ...]] = get_args(Status)
ENDED: Final[frozenset[Status]] = frozenset({"failed", "completed", "expired", "cancelled"})
"""What no batch leaves any more."""


class FileRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One file of a key's. `num_bytes` is its size, `filename` what its owner calls it: no name on our disk."""

    id: str
    owner: str
    purpose: Purpose
    filename: str
    num_bytes: int
    created_at: int
    expires_at: int | None = None

    def shown(self) -> dict[str, Any]:
        """OpenAI's file object."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": self.num_bytes,
            "created_at": self.created_at,
            "expires_at": self.expires_at,
            "filename": self.filename,
            "purpose": self.purpose,
            "status": "processed",
            "status_details": None,
        }


class LineError(msgspec.Struct, frozen=True, kw_only=True):
    """What is wrong with one line of a batch's input, or, without a line number, with all of it."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """How many requests a batch has, and what became of them so far."""

    total: int = 0
    completed: int = 0
    failed: int = 0


class TokenUsage(msgspec.Struct, frozen=True, kw_only=True):
    """The tokens of a batch's answers."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0

    def shown(self) -> dict[str, Any]:
        """OpenAI's usage of a batch."""
        return {
            "input_tokens": self.prompt_tokens,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": self.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": self.reasoning_tokens},
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }


class BatchRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One batch of a key's.

    `output_id` and `error_id` are drawn when the batch is made; they are shown once there is such a file. `outcome` is
    set as soon as every line has its answer: what is left to do then is to hand over the files.
    """

    id: str
    owner: str
    endpoint: str
    input_file_id: str
    input_name: str
    completion_window: str
    created_at: int
    expires_at: int
    output_id: str
    error_id: str
    status: Status = "validating"
    outcome: Outcome | None = None
    metadata: dict[str, str] | None = None
    output_ttl_s: int | None = None
    errors: tuple[LineError, ...] = ()
    counts: Counts = Counts()
    usage: TokenUsage | None = None
    has_output: bool = False
    has_errors: bool = False
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None

    def shown(self) -> dict[str, Any]:
        """OpenAI's batch object."""
        errors = [msgspec.to_builtins(error) for error in self.errors]
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": self.endpoint,
            "errors": {"object": "list", "data": errors} if errors else None,
            "input_file_id": self.input_file_id,
            "completion_window": self.completion_window,
            "status": self.status,
            "output_file_id": self.output_id if self.has_output else None,
            "error_file_id": self.error_id if self.has_errors else None,
            "created_at": self.created_at,
            "in_progress_at": self.in_progress_at,
            "expires_at": self.expires_at,
            "finalizing_at": self.finalizing_at,
            "completed_at": self.completed_at,
            "failed_at": self.failed_at,
            "expired_at": self.expired_at,
            "cancelling_at": self.cancelling_at,
            "cancelled_at": self.cancelled_at,
            "request_counts": msgspec.to_builtins(self.counts),
            "usage": None if self.usage is None else self.usage.shown(),
            "metadata": self.metadata,
        }


def new_file_id() -> str:
    """An id that nobody can guess."""
    return f"file-{secrets.token_hex(16)}"


def new_batch_id() -> str:
    """Likewise; also the batch's id in the queue (`mlxq status`)."""
    return f"batch_{secrets.token_hex(16)}"
