"""How rows end in the engine, and what each end costs, with a model whose tokens are known beforehand.

The clock shows the step's index in seconds.
"""

from __future__ import annotations

import logging
from random import Random
from typing import Any

import pytest
from tests.support.countdown import EOS, VOCAB_SIZE, Countdown, counting_from, decode
from tests.support.engine_runs import run
from tests.support.row_specs import name_of, row_named

from mlxq.contract import StopDetails
from mlxq_worker.engine.api import RowResult, RowSpec
from mlxq_worker.engine.engine import BatchEngine


@pytest.fixture(params=[True, False], ids=["pipelined", "plain"])
def pipelined(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def lag(pipelined: bool) -> int:
    """By how many steps tokens are late."""
    return int(pipelined)


def engine(width: int, pipelined: bool, model: Any = None) -> BatchEngine:
    return BatchEngine(model or Countdown(), decode, max_num_seqs=width, pipelined=pipelined)


def ended(spec: RowSpec, pipelined: bool) -> RowResult:
    """The row's result, from a batch with two others."""
    neighbours = [counting_from(9, row_id="before"), counting_from(30, row_id="after")]
    return run(engine(3, pipelined), [neighbours[0], spec, neighbours[1]]).results[name_of(spec.row_id)]


def test_a_row_ends_on_eos_and_the_text_does_not_hold_it(pipelined: bool) -> None:
    result = ended(counting_from(4), pipelined)

    assert result.token_ids == (4, 3, 2, 1, EOS)
    assert result.text == "dcba"
    assert result.stop_details == StopDetails(type="eos_token", token_id=EOS, token="<eos>", token_index=4)


def test_a_row_that_ignores_eos_goes_on_past_it_to_its_limit(pipelined: bool) -> None:
    result = ended(counting_from(2, end_tokens={}, eos_ids=frozenset(), max_tokens=5), pipelined)

    assert result.token_ids == (2, 1, EOS, VOCAB_SIZE - 1, VOCAB_SIZE - 2)
    assert result.stop_details == StopDetails(type="max_tokens", token_index=4)


def test_a_row_ends_on_a_stop_id_before_its_eos(pipelined: bool) -> None:
    result = ended(counting_from(6, end_tokens={EOS: "<eos>", 3: "c"}), pipelined)

    assert result.text == "fed"
    assert result.stop_details == StopDetails(type="stop_token", token_id=3, token="c", token_index=3)


@pytest.mark.parametrize(("keep_it", "text"), [(False, "f"), (True, "fed")], ids=["cut", "kept"])
def test_a_row_ends_on_a_stop_string_that_spans_tokens(pipelined: bool, keep_it: bool, text: str) -> None:
    result = ended(counting_from(6, stop=("ed",), include_stop_str_in_output=keep_it), pipelined)

    assert result.text == text
    assert result.token_ids == (6, 5, 4)
    assert result.stop_details == StopDetails(type="stop_string", string="ed", token_index=2)


def test_a_row_ends_where_the_context_is_full(pipelined: bool) -> None:
    result = ended(counting_from(20, prompt_ids=(50,) * 9 + (21,), context_length=14), pipelined)

    assert result.token_ids == (20, 19, 18, 17)
    assert result.num_prompt_tokens == 10
    assert result.stop_details == StopDetails(type="context_length", token_index=3)


def test_eos_as_the_last_permitted_token_is_eos(pipelined: bool) -> None:
    assert ended(counting_from(4, max_tokens=5), pipelined).stop_details.type == "eos_token"
    assert ended(counting_from(4, max_tokens=4), pipelined).stop_details.type == "max_tokens"


def test_a_row_past_its_deadline_keeps_what_it_has_and_waiting_does_not_count(pipelined: bool, lag: int) -> None:
    specs = [counting_from(20, timeout_s=4.0), counting_from(21, timeout_s=4.0)]

    outcome = run(engine(1, pipelined), specs)

    assert [outcome.reports[step_index].finished for step_index in (4, 8)] == [
        (outcome.results["20"],),
        (outcome.results["21"],),
    ]
    assert outcome.results["20"].token_ids == (20, 19, 18, 17)[: 4 - lag]
    assert outcome.results["21"].text == "utsr"[: 4 - lag]
    assert outcome.results["21"].stop_details == StopDetails(type="deadline", token_index=3 - lag)


def test_a_cancelled_row_keeps_its_text_and_its_slot_is_taken_at_once(pipelined: bool, lag: int) -> None:
    under_test = engine(1, pipelined)

    def cancel(step_index: int) -> None:
        if step_index == 3:
            under_test.cancel(row_named("20"))

    outcome = run(under_test, [counting_from(20), counting_from(1)], before_step=cancel)

    assert outcome.reports[3].finished == (outcome.results["20"],)
    assert outcome.results["20"].text == "tsr"[: 3 - lag]
    assert outcome.results["20"].stop_details == StopDetails(type="cancelled", token_index=2 - lag)
    assert outcome.reports[4 + lag].finished == (outcome.results["1"],)


def test_a_waiting_row_is_cancelled_without_having_run(pipelined: bool) -> None:
    under_test = engine(1, pipelined)
    under_test.admit(counting_from(5))
    under_test.admit(counting_from(7))

    under_test.cancel(row_named("7"))
    report = under_test.step(0.0)

    assert [name_of(result.row_id) for result in report.finished] == ["7"]
    assert report.finished[0].stop_details == StopDetails(type="cancelled", token_index=None)
    assert (report.num_running, report.num_waiting) == (1, 0)


def test_cancelling_a_row_that_has_ended_or_never_was_changes_nothing(pipelined: bool) -> None:
    under_test = engine(2, pipelined)
    first = run(under_test, [counting_from(3)])

    under_test.cancel(row_named("3"))
    under_test.cancel(row_named("nobody"))

    assert run(under_test, [counting_from(3)]).tokens == first.tokens == {"3": (3, 2, 1, EOS)}


def test_seconds_are_split_at_the_first_token(pipelined: bool, lag: int) -> None:
    result = ended(counting_from(4), pipelined)

    assert (result.prefill_s, result.decode_s) == (lag, 4)


def test_reports_count_who_runs_and_who_waits() -> None:
    under_test = engine(2, pipelined=False)
    for first in (1, 2, 3):
        under_test.admit(counting_from(first))

    reports = [under_test.step(0.0) for _ in range(8)]

    counts = [(report.num_running, report.num_waiting) for report in reports]
    # 1 and 2 decode; 1 ends on step 1 and 3 takes its slot on step 2, where 2 ends; 3 ends on step 5.
    assert counts == [(2, 1), (1, 1), (1, 0), (1, 0), (1, 0), (0, 0), (0, 0), (0, 0)]


def test_every_token_kept_is_counted_once_as_useful(pipelined: bool) -> None:
    outcome = run(engine(3, pipelined), [counting_from(first) for first in (5, 1, 8, 2, 3)], one_per_step=True)

    assert sum(report.rows_useful for report in outcome.reports) == sum(map(len, outcome.tokens.values()))
    assert all(report.rows_useful <= report.rows_computed <= 3 for report in outcome.reports)


@pytest.mark.parametrize(
    ("changes", "wasted"),
    [
        pytest.param({}, 1, id="EOS"),
        pytest.param({"stop": ("ed",)}, 1, id="stop string"),
        pytest.param({"max_tokens": 4}, 0, id="max_tokens"),
        pytest.param({"context_length": 5}, 0, id="context length"),
        pytest.param({"max_tokens": 9}, 0, id="EOS on the last permitted token"),
    ],
)
def test_an_end_that_cannot_be_foreseen_costs_one_row_of_one_step_and_only_pipelined(
    changes: dict[str, Any], wasted: int, pipelined: bool, lag: int
) -> None:
    # A row behind it, because what is still on its way when the engine falls idle is not reported.
    outcome = run(engine(1, pipelined), [counting_from(8, **changes), counting_from(2, max_tokens=2)])

    computed = sum(report.rows_computed for report in outcome.reports)
    assert computed - sum(map(len, outcome.tokens.values())) == wasted * lag


def test_rows_of_very_different_length_keep_a_narrow_batch_efficient(pipelined: bool) -> None:
    random, width = Random(3), 4
    lengths = [random.randrange(1, VOCAB_SIZE - 2) for _ in range(60)]
    specs = [counting_from(first, row_id=str(index)) for index, first in enumerate(lengths)]

    outcome = run(engine(width, pipelined), specs)

    assert [len(outcome.tokens[name_of(spec.row_id)]) for spec in specs] == [first + 1 for first in lengths]
    assert outcome.row_efficiency >= (0.95 if pipelined else 1.0)
    # The batch was full but for the tail: no step waited for a long row to end.
    busy = [report for report in outcome.reports if report.num_waiting]
    assert {report.rows_computed for report in busy[1:]} == {width}


def test_rows_that_all_end_together_leave_an_engine_that_takes_more(pipelined: bool) -> None:
    under_test = engine(3, pipelined)
    specs = [counting_from(4, row_id=row_id) for row_id in "abc"]

    runs = [run(under_test, specs) for _ in range(2)]

    assert [set(each.tokens.values()) for each in runs] == [{(4, 3, 2, 1, EOS)}] * 2


def test_a_closed_engine_has_no_rows(pipelined: bool) -> None:
    under_test = engine(1, pipelined)
    for first in (5, 6):
        under_test.admit(counting_from(first))
    under_test.step(0.0)

    under_test.close()

    report = under_test.step(1.0)
    assert (report.finished, report.num_running, report.num_waiting, report.rows_computed) == ((), 0, 0, 0)
    assert repr(under_test) == "BatchEngine(Scheduler(running=0/1 waiting=0))"


class CacheThatCannotBeBatched:
    """Has no `merge`, as the caches of some architectures."""

    state = ()
    nbytes = 0


def test_a_model_whose_caches_cannot_be_batched_decodes_one_row_at_a_time(
    pipelined: bool, caplog: pytest.LogCaptureFixture
) -> None:
    model = Countdown(caches=[CacheThatCannotBeBatched()])
    specs = [counting_from(first, prompt_ids=(9, first + 1)) for first in (3, 1, 2)]

    with caplog.at_level(logging.WARNING):
        outcome = run(engine(8, pipelined, model), specs)

    assert "one row at a time" in caplog.text
    assert max(report.rows_computed for report in outcome.reports) == 1
    assert outcome.tokens == {"3": (3, 2, 1, EOS), "1": (1, EOS), "2": (2, 1, EOS)}
