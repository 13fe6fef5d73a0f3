"""What shortens the start of a worker leaves all as it was."""

from __future__ import annotations

import gc
import inspect
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.utils import import_utils

from mlxq_worker.startup import collecting_later, from_the_last_on, reading_less

PIECES = st.sampled_from(["__all__", ' = ["a", "b"]', " = [", ' "c",', "]", "\n", "\n", "\x0c", "\u2028", "x = 1", " "])


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


@given(st.lists(PIECES, max_size=20).map("".join))
def test_what_a_file_exports_is_what_transformers_itself_finds(source: str) -> None:
    original = inspect.unwrap(import_utils.fetch__all__)

    def outcome(exports: Any) -> Any:
        try:
            return exports(source)
        except IndexError:
            return IndexError  # of a line that ends with a bracket and has no equals sign

    assert outcome(from_the_last_on(original)) == outcome(original)


def test_transformers_finds_what_a_file_exports_from_the_last_line_on() -> None:
    def exports(source: str) -> list[str]:
        return [source]

    names: dict[str, Any] = {"__name__": import_utils.__name__, "fetch__all__": exports}
    exec("def create_import_structure_from_path(path):\n    return fetch__all__(path)", names)

    of_a_folder = reading_less(names[import_utils.create_import_structure_from_path.__name__])

    assert of_a_folder("x = 1\n__all__ = []") == ["__all__ = []"]
    assert of_a_folder.cache_info().maxsize is None
