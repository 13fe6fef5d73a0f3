"""When memory is short: what is measured, which errors say so, and how wide the batch may be after that."""

from __future__ import annotations

import subprocess
import sys

import pytest
from tests.support.waiting import DEADLINE_S

from mlxq_worker.decoding.memory_watch import (
    MemoryWatch,
    is_allocation_failure,
    is_out_of_buffers,
    no_limit,
)
from mlxq_worker.decoding.width import CALM_S, MAX_CALM_S, Width


@pytest.mark.parametrize(
    ("used", "level"), [(0, "fine"), (1000, "fine"), (1001, "over"), (1200, "over"), (1201, "far over")]
)
def test_what_is_used_is_compared_with_the_limit(used: int, level: str) -> None:
    assert MemoryWatch(lambda: used, 1000).level(10.0) == level


def test_it_is_measured_no_more_than_once_a_second() -> None:
    watch = MemoryWatch(lambda: 2000, 1000)

    assert [watch.level(now) for now in (10.0, 10.5, 11.0)] == ["far over", "fine", "far over"]


def test_what_is_kept_for_reuse_is_given_back_before_it_counts_as_too_much() -> None:
    used = {"rows": 800, "reuse": 500}
    watch = MemoryWatch(lambda: sum(used.values()), 1000, lambda: used.update(reuse=0))

    assert watch.level(10.0) == "fine"
    assert watch.last_bytes == 800


def test_nothing_is_given_back_while_there_is_room() -> None:
    released: list[str] = []

    MemoryWatch(lambda: 1000, 1000, lambda: released.append("all")).level(10.0)

    assert not released


def test_without_a_limit_nothing_is_too_much() -> None:
    assert no_limit().level(10.0) == "fine"


@pytest.mark.skipif(sys.platform != "linux", reason="measured otherwise on macOS")
def test_memory_that_is_touched_counts_as_resident() -> None:
    # In a process of its own: other tests' threads give memory back at any moment.
    code = """
import os
from mlxq_worker.decoding.memory_watch import resident_bytes
from mlxq_worker.host.facts import machine_bytes
before = resident_bytes()
ballast = os.urandom(64 * 2**20)
print(resident_bytes() - before, resident_bytes(), machine_bytes())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=DEADLINE_S)
    grown, resident, machine = map(int, done.stdout.split())

    assert 60 * 2**20 < grown < 80 * 2**20
    assert resident < machine


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[metal::malloc] Attempting to allocate 99 bytes which is greater than the maximum"),
        RuntimeError("[malloc] Unable to allocate 99 bytes."),
        RuntimeError("std::bad_alloc"),
        RuntimeError("[METAL] Command buffer execution failed: Insufficient Memory (00000008:kIOGPU...)"),
    ],
    ids=str,
)
def test_errors_that_say_that_memory_ran_out(error: Exception) -> None:
    assert is_allocation_failure(error)


@pytest.mark.parametrize("error", [RuntimeError("[matmul] shapes differ"), ValueError("out of memory")], ids=str)
def test_other_errors_say_nothing_about_memory(error: Exception) -> None:
    assert not is_allocation_failure(error)


def test_a_process_without_handles_for_buffers_has_not_run_out_of_memory() -> None:
    error = RuntimeError("[metal::malloc] Resource limit (499000) exceeded.")

    assert is_out_of_buffers(error)
    assert not is_allocation_failure(error)
    assert not is_out_of_buffers(RuntimeError("[metal::malloc] Attempting to allocate 99 bytes"))


# --- The width ------------------------------------------------------------------------------------------------


def test_every_shortage_halves_the_width_down_to_one() -> None:
    width = Width(32)
    widths = []
    for _ in range(7):
        width.shrink(width.rows, now=1000.0)
        widths.append(width.rows)

    assert widths == [16, 8, 4, 2, 1, 1, 1]


def test_a_shortage_with_few_rows_halves_those() -> None:
    width = Width(32)
    width.shrink(6, now=1000.0)

    assert width.rows == 3


def test_it_grows_back_after_a_calm_while_and_no_wider_than_before() -> None:
    width = Width(6)
    width.shrink(6, now=1000.0)
    widths = []
    for now in (1000 + CALM_S - 1, 1000 + CALM_S, 1000 + 2 * CALM_S):
        width.grow(now)
        widths.append(width.rows)

    assert widths == [3, 6, 6]


def test_a_shortage_that_comes_back_is_met_ever_more_rarely() -> None:
    width, now, calms = Width(2), 1000.0, []
    for _ in range(12):
        width.shrink(2, now)
        shrunk_at = now
        while width.is_shrunk:
            now += CALM_S
            width.grow(now)
        calms.append(now - shrunk_at)

    assert calms[:3] == [CALM_S, 2 * CALM_S, 4 * CALM_S]
    assert max(calms) <= MAX_CALM_S + CALM_S


def test_it_is_restored_when_one_row_alone_was_too_much() -> None:
    width = Width(32)
    width.shrink(32, now=1000.0)
    width.restore()

    assert width.rows == 32
