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
    """Import what mlx-lm imports of transformers, in two thirds of the time: it reads through the source files of all
    its models twice, since the cache for that (128 folders) is too small for them. One without a limit is as good."""
    lru_cache = functools.lru_cache

    def large_enough(maxsize: Any = 128, typed: bool = False) -> Any:
        if getattr(maxsize, "__module__", None) == _LOOKS_THROUGH_FOLDERS:
            function: Callable[..., Any] = maxsize
            return lru_cache(maxsize=None)(function)
        return lru_cache(maxsize, typed)

    functools.lru_cache = large_enough
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that there is no PyTorch, which nobody needs here
    try:
        import transformers
    finally:
        functools.lru_cache = lru_cache
    _ = transformers.AutoTokenizer  # the second time
