"""The fault run's own judgement: a schedule that its seed fixes, and promises whose breaking it notices."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
from tests.faults.schedule import draw, redis_errors
from tests.faults.verdict import blame_on_workers, broken_promises, seen_in_logs


def answer(custom_id: str, text: str = "Paris") -> dict[str, Any]:
    body = {"choices": [{"text": text}], "usage": {"completion_tokens": 2}}
    return {"custom_id": custom_id, "response": {"body": body}, "error": None}


EXPECTED = {name: answer(name) for name in ("a", "b")}


def test_equal_seeds_give_equal_faults_and_redis_is_killed_once_in_each_third() -> None:
    faults = draw(1, 300.0, 3, 3.0)

    assert faults == draw(1, 300.0, 3, 3.0) != draw(2, 300.0, 3, 3.0)
    assert [fault.at_s // 100 for fault in faults if fault.kind == "kill Redis"] == [0, 1, 2]
    assert len(Counter(fault.kind for fault in faults)) == 6
    assert [fault.at_s for fault in faults] == sorted(fault.at_s for fault in faults)


@pytest.mark.parametrize(
    ("output", "errors", "broken"),
    [
        ([answer("b"), answer("a")], [], []),
        ([answer("a")], [], ["1 requests were lost: b"]),
        ([answer("a"), answer("b"), answer("a")], [], ["1 requests were there more than once: a"]),
        ([answer("a"), answer("b"), answer("c")], [], ["1 requests were never asked for: c"]),
        ([answer("a")], [answer("b")], ["1 requests failed to the end: b"]),
        ([answer("a"), answer("b", "Rome")], [], ["1 requests were answered differently: b"]),
    ],
)
def test_a_promise_that_is_broken_is_named(
    output: list[dict[str, Any]], errors: list[dict[str, Any]], broken: list[str]
) -> None:
    assert broken_promises(EXPECTED, output, errors) == broken


def test_what_the_workers_went_through_is_added_up() -> None:
    logs = "12:00 Requeued 7 jobs of a worker that died\n12:01 Requeued 1 jobs of a worker that died\n"

    assert seen_in_logs(logs)["requeued strikes"] == 8


def test_each_of_redis_own_errors_has_its_turn_and_ends_before_the_next() -> None:
    faults = redis_errors(300.0)

    assert len({fault.kind for fault in faults}) == len(faults) >= 4
    assert all(fault.at_s + fault.lasts_s < after.at_s for fault, after in pairwise(faults))


@pytest.mark.parametrize(
    ("seen", "blame"),
    [
        ({"requeued strikes": 0, "runs": 3}, []),
        ({"requeued strikes": 2}, ["2 requeued strikes for errors of Redis"]),
        ({"lines failed as worker_crashed and tried again": 1}, ["1 lines failed as worker_crashed and tried again"]),
    ],
)
def test_a_strike_or_a_failure_for_an_error_of_redis_is_named(seen: dict[str, int], blame: list[str]) -> None:
    assert blame_on_workers(seen) == blame
