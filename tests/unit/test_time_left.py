"""The time left that a progress display shows, against what a batch of rows of mixed lengths then takes."""

from __future__ import annotations

import pytest
from tests.bench.time_left import LONG_TAILS, MIXED, looks_of, played, shares_off

from mlxq.files.time_left import TimeLeft


@pytest.mark.parametrize("name", MIXED)
@pytest.mark.parametrize("seed", range(3))
def test_from_halfway_on_the_time_left_is_within_a_quarter_of_the_truth(name: str, seed: int) -> None:
    # given a run over two thousand requests of mixed lengths, that begins with ten seconds of loading
    rows = played(name, MIXED[name], seed)

    # when it is looked at from halfway on
    looks = list(looks_of(rows))

    # then
    assert len(looks) > 50
    assert [look for look in looks if look.is_off] == []


def test_where_a_few_rows_are_far_longer_it_is_hardly_worse_than_for_somebody_who_knows_all_but_the_future() -> None:
    shares = [shares_off(name, draw, num_seeds=12) for name, draw in LONG_TAILS.items()]
    ours, his = (sum(each) / len(shares) for each in zip(*shares, strict=True))
    assert 0.1 < his < ours + 0.05
    assert ours < his + 0.05


def test_nothing_is_said_before_anything_has_ended_and_little_is_needed_then() -> None:
    time_left = TimeLeft()
    assert time_left.estimate_s(10, []) is None
    for second in range(5):
        time_left.update(second, 0)
    assert time_left.estimate_s(10, []) is None
    time_left.update(5.0, 2)
    time_left.update(6.0, 4)
    assert time_left.estimate_s(10, []) == pytest.approx(5.0, rel=0.5)


def test_a_long_run_keeps_few_samples_and_its_rate() -> None:
    time_left = TimeLeft()
    for second in range(20_000):
        time_left.update(second, 3 * second)
    assert time_left.estimate_s(300, []) == pytest.approx(100, rel=0.02)
    assert len(time_left._samples) <= 512
