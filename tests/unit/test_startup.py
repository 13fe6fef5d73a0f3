"""What shortens the start of a worker leaves all as it was."""

from __future__ import annotations

import gc

import pytest

from mlxq_worker.startup import collecting_later


def test_garbage_is_left_alone_inside_the_block_and_collected_again_after_it() -> None:
    with collecting_later():
        assert not gc.isenabled()
        with collecting_later():
            pass
        assert not gc.isenabled(), "the outer block goes on"
    assert gc.isenabled()


def test_garbage_is_collected_again_after_a_block_that_raises() -> None:
    with pytest.raises(ZeroDivisionError), collecting_later():
        raise ZeroDivisionError
    assert gc.isenabled()
