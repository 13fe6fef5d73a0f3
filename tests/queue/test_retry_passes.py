"""Passes over an output file that ask again for answers because of how they ended, interrupted and gone on with."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from tests.support.fake_worker import FakeWorker
from tests.support.file_runs import Files, prompt, run
from tests.support.tries import Tries, last_try

from mlxq.errors import ConfigError
from mlxq.files.bulk import LeftToOthers
from mlxq.files.output.retry import Retry
from mlxq.files.output.stored import read_lines
from mlxq.files.tally import Tally
from mlxq.results.read_back import texts_of


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


AGAIN = {
    "--continue-length": Retry.read((), None, goes_on=True),
    "--max-tokens-on-retry 2x": Retry.read((), "2x"),
    "--retry-finish-reason length": Retry.read(("length",), None),
}


def killed_after(count: int) -> Callable[[Tally], bool]:
    """Ends a run as a kill does, with what it has asked left in the queue, once so many have ended."""

    def on_turn(tally: Tally) -> bool:
        if tally.succeeded >= count:
            raise LeftToOthers
        return True

    return on_turn


def stopped_after(count: int) -> Callable[[Tally], bool]:
    """Ends a run as Ctrl-C does."""
    return lambda tally: tally.succeeded < count


def write_limited(files: Files, count: int = 12) -> None:
    files.write_input(*({**prompt(f"r{number}"), "max_tokens": 2} for number in range(count)))


def answer(files: Files) -> tuple[str, ...]:
    """The last one, which counts."""
    return texts_of(list(read_lines(files.output))[-1])


@pytest.mark.parametrize("end", [killed_after, stopped_after])
@pytest.mark.parametrize("option", AGAIN)
def test_a_pass_of_retries_that_is_interrupted_asks_once_for_each(
    redis_url: str, files: Files, option: str, end: Callable[[int], Callable[[Tally], bool]]
) -> None:
    # given a run that has come to its end, with answers that have all hit their limit
    retry = AGAIN[option]
    write_limited(files)
    with FakeWorker(redis_url, Tries()) as worker:
        run(redis_url, files)

        # when a pass over them is interrupted twice, and then comes to its end
        for _ in range(2):
            with suppress(LeftToOthers):
                run(redis_url, files, retry=retry, max_inflight=2, on_turn=end(4))
            asked_again = {line["custom_id"] for line in read_lines(files.output) if last_try(line) > 1}
            num_asked = len(worker.custom_ids)
        run(redis_url, files, retry=retry)
        of_last_run = worker.custom_ids[num_asked:]

        # then what it had asked for again before is not asked for once more
        assert len(asked_again) >= 8
        assert asked_again.isdisjoint(of_last_run)
        assert {last_try(line) > 1 for line in read_lines(files.output)} == {True}

        # and the next pass asks for all of them
        assert run(redis_url, files, retry=retry).retried == 12
    assert sorted(files.answers()) == sorted(f"r{number}" for number in range(12))
    assert not list(files.output.parent.glob("*.retry.json"))


@pytest.mark.parametrize("option", AGAIN)
def test_a_first_run_that_is_killed_does_not_ask_again_for_its_own_answers(
    redis_url: str, files: Files, option: str
) -> None:
    write_limited(files)
    with FakeWorker(redis_url, Tries()) as worker:
        with suppress(LeftToOthers):
            run(redis_url, files, retry=AGAIN[option], max_inflight=2, on_turn=killed_after(4))
        answered, num_asked = files.answers(), len(worker.custom_ids)
        assert run(redis_url, files, retry=AGAIN[option]).retried == 0
    assert set(answered).isdisjoint(worker.custom_ids[num_asked:])


def test_another_option_begins_another_pass(redis_url: str, files: Files) -> None:
    write_limited(files)
    with FakeWorker(redis_url, Tries()):
        run(redis_url, files)
        with suppress(LeftToOthers):
            run(redis_url, files, retry=AGAIN["--continue-length"], max_inflight=2, on_turn=killed_after(4))
        assert run(redis_url, files, retry=AGAIN["--max-tokens-on-retry 2x"]).retried == 12


@pytest.mark.parametrize("option", ["--continue-length", "--max-tokens-on-retry 2x"])
def test_the_answer_to_a_retry_that_a_killed_run_left_in_the_queue_takes_no_whole_ones_place(
    redis_url: str, files: Files, option: str
) -> None:
    # given a run that was killed when its answers were on the disk, and still in the queue
    write_limited(files, 1)
    with FakeWorker(redis_url, Tries()) as worker:
        run(redis_url, files)
        with pytest.raises(LeftToOthers):
            run(redis_url, files, retry=AGAIN[option], on_turn=killed_after(1))
        before = answer(files)

        # when
        run(redis_url, files)

    # then
    assert (answer(files), len(worker.custom_ids)) == (before, 2)


def test_a_file_of_somebody_elses_is_not_taken_for_a_note_on_retries(redis_url: str, files: Files) -> None:
    write_limited(files, 1)
    note = files.output.with_name("out.retry.json")
    note.write_text('{"mine": 1}')
    with FakeWorker(redis_url, Tries()):
        run(redis_url, files)
        with pytest.raises(ConfigError, match=r"out\.retry\.json is none of mlxq's"):
            run(redis_url, files, retry=AGAIN["--continue-length"])
    assert note.read_text() == '{"mine": 1}'
