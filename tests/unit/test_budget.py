"""What rows cost, and which fit together."""

from __future__ import annotations

import pytest
from tests.support.row_specs import name_of, row_named, row_spec

from mlxq_worker.engine.kvcache.budget import KvBudget, KvCost
from mlxq_worker.engine.rows.group import RowGroup
from mlxq_worker.engine.rows.row import Row
from mlxq_worker.engine.scheduling.scheduler import Scheduler


@pytest.mark.parametrize(("num_tokens", "num_bytes"), [(1, 10 + 3 + 7), (8, 80 + 24 + 7), (100, 1000 + 24 + 7)])
def test_a_row_costs_its_tokens_its_windows_and_its_states(num_tokens: int, num_bytes: int) -> None:
    assert KvCost(bytes_per_token=10, windows=((3, 8),), fixed_bytes=7).of_row(num_tokens) == num_bytes


def test_a_row_in_slabs_counts_for_itself_alone() -> None:
    budget = KvBudget(KvCost(bytes_per_token=1), limit_bytes=31 * 256 + 4096 + 256, in_slabs=True)

    assert budget.taken([100] * 31 + [4000]) == 32 * 256 + 4096
    assert budget.fits([100] * 31 + [4000])
    assert not budget.fits([100] * 31 + [4000], num_prefix_tokens=1)
    assert budget.spare_tokens([100] * 31) == 4096
    assert budget.spare_tokens([100] * 200) == 0


def test_a_row_on_its_way_to_a_longer_slab_makes_others_longer() -> None:
    budget = KvBudget(KvCost(bytes_per_token=1), limit_bytes=7 * 768 + 1280, in_slabs=True)

    assert budget.fits([600] * 8)
    assert budget.taken([600] * 7 + [1100]) == 7 * 1024 + 1280


def test_a_layer_that_grows_counts_twice() -> None:
    budget = KvBudget(KvCost(bytes_per_token=10, layer_bytes_per_token=2), limit_bytes=9 * 256 * 12, in_slabs=True)

    assert budget.taken([100] * 8) == 8 * 256 * 12
    assert budget.fits([100] * 8, num_prefix_tokens=256)


@pytest.mark.parametrize(("given", "num_tokens"), [(None, 1000 // 8 // 10), (305, 30), (0, 0)])
def test_prefixes_get_the_bytes_that_are_given_or_a_share(given: int | None, num_tokens: int) -> None:
    assert KvBudget(KvCost(bytes_per_token=10), limit_bytes=1000).prefix_tokens(given) == num_tokens


def test_every_padded_row_counts_as_much_as_the_longest() -> None:
    budget = KvBudget(KvCost(bytes_per_token=10), limit_bytes=600)

    assert budget.fits([20, 5, 5])
    assert not budget.fits([21, 5, 5])
    assert budget.fits([])


def test_a_row_waits_until_it_fits_beside_the_others_and_keeps_its_turn() -> None:
    scheduler = Scheduler(4, budget=KvBudget(KvCost(bytes_per_token=1), limit_bytes=20))
    lengths = {"a": 5, "b": 5, "long": 15, "c": 5}
    for row_id, length in lengths.items():
        spec = row_spec(row_id=row_id, prompt_ids=(1,), max_tokens=length - 1)
        scheduler.add(RowGroup(Row(spec, lambda ids: "")))

    batches = []
    for _ in range(30):
        plan, _ = scheduler.schedule(0.0)
        batches.append("+".join(name_of(row.spec.row_id) for row in plan.rows))
        scheduler.commit(plan.rows, [7] * len(plan.rows), 0.0)

    assert list(dict.fromkeys(batches)) == ["a+b", "long", "c", ""]


def test_a_row_that_comes_and_goes_ahead_need_not_wait_for_one_that_does_not_fit() -> None:
    budget = KvBudget(KvCost(bytes_per_token=1), limit_bytes=60)
    scheduler = Scheduler(4, budget=budget, longest_first=True)
    for row_id, num_prompt_tokens, max_tokens in (("running", 1, 20), ("large", 5, 30), ("long", 9, 10)):
        spec = row_spec(row_id=row_id, prompt_ids=(1,) * num_prompt_tokens, max_tokens=max_tokens)
        scheduler.add(RowGroup(Row(spec, lambda ids: "")))
        plan, _ = scheduler.schedule(0.0)

    assert [name_of(row.spec.row_id) for row in plan.rows] == ["running", "long"]


def sharing_scheduler(limit_bytes: int) -> Scheduler:
    """Two rows of 100 tokens behind a prefix of 64, a byte a token."""
    scheduler = Scheduler(4, max_prefix_tokens=100, budget=KvBudget(KvCost(bytes_per_token=1), limit_bytes))
    for index in range(2):
        spec = row_spec(row_id=str(index), prompt_ids=(*range(64), 100 + index), max_tokens=35)
        scheduler.add(RowGroup(Row(spec, lambda ids: "")))
    return scheduler


@pytest.mark.parametrize(("limit_bytes", "num_running"), [(64 + 36 + 36, 2), (64 + 36 + 35, 1)])
def test_a_prefix_in_use_counts_once(limit_bytes: int, num_running: int) -> None:
    scheduler = sharing_scheduler(limit_bytes)

    scheduler.schedule(0.0)

    assert scheduler.num_running == num_running


def test_a_prefix_that_nobody_uses_makes_room_for_a_row() -> None:
    scheduler = sharing_scheduler(limit_bytes=136)
    plan, _ = scheduler.schedule(0.0)
    shared = plan.prefixes[0].prefix
    for row_id in ("0", "1"):
        scheduler.abort(row_named(row_id), "cancelled")
    idle, _ = scheduler.schedule(1.0)

    scheduler.add(RowGroup(Row(row_spec(row_id="big", prompt_ids=(9,), max_tokens=99), lambda ids: "")))
    full, _ = scheduler.schedule(2.0)

    assert idle.evicted == ()
    assert full.evicted == (shared,)
    assert [name_of(row.spec.row_id) for row in full.rows] == ["big"]
