"""What rows cost, and which fit together."""

from __future__ import annotations

import pytest

from mlxq_worker.engine.budget import KvBudget, KvCost
from mlxq_worker.engine.row import Row
from mlxq_worker.engine.scheduler import Scheduler
from row_specs import row_spec


@pytest.mark.parametrize(("num_tokens", "num_bytes"), [(1, 10 + 3 + 7), (8, 80 + 24 + 7), (100, 1000 + 24 + 7)])
def test_a_row_costs_its_tokens_its_windows_and_its_states(num_tokens: int, num_bytes: int) -> None:
    assert KvCost(bytes_per_token=10, windows=((3, 8),), fixed_bytes=7).of_row(num_tokens) == num_bytes


def test_every_row_counts_as_much_as_the_longest() -> None:
    budget = KvBudget(KvCost(bytes_per_token=10), limit_bytes=600)

    assert budget.fits([20, 5, 5])
    assert not budget.fits([21, 5, 5])
    assert budget.fits([])


def test_a_row_waits_until_it_fits_beside_the_others_and_keeps_its_turn() -> None:
    scheduler = Scheduler(4, budget=KvBudget(KvCost(bytes_per_token=1), limit_bytes=20))
    lengths = {"a": 5, "b": 5, "long": 15, "c": 5}
    for row_id, length in lengths.items():
        spec = row_spec(row_id=row_id, prompt_ids=(1,), max_tokens=length - 1)
        scheduler.add(Row(spec, lambda ids: ""))

    batches = []
    for _ in range(30):
        plan, _ = scheduler.schedule(0.0)
        batches.append("+".join(row.spec.row_id for row in plan.rows))
        scheduler.commit(plan.rows, [7] * len(plan.rows), 0.0)

    assert list(dict.fromkeys(batches)) == ["a+b", "long", "c", ""]
