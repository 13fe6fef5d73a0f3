"""What the scheduler asks of a device for beam searches; this one only remembers which tokens each row has computed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.row_specs import name_of, row_named, row_spec

from mlxq.contract import Beam
from mlxq_worker.engine.api import RowResult, RowSpec, TokenScores
from mlxq_worker.engine.kvcache.budget import KvBudget, KvCost
from mlxq_worker.engine.plan import Plan
from mlxq_worker.engine.rows.beam import BeamSearch
from mlxq_worker.engine.rows.beam_group import new_group
from mlxq_worker.engine.rows.row import Row
from mlxq_worker.engine.scheduling.scheduler import Scheduler

END, NUM_IDS = 0, 9


def decode(token_ids: Sequence[int]) -> str:
    return "".join(map(str, token_ids))


def continuations(token_ids: tuple[int, ...]) -> list[tuple[int, float]]:
    """All ids after these, the most probable first."""
    random = Random(str(token_ids))
    weights = [math.exp(random.gauss(0, 1.5)) for _ in range(NUM_IDS)]
    logprobs = [(token_id, math.log(weight / sum(weights))) for token_id, weight in enumerate(weights)]
    return sorted(logprobs, key=lambda pair: -pair[1])


class Device:
    """Keeps, for each row in the batch, the tokens that it has computed; tokens come back `lag` steps later."""

    def __init__(self, scheduler: Scheduler, max_num_seqs: int, lag: int) -> None:
        self._scheduler = scheduler
        self._max_num_seqs = max_num_seqs
        self._computed: dict[Row, tuple[int, ...]] = {}
        self._newest: dict[Row, int] = {}
        self._in_flight: list[dict[Row, TokenScores]] = [{} for _ in range(lag)]

    def step(self) -> list[RowResult]:
        plan, dropped = self._scheduler.schedule(0.0)
        assert len(plan.rows) + len(plan.resting) <= self._max_num_seqs
        self._fork(plan)
        self._in_flight.append(self._compute(plan))
        scores = self._in_flight.pop(0)
        rows = tuple(scores)
        return [*dropped, *self._scheduler.commit(rows, [scores[row].token_id for row in rows], 0.0, scores)]

    def _fork(self, plan: Plan) -> None:
        assert not {fork.row for fork in plan.forks if fork.source is not fork.row} & {
            fork.source for fork in plan.forks
        }
        staying = {*plan.decoding, *plan.resting}
        self._computed = {row: ids for row, ids in self._computed.items() if row in staying}
        for fork in plan.forks:
            self._computed[fork.row] = self._computed[fork.source]
            self._newest[fork.row] = fork.token_id

    def _compute(self, plan: Plan) -> dict[Row, TokenScores]:
        for row in plan.decoding:
            self._computed[row] += (self._newest[row],)
            assert self._computed[row][: len(row.spec.prompt_ids)] == row.spec.prompt_ids
            assert len(self._computed[row]) == row.decode_position + 1
        for chunk in plan.prefill:
            self._computed[chunk.row] = chunk.row.spec.prompt_ids[: chunk.stop]
        due = [*plan.decoding, *(chunk.row for chunk in plan.prefill if chunk.is_last)]
        return {row: self._sample(row) for row in due}

    def _sample(self, row: Row) -> TokenScores:
        best = continuations(self._computed[row])
        self._newest[row], logprob = best[0]
        return TokenScores(token_id=best[0][0], logprob=logprob, rank=1, top=tuple(best[: row.spec.num_logprobs]))


def alone(spec: RowSpec) -> list[tuple[int, ...]]:
    """What a row, or each hypothesis of a search, generates by itself."""
    beam = spec.beam or Beam(width=1, early_stopping=True, length_penalty=0.0)
    search = BeamSearch(beam, end_ids=frozenset({END}), limit=spec.limit, min_tokens=spec.min_tokens)
    while not search.is_over:
        every = [continuations((*spec.prompt_ids, *each.token_ids)) for each in search.running]
        search.advance([ranked if spec.beam else ranked[:1] for ranked in every])
    return [each.token_ids for each in search.best(spec.num_beams_returned)]


requests = st.lists(
    st.tuples(st.integers(0, 5), st.integers(1, 9), st.integers(1, 9), st.integers(0, 2)), min_size=1, max_size=6
)
"""Width (0 for none), length of the prompt, limit, least number of tokens."""


@pytest.mark.parametrize("lag", [0, 1], ids=["plain", "pipelined"])
@given(requests=requests, max_num_seqs=st.integers(5, 9), max_num_batched_tokens=st.sampled_from([None, 3, 50]))
def test_searches_among_other_rows_get_what_they_get_alone_in_no_more_places_than_there_are(
    lag: int, requests: list[tuple[int, int, int, int]], max_num_seqs: int, max_num_batched_tokens: int | None
) -> None:
    specs = [
        row_spec(
            row_id=f"r{index}",
            prompt_ids=tuple(range(10 * index, 10 * index + length)),
            max_tokens=limit,
            min_tokens=min_tokens if width else 0,
            end_tokens={END: "<end>"},
            eos_ids=frozenset({END}),
            beam=Beam(width=width) if width else None,
            num_beams_returned=max(1, width - 1),
        )
        for index, (width, length, limit, min_tokens) in enumerate(requests)
    ]
    scheduler = Scheduler(max_num_seqs, max_num_batched_tokens)
    for spec in specs:
        scheduler.add(new_group(spec, decode))
    device, results = Device(scheduler, max_num_seqs, lag), {}

    while scheduler.num_running or scheduler.num_waiting:
        for result in device.step():
            assert results.setdefault(name_of(result.row_id), result) is result

    for spec in specs:
        expected = {
            f"{name_of(spec.row_id)}#{place}" if place else name_of(spec.row_id): ids
            for place, ids in enumerate(alone(spec))
        }
        found = {row_id: results[row_id].token_ids for row_id in expected}
        assert found == expected
    assert len(results) == sum(spec.num_beams_returned for spec in specs)
    assert scheduler.num_running == 0


def test_a_search_leaves_out_every_other_step_of_a_device_that_is_one_step_behind() -> None:
    scheduler = Scheduler(4)
    beam = row_spec(row_id="beam", beam=Beam(width=3), max_tokens=4)
    for spec in (beam, row_spec(row_id="other", max_tokens=7)):
        scheduler.add(new_group(spec, decode))
    device, plans = Device(scheduler, 4, lag=1), []
    original = scheduler.schedule

    def schedule(now: float) -> tuple[Plan, list[RowResult]]:
        plan, dropped = original(now)
        plans.append(plan)
        return plan, dropped

    scheduler.schedule = schedule  # type: ignore[method-assign]
    while scheduler.num_running or scheduler.num_waiting:
        device.step()

    assert [sum(name_of(row.spec.row_id) == "beam" for row in plan.rows) for plan in plans] == [1, 0, 3, 0, 3, 0, 3, 0]
    assert [sum(name_of(row.spec.row_id) == "other" for row in plan.rows) for plan in plans] == [1, 1, 1, 1, 1, 1, 1, 0]


LONG_PROMPT = tuple(range(100, 170))


def test_the_rows_of_a_search_share_all_of_a_long_prompt_but_its_last_token() -> None:
    scheduler = Scheduler(3, max_prefix_tokens=100)
    scheduler.add(new_group(row_spec(prompt_ids=LONG_PROMPT, beam=Beam(width=3)), decode))

    plan, _ = scheduler.schedule(0.0)

    assert [chunk.token_ids for chunk in plan.prefixes] == [LONG_PROMPT[:-1]]
    assert [chunk.token_ids for chunk in plan.prefill] == [LONG_PROMPT[-1:]]


def test_a_search_that_waited_in_vain_leaves_nothing_that_others_would_seem_to_share() -> None:
    # Too little room to keep a prefix that nobody uses beside the row that runs.
    scheduler = Scheduler(5, max_prefix_tokens=100, budget=KvBudget(KvCost(bytes_per_token=1), limit_bytes=150))
    scheduler.add(new_group(row_spec(row_id="running", max_tokens=90), decode))
    scheduler.add(new_group(row_spec(row_id="search", prompt_ids=LONG_PROMPT, beam=Beam(width=3)), decode))
    for _ in range(2):
        plan, _ = scheduler.schedule(0.0)
        scheduler.commit(plan.rows, [7] * len(plan.rows), 0.0)
    assert repr(scheduler) == "Scheduler(running=1/5 waiting=3)"

    scheduler.abort(row_named("search"), "cancelled")
    scheduler.schedule(0.0)
    scheduler.abort(row_named("running"), "cancelled")
    scheduler.add(new_group(row_spec(row_id="alone", prompt_ids=LONG_PROMPT, max_tokens=5), decode))
    plan, _ = scheduler.schedule(0.0)

    assert [chunk.token_ids for chunk in plan.prefill] == [LONG_PROMPT]
    assert not plan.prefixes


def test_a_search_counts_with_all_its_rows_waiting_and_running() -> None:
    scheduler = Scheduler(8)
    scheduler.add(new_group(row_spec(row_id="search", beam=Beam(width=3)), decode))
    waiting = scheduler.num_waiting

    scheduler.schedule(0.0)

    assert (waiting, scheduler.num_waiting, scheduler.num_running) == (3, 0, 3)
