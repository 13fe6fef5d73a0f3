"""The worker's loop over a real engine: rows follow one another as closely as if the engine had them all."""

from __future__ import annotations

from tests.support.engine_runs import decode, run
from tests.support.row_specs import row_spec
from tests.support.tiny_models import build

from mlxq_worker.decoding.loop import DecodeLoop
from mlxq_worker.engine.api import StepReport
from mlxq_worker.engine.engine import BatchEngine
from mlxq_worker.messages import Admit, Channel
from mlxq_worker.step_watch import StepWatch

WIDTH = 3


class Counted(BatchEngine):
    """Keeps its reports."""

    def __init__(self) -> None:
        super().__init__(build("llama"), decode, max_num_seqs=WIDTH)
        self.reports: list[StepReport] = []

    def step(self, now: float) -> StepReport:
        self.reports.append(super().step(now))
        return self.reports[-1]


def test_the_next_row_enters_at_the_step_after_the_last_tokens_without_waiting_for_it_to_be_read() -> None:
    # given
    specs = [row_spec(row_id=str(index), max_tokens=4 + index % 3) for index in range(12)]
    engine, channel = Counted(), Channel.open()
    loop = DecodeLoop(lambda: engine, channel, WIDTH, StepWatch(60.0))

    # when
    for spec in specs:
        channel.to_decode.put(Admit((spec,)))
    loop.receive(0.0)
    loop.turn(0.0)
    while not loop.is_idle:
        loop.turn(float(len(engine.reports)))

    # then
    at_once = run(BatchEngine(build("llama"), decode, max_num_seqs=WIDTH), specs)
    assert [report.rows_computed for report in engine.reports] == [report.rows_computed for report in at_once.reports]
