"""Shortens what every start of a worker waits for: its imports.

Changes what they cost, and nothing of what they bring.
"""

from __future__ import annotations

import functools
import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_LOOKS_THROUGH_FOLDERS = "transformers.utils.import_utils"
_OF_A_FOLDER, _OF_A_FILE = "create_import_structure_from_path", "fetch__all__"


@contextmanager
def collecting_later() -> Iterator[None]:
    """No garbage collection inside the block. Imports make a hundred thousand objects that stay, and each collection
    meanwhile looks at all of them."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def import_transformers() -> None:
    """Import what mlx-lm imports of transformers, in half the time.

    It reads through the source files of all its models to find what each exports, and that twice, since the cache for
    it (128 folders) is too small for them: one without a limit is as good. In each file it looks for the last line that
    begins with ``__all__``, by splitting all of it into lines: what comes before that one may be left out.
    """
    lru_cache = functools.lru_cache
    functools.lru_cache = reading_less
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that there is no PyTorch, which nobody needs here
    try:
        import transformers
    finally:
        functools.lru_cache = lru_cache
    _ = transformers.AutoTokenizer  # the second time


def reading_less(maxsize: Any = 128, typed: bool = False, lru_cache: Callable[..., Any] = functools.lru_cache) -> Any:
    """`functools.lru_cache` but for the functions that read the sources of transformers' models."""
    if getattr(maxsize, "__module__", None) != _LOOKS_THROUGH_FOLDERS:
        return lru_cache(maxsize, typed)
    function: Callable[..., Any] = maxsize
    if function.__name__ == _OF_A_FOLDER and _OF_A_FILE in (names := function.__globals__):
        names[_OF_A_FILE] = from_the_last_on(names[_OF_A_FILE])
    return lru_cache(maxsize=None)(function)


def from_the_last_on(exports: Callable[[str], list[str]]) -> Callable[[str], list[str]]:
    """What returns the same as `exports`, which looks for the last line that begins with ``__all__`` and for what
    follows it, and is shown no line before that one."""

    @functools.wraps(exports)
    def of(source: str) -> list[str]:
        return exports(source[source.rfind("\n__all__") + 1 :])

    return of
