"""Steps an engine until it is idle, for tests."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from tests.support.row_specs import name_of

from mlxq_worker.engine.api import Engine, RowResult, RowSpec, StepReport

_MAX_STEPS = 5_000


@dataclass
class Run:
    """What came of the rows, by row id, and of the steps."""

    results: dict[str, RowResult] = field(default_factory=dict)
    reports: list[StepReport] = field(default_factory=list)

    @property
    def tokens(self) -> dict[str, tuple[int, ...]]:
        return {row_id: result.token_ids for row_id, result in self.results.items()}

    @property
    def row_efficiency(self) -> float:
        """Tokens kept over rows computed."""
        return sum(report.rows_useful for report in self.reports) / sum(report.rows_computed for report in self.reports)


def run(
    engine: Engine,
    specs: Iterable[RowSpec],
    *,
    one_per_step: bool = False,
    before_step: Callable[[int], None] = lambda step_index: None,
) -> Run:
    """Admit the rows, all at once or one before every step, and step until the engine is idle.

    The clock shows the step's index in seconds. `before_step` gets it too, to interfere.
    """
    run, todo = Run(), list(specs)
    for step_index in range(_MAX_STEPS):
        for spec in todo[:1] if one_per_step else todo:
            engine.admit(spec)
        todo = todo[1:] if one_per_step else []
        before_step(step_index)
        report = engine.step(float(step_index))
        run.reports.append(report)
        for result in report.finished:
            assert name_of(result.row_id) not in run.results, f"{name_of(result.row_id)} ended twice"
            run.results[name_of(result.row_id)] = result
        if not todo and report.num_running == report.num_waiting == 0:
            return run
    raise AssertionError(f"not idle after {_MAX_STEPS} steps")


def decode(token_ids: Sequence[int]) -> str:
    """One printable character for each id below 64."""
    return "".join(chr(ord("0") + token_id) for token_id in token_ids)
