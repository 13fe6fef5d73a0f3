"""The four methods through which everything outside `engine/` sees the engine, MLX or fake.

Kept apart from the implementation so that the queue side, and its tests, never import mlx.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from mlxq_worker.engine.rows.row import RowSpec, StepReport

AbortReason = Literal["cancelled", "deadline"]
"""Why a row was ended from outside; the words are `StopDetails.type`'s."""

RowError = Literal["nan_logits", "no_token_allowed"]
"""Why a row ended with the type ``error``: the model computed no number for it, or what the row asks for leaves it no
token to take."""


class Engine(Protocol):
    """One batch of rows. Not thread-safe: one thread builds, steps and closes it.

    A `step` that raises leaves the batch unusable: `close` it and build another.
    """

    def admit(self, spec: RowSpec) -> None:
        """Put a row in the waiting line; it joins the batch at a later `step`, in order.

        Raises:
            RequestError: the engine could never run it.
        """

    def step(self, now: float) -> StepReport:
        """Advance every running row, as a rule by one token, and report the rows that ended on this step.

        Args:
            now: seconds on a monotonic clock; deadlines and durations are measured with it.
        """

    def cancel(self, row_id: str, reason: AbortReason = "cancelled") -> None:
        """End a waiting or running row at the next `step`, keeping the text it has. Unknown ids are ignored:
        the row may have ended in the meantime."""

    def close(self) -> None:
        """Drop all rows and free what the batch holds."""
