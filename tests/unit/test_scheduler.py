"""Who is dropped, admitted and decoded on which step, with a device that is one step behind."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.row_specs import name_of, row_named, row_spec

from mlxq.contract import Beam
from mlxq_worker.engine.api import RowResult
from mlxq_worker.engine.kvcache.budget import KvBudget, KvCost
from mlxq_worker.engine.plan import Plan
from mlxq_worker.engine.rows.beam_group import new_group
from mlxq_worker.engine.rows.group import RowGroup
from mlxq_worker.engine.rows.row import Row
from mlxq_worker.engine.scheduling.scheduler import Scheduler

EOS, TOKEN = 0, 7


def decode(token_ids: Sequence[int]) -> str:
    return "t" * len(token_ids)


def row(row_id: str, num_tokens: int = 100, *, prompt_length: int = 1, timeout_s: float | None = None) -> Row:
    """A row that may generate `num_tokens`."""
    spec = row_spec(
        row_id=row_id,
        prompt_ids=(TOKEN,) * prompt_length,
        max_tokens=num_tokens,
        end_tokens={EOS: "<eos>"},
        eos_ids=frozenset({EOS}),
        timeout_s=timeout_s,
    )
    return Row(spec, decode)


def names(rows: Iterable[Row]) -> str:
    return "".join(name_of(row.spec.row_id) for row in rows)


def ids(results: Iterable[RowResult]) -> str:
    return "".join(name_of(result.row_id) for result in results)


@dataclass
class Device:
    """Steps a scheduler as the engine does. A row gets EOS from the step at which `eos_at` says so.

    `lag` is 1 if tokens come back while the next step is already planned, 0 if at once.
    """

    scheduler: Scheduler
    lag: int
    eos_at: dict[str, int] = field(default_factory=dict)
    step_index: int = 0
    plans: list[Plan] = field(default_factory=list)

    def step(self, now: float = 0.0) -> str:
        """One step; the ids of the rows that ended on it."""
        plan, dropped = self.scheduler.schedule(now)
        self.plans.append(plan)
        landed = self.plans[-1 - self.lag].rows if len(self.plans) > self.lag else ()
        token_ids = [EOS if self._is_over(row) else TOKEN for row in landed]
        finished = self.scheduler.commit(landed, token_ids, now)
        self.step_index += 1
        return ids([*dropped, *finished])

    def _is_over(self, row: Row) -> bool:
        return self.step_index >= self.eos_at.get(name_of(row.spec.row_id), math.inf)

    @property
    def batches(self) -> list[str]:
        return [names(plan.rows) for plan in self.plans]


@pytest.fixture(params=[0, 1], ids=["plain", "pipelined"])
def lag(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def scheduler_of(width: int, *rows: Row) -> Scheduler:
    scheduler = Scheduler(width)
    for each in rows:
        scheduler.add(RowGroup(each))
    return scheduler


def test_rows_are_admitted_in_the_order_of_arrival_up_to_the_width() -> None:
    scheduler = scheduler_of(2, row("a"), row("b"), row("c"))

    plan, dropped = scheduler.schedule(0.0)

    assert (names(plan.rows), dropped) == ("ab", [])
    assert repr(scheduler) == "Scheduler(running=2/2 waiting=1)"


def test_an_ended_row_is_replaced_on_the_next_step(lag: int) -> None:
    device = Device(scheduler_of(2, row("a"), row("b"), row("c")), lag, eos_at={"b": 1 + lag})

    ended = [device.step() for _ in range(3 + lag)]

    # A step after its EOS was asked for, the row is still in the batch only if nobody has seen the EOS yet.
    assert device.batches == ["ab"] * (2 + lag) + ["ac"]
    assert ended == [""] * (1 + lag) + ["b", ""]


def test_rows_that_stay_keep_their_order_before_those_that_join(lag: int) -> None:
    device = Device(scheduler_of(3, row("a", 1), row("b"), row("c")), lag)
    device.step()
    device.scheduler.add(RowGroup(row("d")))

    device.step()

    assert device.batches == ["abc", "bcd"]


def test_a_row_whose_last_permitted_token_is_on_its_way_frees_its_place_early(lag: int) -> None:
    device = Device(scheduler_of(1, row("a", 2), row("b", 1)), lag)

    ended = [device.step() for _ in range(3 + lag)]

    assert device.batches == ["a", "a", "b", ""][: 3 + lag]
    assert ended == ["", "a", "b"] if lag == 0 else ["", "", "a", "b"]


def test_a_row_at_its_limit_still_runs_until_its_last_token_is_back() -> None:
    device = Device(scheduler_of(1, row("a", 1), row("b", 1)), lag=1)

    device.step()
    plan, _ = device.scheduler.schedule(0.0)

    assert names(plan.rows) == "b"
    assert device.scheduler.num_running == 2


def test_the_token_of_a_row_that_has_ended_is_thrown_away() -> None:
    ended = row("a")
    device = Device(scheduler_of(2, ended, row("b")), lag=1, eos_at={"a": 1})

    finished = [device.step() for _ in range(4)]

    assert finished == ["", "a", "", ""]
    assert device.batches == ["ab", "ab", "b", "b"]
    assert ended.token_ids == [EOS]


@pytest.mark.parametrize("reason", ["cancelled", "deadline"])
def test_a_running_row_that_is_aborted_ends_on_the_next_step_with_what_it_has(lag: int, reason: Any) -> None:
    aborted = row("a")
    device = Device(scheduler_of(1, aborted, row("b")), lag)
    for _ in range(3):
        device.step()

    device.scheduler.abort(row_named("a"), reason)

    assert device.step() == "a"
    assert device.batches[-1] == "b"
    assert aborted.result is not None
    assert aborted.result.stop_details.type == reason
    assert len(aborted.result.token_ids) == 3 - lag


def test_a_waiting_row_that_is_aborted_never_runs(lag: int) -> None:
    device = Device(scheduler_of(1, row("a", 1), row("b"), row("c", 1)), lag)

    device.scheduler.abort(row_named("b"), "cancelled")
    ended = "".join(device.step() for _ in range(4))

    assert ended == "bac"
    assert "b" not in "".join(device.batches)
    assert device.scheduler.num_waiting == 0


def test_a_row_aborted_while_its_last_token_is_on_its_way_is_reported_once() -> None:
    device = Device(scheduler_of(1, row("a", 1)), lag=1)
    device.step()

    device.scheduler.abort(row_named("a"), "cancelled")

    assert [device.step() for _ in range(3)] == ["a", "", ""]


def test_the_first_abort_reason_stays() -> None:
    aborted = row("a")
    scheduler = scheduler_of(1, aborted)

    scheduler.abort(row_named("a"), "deadline")
    scheduler.abort(row_named("a"), "cancelled")
    scheduler.schedule(0.0)

    assert aborted.result is not None
    assert aborted.result.stop_details.type == "deadline"


def test_aborting_an_unknown_row_changes_nothing(lag: int) -> None:
    device = Device(scheduler_of(1, row("a")), lag)

    device.scheduler.abort(row_named("z"), "cancelled")

    assert device.step() == ""
    assert device.batches == ["a"]


def test_a_cancelled_row_that_is_also_overdue_was_cancelled() -> None:
    aborted = row("a", timeout_s=1.0)
    scheduler = scheduler_of(1, aborted)
    scheduler.schedule(0.0)

    scheduler.abort(row_named("a"), "cancelled")
    scheduler.schedule(5.0)

    assert aborted.result is not None
    assert aborted.result.stop_details.type == "cancelled"


def test_an_overdue_row_is_dropped_and_its_room_taken_on_the_same_step(lag: int) -> None:
    device = Device(scheduler_of(1, row("a", timeout_s=2.0), row("b", timeout_s=2.0)), lag)

    ended = [device.step(now) for now in (10.0, 11.9, 12.0, 13.9, 14.0)]

    assert ended == ["", "", "a", "", "b"]  # waiting does not use up b's allowance
    assert device.batches == ["a", "a", "b", "b", ""]


def test_a_row_that_wants_no_more_tokens_leaves_its_room_to_the_next(lag: int) -> None:
    device = Device(scheduler_of(2, row("a", 1), row("b", 2), row("c", 1)), lag)

    device.step()
    device.step()

    assert device.batches == ["ab", "bc"]


def test_a_lower_limit_lets_nobody_in_before_enough_rows_have_ended(lag: int) -> None:
    scheduler = scheduler_of(4, *(row(name, 2) for name in "abcd"), *(row(name, 2) for name in "efgh"))
    device = Device(scheduler, lag)
    device.step()

    scheduler.limit_rows(2)
    while "e" not in "".join(device.batches):
        device.step()
    scheduler.limit_rows(None)
    device.step()

    first = next(index for index, batch in enumerate(device.batches) if "e" in batch)
    assert device.batches[:2] == ["abcd", "abcd"]
    assert device.batches[first : first + 2] == ["ef", "efgh"]


def test_a_beam_search_wider_than_the_limit_runs_alone() -> None:
    scheduler = Scheduler(4)
    scheduler.limit_rows(2)
    scheduler.add(new_group(row_spec(row_id="search", beam=Beam(width=3)), decode))
    scheduler.add(RowGroup(row("after")))

    plan, _ = scheduler.schedule(0.0)

    assert (names(plan.rows), scheduler.num_running, scheduler.num_waiting) == ("search", 3, 1)


def test_what_has_not_started_can_be_withdrawn_and_shares_no_prefix_any_more() -> None:
    scheduler = scheduler_of(1, *(row(name, prompt_length=200) for name in ("a", "a#1", "b", "c")))
    scheduler.schedule(0.0)

    some = scheduler.withdraw([row_named("c"), row_named("a#1"), row_named("unknown")])
    rest = scheduler.withdraw()

    assert [name_of(spec.row_id) for spec in some] == ["c"], "a#1 belongs to a request that has started"
    assert [name_of(spec.row_id) for spec in rest] == ["b"]
    assert (scheduler.num_running, scheduler.num_waiting) == (1, 1)


def test_the_batch_is_never_wider_than_the_limit_and_every_row_ends_once(lag: int) -> None:
    rows = [row(chr(ord("a") + index), num_tokens=1 + index * 7 % 5) for index in range(20)]
    device = Device(scheduler_of(3, *rows), lag)
    ended = ""

    while device.scheduler.num_running or device.scheduler.num_waiting:
        ended += device.step()

    assert max(map(len, device.batches)) == 3
    assert sorted(ended) == sorted(names(rows))
    assert sum(map(len, device.batches)) == sum(len(each.token_ids) for each in rows)


def test_clear_forgets_running_and_waiting_rows() -> None:
    scheduler = scheduler_of(1, row("a"), row("b"))
    scheduler.schedule(0.0)

    scheduler.clear()

    plan, dropped = scheduler.schedule(1.0)
    assert (plan.rows, dropped) == ((), [])
    assert repr(scheduler) == "Scheduler(running=0/1 waiting=0)"


def chunks(plan: Plan) -> list[tuple[str, int, int]]:
    return [(name_of(chunk.row.spec.row_id), chunk.start, chunk.stop) for chunk in plan.prefill]


def test_without_a_limit_on_tokens_a_prompt_is_prefilled_on_one_step() -> None:
    scheduler = scheduler_of(2, row("a", prompt_length=1000), row("b", prompt_length=3))

    plan, _ = scheduler.schedule(0.0)

    assert chunks(plan) == [("a", 0, 1000), ("b", 0, 3)]


def test_a_long_prompt_is_prefilled_over_several_steps_beside_the_decoding_rows() -> None:
    scheduler = Scheduler(3, max_num_batched_tokens=4)
    for each in (row("a"), row("b", prompt_length=9), row("c", prompt_length=2)):
        scheduler.add(RowGroup(each))

    plans = [scheduler.schedule(0.0)[0] for _ in range(6)]

    assert [chunks(plan) for plan in plans] == [
        [("a", 0, 1), ("b", 0, 3)],
        [("b", 3, 6)],
        [("b", 6, 9)],
        [("c", 0, 2)],
        [],
        [],
    ]
    assert [names(plan.decoding) for plan in plans] == ["", "a", "a", "ab", "abc", "abc"]


def test_a_prompt_gets_on_by_a_token_a_step_where_decoding_rows_fill_the_step() -> None:
    scheduler = Scheduler(3, max_num_batched_tokens=2)
    for each in (row("a"), row("b"), row("c", prompt_length=2)):
        scheduler.add(RowGroup(each))

    plans = [scheduler.schedule(0.0)[0] for _ in range(3)]

    assert [chunks(plan) for plan in plans] == [[("a", 0, 1), ("b", 0, 1)], [("c", 0, 1)], [("c", 1, 2)]]


def test_a_row_cancelled_while_its_prompt_is_prefilled_has_no_tokens_and_frees_its_place() -> None:
    cancelled = row("a", prompt_length=9)
    scheduler = Scheduler(1, max_num_batched_tokens=4)
    scheduler.add(RowGroup(cancelled))
    scheduler.add(RowGroup(row("b")))
    scheduler.schedule(0.0)

    scheduler.abort(row_named("a"), "cancelled")
    plan, dropped = scheduler.schedule(1.0)

    assert ids(dropped) == "a"
    assert dropped[0].token_ids == ()
    assert dropped[0].stop_details.token_index is None
    assert chunks(plan) == [("b", 0, 1)]


@given(
    lengths=st.lists(st.integers(1, 12), max_size=8),
    width=st.integers(1, 4),
    max_num_batched_tokens=st.integers(1, 8),
)
def test_every_prompt_is_prefilled_once_in_order_and_no_step_takes_more_than_it_may(
    lengths: list[int], width: int, max_num_batched_tokens: int
) -> None:
    scheduler = Scheduler(width, max_num_batched_tokens)
    rows = [row(str(index), num_tokens=2, prompt_length=length) for index, length in enumerate(lengths)]
    for each in rows:
        scheduler.add(RowGroup(each))
    prefilled: list[tuple[str, int]] = []

    while scheduler.num_running or scheduler.num_waiting:
        plan, _ = scheduler.schedule(0.0)
        due = [*plan.decoding, *(chunk.row for chunk in plan.prefill if chunk.is_last)]
        scheduler.commit(due, [TOKEN] * len(due), 0.0)

        num_tokens = len(plan.decoding) + sum(map(len, plan.prefill))
        assert num_tokens <= max(max_num_batched_tokens, len(plan.decoding) + 1)
        assert len(plan.rows) == len(set(plan.rows)) <= width
        # A prompt that is cut off takes the rest of the step, so at most one is ever under way.
        assert sum(not chunk.is_last for chunk in plan.prefill) <= 1
        prefilled += [(name, index) for name, start, stop in chunks(plan) for index in range(start, stop)]

    assert prefilled == [(str(number), index) for number, length in enumerate(lengths) for index in range(length)]
    assert all(each.result for each in rows)


@given(
    prompts=st.lists(st.tuples(st.sampled_from([0, 70, 100]), st.integers(1, 60)), min_size=1, max_size=8),
    width=st.integers(1, 4),
    max_num_batched_tokens=st.integers(1, 90),
    max_prefix_tokens=st.sampled_from([0, 70, 1_000]),
    cancels=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 7)), max_size=3),
)
def test_a_shared_prefix_is_prefilled_before_its_rows_and_a_prompt_under_way_goes_on_at_every_step(
    prompts: list[tuple[int, int]],
    width: int,
    max_num_batched_tokens: int,
    max_prefix_tokens: int,
    cancels: list[tuple[int, int]],
) -> None:
    scheduler = Scheduler(width, max_num_batched_tokens, max_prefix_tokens)
    rows = []
    for index, (num_shared, num_own) in enumerate(prompts):
        spec = row_spec(row_id=str(index), prompt_ids=(TOKEN,) * num_shared + (100 + index,) * num_own, max_tokens=2)
        rows.append(Row(spec, decode))
        scheduler.add(RowGroup(rows[-1]))
    under_way: set[Row] = set()

    for step_index in range(1_000):
        for at, index in cancels:
            if at == step_index:
                scheduler.abort(str(index), "cancelled")
        plan, _ = scheduler.schedule(0.0)

        assert sum(map(len, plan.prefill + plan.prefixes)) <= max(1, max_num_batched_tokens - len(plan.decoding))
        assert {each for each in under_way if not each.finished} <= set(plan.rows)
        for chunk in plan.prefill:
            prefix = chunk.row.prefix
            assert prefix is None or (prefix.is_prefilled and chunk.start >= len(prefix))
            assert prefix not in plan.evicted
        under_way = {chunk.row for chunk in plan.prefill if not chunk.is_last}
        due = [*plan.decoding, *(chunk.row for chunk in plan.prefill if chunk.is_last)]
        scheduler.commit(due, [TOKEN] * len(due), 0.0)
        if not (scheduler.num_running or scheduler.num_waiting):
            break

    assert all(each.finished for each in rows)
    used = {each.prefix for each in rows if each.prefix}
    bases = Counter(prefix.base for prefix in used)
    assert all(prefix.num_users == bases[prefix] for prefix in used)


# --- For whoever watches --------------------------------------------------------------------------------------


def test_what_a_prompt_shares_with_one_that_is_computed_counts_as_shared() -> None:
    prompt = tuple(range(200))
    scheduler = Scheduler(4, max_num_batched_tokens=1000, max_prefix_tokens=1000)
    for name in "abc":
        scheduler.add(new_group(row_spec(row_id=name, prompt_ids=(*prompt, ord(name))), decode))

    scheduler.schedule(0.0)

    # The first one computes it, for all.
    assert (scheduler.admitted.num_tokens, scheduler.admitted.num_shared) == (3 * 201, 2 * 200)
    scheduler.schedule(1.0)
    assert scheduler.admitted.num_tokens == 0


def test_the_budget_is_used_by_what_runs() -> None:
    budget = KvBudget(KvCost(bytes_per_token=2), limit_bytes=1000)
    scheduler = Scheduler(4, budget=budget)
    before = scheduler.kv_usage()
    scheduler.add(new_group(row_spec(max_tokens=99), decode))

    waiting = scheduler.kv_usage()
    scheduler.schedule(0.0)

    assert (before, waiting, scheduler.kv_usage()) == (0.0, 0.0, 0.2)
