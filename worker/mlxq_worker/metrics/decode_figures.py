"""What the decode thread records: steps and rows. A few additions for each step, and none for each token.

Reads no clock: whoever steps says what time it is, in seconds on the monotonic clock.
"""

from __future__ import annotations

from mlxq.metrics.figures import Figures, Snapshot
from mlxq_worker.engine.api import RowResult, StepReport
from mlxq_worker.metrics import table
from mlxq_worker.metrics.report import REPORT_S
from mlxq_worker.timing import Every


class DecodeFigures:
    """The figures of one engine after another in one process.

    Args:
        max_num_seqs: how many rows may run at once.
    """

    def __init__(self, max_num_seqs: int) -> None:
        self._figures = Figures()
        self._max_num_seqs = max_num_seqs
        self._timer = Every(REPORT_S)
        self._began: float | None = None

    def begin(self, now: float) -> None:
        """A step begins; the one before it has taken until now, if rows waited for this one all the while."""
        if self._began is not None:
            self._figures.observe(table.STEPS, now - self._began)
        self._began = now

    def end(self, report: StepReport) -> None:
        """It has ended with this."""
        figures = self._figures
        if not (report.num_running or report.num_waiting):
            self._began = None  # what comes next is a wait for work
        figures.set(table.NUM_RUNNING, report.num_running)
        figures.set(table.NUM_WAITING, report.num_waiting)
        figures.add(table.ROWS_COMPUTED, report.rows_computed)
        figures.add(table.GENERATION_TOKENS, report.rows_useful)
        if report.num_prefilled:
            figures.add(table.PREFILLED_TOKENS, report.num_prefilled)
        if report.num_prompt_tokens:
            figures.add(table.PROMPT_TOKENS, report.num_prompt_tokens)
            figures.add(table.PREFIX_QUERIES, report.num_prompt_tokens)
            figures.add(table.PREFIX_HITS, report.num_shared_tokens)
        for result in report.finished:
            self._row_ended(result)

    def raised(self) -> None:
        """It has raised an error, and the rows in the engine are gone."""
        self._began = None
        self._figures.add(table.STEPS_RAISED)
        self._figures.set(table.NUM_RUNNING, 0)

    def loaded(self, seconds: float) -> None:
        """The model is there, after so long."""
        self._figures.set(table.MODEL_LOAD, seconds)

    def is_due(self, now: float) -> bool:
        """Whether a second has passed since somebody was told yes."""
        return self._timer.is_due(now)

    def snapshot(
        self, *, is_idle: bool, kv_usage: float, width: int, memory_bytes: int, memory_limit_bytes: int | None
    ) -> Snapshot:
        """All of it, with what is only looked at for this. An idle engine makes no steps that could say that it is."""
        figures = self._figures
        if is_idle:
            figures.set(table.NUM_RUNNING, 0)
            figures.set(table.NUM_WAITING, 0)
        if num_computed := figures.value(table.ROWS_COMPUTED):
            figures.set(table.ROW_EFFICIENCY, figures.value(table.GENERATION_TOKENS) / num_computed)
        figures.set(table.BATCH_OCCUPANCY, figures.value(table.NUM_RUNNING) / self._max_num_seqs)
        figures.set(table.KV_USAGE, kv_usage)
        figures.set(table.WIDTH, width)
        if memory_limit_bytes is not None:
            figures.set(table.MEMORY_USED, memory_bytes)
            figures.set(table.MEMORY_LIMIT, memory_limit_bytes)
        return figures.snapshot()

    def _row_ended(self, result: RowResult) -> None:
        num_gaps = len(result.token_ids) - 1
        if num_gaps > 0:
            self._figures.observe(table.INTER_TOKEN, result.decode_s / num_gaps, num_gaps)
