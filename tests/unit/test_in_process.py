"""Requests run on the caller's thread: each is answered, whatever goes wrong with one costs that one."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count

import pytest
from tests.support.fake_engine import FakeEngine, FakePreparer, FakeRow

from mlxq.contract import COMPLETIONS, Failure, Request, Result, Sampling
from mlxq_worker.backend import Backend
from mlxq_worker.config import WorkerConfig
from mlxq_worker.decoding.memory_watch import MemoryWatch
from mlxq_worker.engine.api import Engine
from mlxq_worker.offline.in_process import InProcess

WIDTH = 4


def request(prompt: str, number: int, max_tokens: int = 3) -> Request:
    return Request(
        custom_id=str(number),
        endpoint=COMPLETIONS,
        prompt=prompt,
        sampling=Sampling(max_tokens=max_tokens),
        content_hash="",
    )


def requests(prompts: Iterable[str]) -> Iterator[Request]:
    return (request(prompt, number) for number, prompt in enumerate(prompts))


def ended(runner: InProcess, prompts: Iterable[str]) -> dict[int, str]:
    """What came of each: the text of the first answer, or the code of the failure."""
    return {int(each.custom_id): outcome(each) for each in runner.run(requests(prompts))}


def outcome(each: Result | Failure) -> str:
    return each.code if isinstance(each, Failure) else each.choices[0].text


def in_process(new_engine: type[FakeEngine] = FakeEngine, memory: MemoryWatch | None = None) -> InProcess:
    engines: list[Engine] = []

    def build() -> Engine:
        engines.append(new_engine(WIDTH))
        return engines[-1]

    backend = Backend(FakePreparer(), build, WIDTH, "fake", *([memory] if memory else []))
    runner = InProcess(backend, backend.preparer, WorkerConfig(model="fake"))
    runner.engines = engines  # type: ignore[attr-defined]
    return runner


def engines_of(runner: InProcess) -> list[FakeEngine]:
    return runner.engines  # type: ignore[attr-defined, no-any-return]


def test_every_request_is_answered_and_the_batch_stays_full() -> None:
    runner = in_process()

    assert ended(runner, ["hello"] * 50) == dict.fromkeys(range(50), "xxx")
    assert set(engines_of(runner)[0].widths[:-3]) == {WIDTH}


def test_the_engine_lives_on_for_the_next_run() -> None:
    runner = in_process()

    assert [ended(runner, ["hello"]), ended(runner, ["there", "you"])] == [{0: "xxx"}, {0: "xxx", 1: "xxx"}]
    assert len(engines_of(runner)) == 1


def test_requests_are_read_no_further_ahead_than_the_engine_chooses_among() -> None:
    runner, read = in_process(), []

    def endless() -> Iterator[Request]:
        for number in count():
            read.append(number)
            yield request("hello", number)

    first = next(runner.run(endless()))

    assert isinstance(first, Result)
    assert len(read) <= 4 * WIDTH + 1


def test_requests_that_can_not_be_prepared_or_that_the_engine_refuses_fail_alone() -> None:
    prompts = ["hello", "bad", "refuse", "misfit rows=3", "nan", "hello"] + ["bad"] * 3 * WIDTH + ["hello"]

    outcomes = ended(in_process(), prompts)

    assert [outcomes[number] for number in (0, 5, len(prompts) - 1)] == ["xxx"] * 3
    assert [outcomes[number] for number in (1, 2, 3, 4)] == [
        "bad_prompt",
        "kv_budget_exceeded",
        "kv_budget_exceeded",
        "nan_logits",
    ]
    assert len(outcomes) == len(prompts)


def test_one_dead_answer_among_several_says_so_beside_the_others() -> None:
    [answer] = in_process().run(requests(["twisted rows=3"]))

    assert isinstance(answer, Result)
    assert [choice.error.code if choice.error else None for choice in answer.choices] == [None, "nan_logits", None]


def test_a_step_that_raises_costs_only_the_request_that_makes_it_raise() -> None:
    runner = in_process()

    outcomes = ended(runner, ["hello", "boom", "hello", "rows=2", *["hello"] * 20, "boom"])

    assert {number for number, text in outcomes.items() if text == "engine_error"} == {1, 24}
    assert [text for number, text in outcomes.items() if number not in (1, 24)] == ["xxx"] * 23
    assert all(engine.is_closed for engine in engines_of(runner)[:-1])


def test_memory_that_runs_out_costs_nobody_anything_but_time() -> None:
    class Short(FakeEngine):
        def compute(self, running: list[FakeRow]) -> None:
            if len(running) > 1:
                raise RuntimeError("[malloc_or_wait] Unable to allocate 1000 bytes.")

    assert ended(in_process(Short), ["hello"] * 6) == dict.fromkeys(range(6), "xxx")


def test_a_process_far_over_its_memory_gives_up_with_a_reason_and_can_try_again() -> None:
    used = [1]
    runner = in_process(memory=MemoryWatch(lambda: used[0], 10, lambda: None))
    answers = runner.run(request("hello", number, max_tokens=10**6) for number in range(10))
    prompts: list[Result | Failure] = []

    used[0] = 1000
    runner._config = WorkerConfig(model="fake", grace_s=0)
    prompts += answers

    assert {outcome(each) for each in prompts} == {"out_of_memory"}
    assert len(prompts) == 10
    used[0] = 1
    assert ended(runner, ["hello"]) == {0: "xxx"}


def test_ctrl_c_in_a_step_ends_the_run_and_the_next_one_begins_anew() -> None:
    class Interrupted(FakeEngine):
        def compute(self, running: list[FakeRow]) -> None:
            if any("interrupt" in row.words for row in running):
                signal.raise_signal(signal.SIGINT)

    runner = in_process(Interrupted)

    with pytest.raises(KeyboardInterrupt):
        ended(runner, ["hello", "interrupt", *["hello"] * 9])
    assert engines_of(runner)[0].is_closed
    assert ended(runner, ["hello"]) == {0: "xxx"}


def test_whoever_stops_reading_drops_the_rest() -> None:
    runner = in_process()

    answers = runner.run(requests(["hello"] * 20))
    next(answers)
    answers.close()  # type: ignore[attr-defined]

    assert engines_of(runner)[0].is_closed
    assert ended(runner, ["hello"]) == {0: "xxx"}


@dataclass
class BrokenPreparer(FakePreparer):
    """Fails as no preparer should."""

    in_finish: bool

    def prepare(self, request: Request, request_id: str) -> tuple:  # type: ignore[type-arg]
        if request.prompt == "broken" and not self.in_finish:
            raise OverflowError("no idea")
        return super().prepare(request, request_id)

    def finish(self, request: Request, *args: object, **kwargs: object) -> Result:  # type: ignore[override]
        if request.prompt == "broken":
            raise OverflowError("no idea")
        return super().finish(request, *args, **kwargs)  # type: ignore[arg-type]


@pytest.mark.parametrize("in_finish", [True, False])
def test_what_breaks_the_preparer_costs_its_request(in_finish: bool) -> None:
    runner = in_process()
    runner._preparer = BrokenPreparer(in_finish)

    assert ended(runner, ["hello", "broken", "hello"]) == {0: "xxx", 1: "internal_error", 2: "xxx"}
