"""What a slow source has brought is handed over before the rest comes."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from queue import Queue

import pytest
from tests.support.waiting import DEADLINE_S

from mlxq.files.read_ahead import ReadAhead

SOON_S = 0.01
"""A wait that a test never sits out."""


def from_queue(queue: Queue[int | None]) -> Iterator[int]:
    """What is put into the queue, until a `None`."""
    while (item := queue.get(timeout=DEADLINE_S)) is not None:
        yield item


def all_of(reader: ReadAhead[int], count: int) -> list[list[int]]:
    taken = []
    while not reader.has_ended:
        taken.append(reader.read(count, DEADLINE_S))
    return taken


def test_a_quick_source_comes_in_full_chunks_and_in_order() -> None:
    assert [item for chunk in all_of(ReadAhead(range(10), ahead=4), 4) for item in chunk] == list(range(10))
    assert ReadAhead(range(10), ahead=4).read(4, DEADLINE_S) == [0, 1, 2, 3]


def test_what_is_there_is_taken_while_the_source_stays_open() -> None:
    queue: Queue[int | None] = Queue()
    reader = ReadAhead(from_queue(queue), ahead=5)

    assert reader.read(5, SOON_S) == []
    queue.put(1)
    while not (taken := reader.read(5, SOON_S)):
        pass
    assert (taken, reader.has_ended) == ([1], False)

    queue.put(2)
    queue.put(None)
    assert reader.read(5, DEADLINE_S) == [2]
    assert reader.has_ended


def test_a_source_that_ends_keeps_nobody_waiting() -> None:
    started = time.monotonic()

    assert ReadAhead(iter([1]), ahead=5).read(5, DEADLINE_S) == [1]

    assert time.monotonic() - started < DEADLINE_S / 2


def test_no_more_is_read_ahead_than_was_asked_for() -> None:
    read: list[int] = []

    def source() -> Iterator[int]:
        for item in range(100):
            read.append(item)
            yield item

    reader = ReadAhead(source(), ahead=3)

    assert reader.read(2, DEADLINE_S) == [0, 1]
    assert len(read) <= 2 + 3 + 1  # taken, ahead, and one in the reader's hand
    assert [item for chunk in all_of(reader, 50) for item in chunk] == list(range(2, 100))


def test_an_error_comes_once_and_after_what_was_read_before_it() -> None:
    def source() -> Iterator[int]:
        yield 1
        raise OSError("the disk is gone")

    reader = ReadAhead(source(), ahead=5)

    assert reader.read(5, DEADLINE_S) == [1]
    assert not reader.has_ended
    with pytest.raises(OSError, match="the disk is gone"):
        reader.read(5, DEADLINE_S)
    assert reader.has_ended


def test_closing_ends_the_reader_and_closes_the_source() -> None:
    closed = threading.Event()

    def source() -> Iterator[int]:
        try:
            yield from range(100)
        finally:
            closed.set()

    reader = ReadAhead(source(), ahead=3)
    reader.read(1, DEADLINE_S)
    reader.close()

    assert closed.wait(DEADLINE_S)


def test_no_more_is_read_ahead_than_may_be_held_whatever_the_number() -> None:
    read: list[int] = []

    def counted() -> Iterator[int]:
        for item in (3, 3, 3, 50, 1, 1):
            read.append(item)
            yield item

    reader = ReadAhead(counted(), ahead=100, weigh=lambda item: item, max_weight=7)

    assert reader.read(100, DEADLINE_S) == [3, 3, 3]  # the one that goes over the limit is still taken
    assert reader.read(100, DEADLINE_S) == [50]
    assert reader.read(100, DEADLINE_S) == [1, 1]
    assert read == [3, 3, 3, 50, 1, 1]
