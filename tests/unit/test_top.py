"""What `mlxq top` draws of a look at Redis, and the paces behind it; no Redis and no clock."""

from __future__ import annotations

import pytest
from rich.console import Console

from mlxq.cli.operations.top import Paces, render
from mlxq.metrics.pace import Pace
from mlxq.queue.counts import BatchCounts, StopCount
from mlxq.queue.overview import Overview, QueueState, WorkerState

MAC = WorkerState("a" * 32, "busy", "mac-1", "77", "", "qwen3", 32, 1_000)


def batch(name: str, ended: int, total: int = 1_000, *stops: StopCount) -> BatchCounts:
    return BatchCounts(
        batch_id=name,
        queue="mlxq",
        created=0.0,
        total=total,
        sealed=True,
        cancelled=False,
        num_finished=ended,
        num_failed=0,
        num_cancelled=0,
        prompt_tokens=0,
        completion_tokens=0,
        stops=stops,
    )


def queue(*workers: WorkerState) -> QueueState:
    return QueueState(name="mlxq", waiting=900, running=32, failed=None, oldest_waiting_s=75, workers=workers)


def shown(found: Overview, paces: Paces) -> list[str]:
    console = Console(width=120)
    with console.capture() as capture:
        console.print(render(found, paces))
    return [" ".join(line.split()) for line in capture.get().splitlines() if line.strip()]


def test_everything_that_is_to_be_watched_is_drawn_with_its_pace() -> None:
    # given two looks, ten seconds apart
    stops = (StopCount("eos_token", 2, 60), StopCount("max_tokens", None, 30))
    first = Overview((queue(MAC),), (batch("b1", 100),), ())
    later = WorkerState("a" * 32, "busy", "mac-1", "77", "", "qwen3", 32, 6_000)
    second = Overview((queue(later),), (batch("b1", 200, 1_000, *stops), batch("b0", 5, 5)), ())
    paces = Paces()

    # when
    paces.update(first, 50.0)
    before = shown(first, paces)
    paces.update(second, 60.0)

    # then
    assert before[1] == "mlxq 900 1:15 32 - 1"
    assert before[3] == "aaaaaaaaaaaa mac-1 qwen3 32 busy - mlxq"
    assert before[5] == "b1 mlxq 100 1,000 0 - -"
    assert shown(second, paces) == [
        "queue waiting oldest running failed workers",
        "mlxq 900 1:15 32 - 1",
        "worker host model width state tokens/s queues",
        "aaaaaaaaaaaa mac-1 qwen3 32 busy 500 mlxq",
        "batch queue ended total failed requests/s left",
        "b1 mlxq 200 1,000 0 10.0 1:20",
        "stopped by token id answers",
        f"eos_token 2 60 {'█' * 30}",
        f"max_tokens 30 {'█' * 15}",
    ]


def test_a_worker_that_says_nothing_of_itself_and_many_batches_are_drawn_too() -> None:
    stranger = WorkerState("rq[bold]", "idle", "linux", "1", "")
    found = Overview((queue(stranger),), tuple(batch(f"b{index}", 1) for index in range(20)), ())

    lines = shown(found, Paces())

    assert "rq[bold] linux - - idle - mlxq" in lines
    assert "and 8 more" in lines


@pytest.mark.parametrize(
    ("samples", "per_s", "left_s"),
    [
        ([], None, None),
        ([(0, 5)], None, None),
        ([(0, 0), (10, 20)], 2.0, 50.0),
        ([(0, 0), (10, 20), (100, 20)], 0.0, None),
        ([(0, 90), (10, 100), (12, 4), (16, 12)], 2.0, 50.0),
        ([(0, 0), (1, 100), (2, 101), (33, 132)], 1.0, 100.0),
        ([(5, 1), (5, 9)], None, None),
    ],
)
def test_a_pace_is_that_of_the_last_half_minute(
    samples: list[tuple[float, float]], per_s: float | None, left_s: float | None
) -> None:
    pace = Pace()
    for now, count in samples:
        pace.update(count, now)

    assert pace.per_s() == per_s
    assert pace.left_s(100) == left_s
    assert pace.left_s(0) == 0
