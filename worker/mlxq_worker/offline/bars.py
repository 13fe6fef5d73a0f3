"""Shows how far `LLM.generate` is: our own display, a class such as tqdm's, or nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from mlxq.cli.progress import progress
from mlxq.contract import Failure, Result
from mlxq.files.tally import Tally


class Show(Protocol):
    """Is told of every prompt that has ended."""

    def __call__(self, ended: Result | Failure) -> None: ...


def _silent(ended: Result | Failure) -> None:
    pass


@contextmanager
def bar(use_tqdm: bool | Callable[..., Any], total: int) -> Iterator[Show]:
    """A display while the block runs.

    Args:
        use_tqdm: true for a bar on a terminal (a line now and then elsewhere) on stderr, false for nothing, or a class
            that is called as tqdm is.
    """
    if not use_tqdm or not total:
        yield _silent
    elif callable(use_tqdm):
        with use_tqdm(total=total, desc="Processed prompts") as theirs:
            yield lambda ended: theirs.update(1)
    else:
        tally = Tally(num_inflight=total)
        with progress(total) as display:
            display.update(tally)

            def count(ended: Result | Failure) -> None:
                if isinstance(ended, Failure):
                    tally.failed += 1
                else:
                    tally.succeeded += 1
                    tally.completion_tokens += ended.usage.completion_tokens
                display.update(tally)

            yield count
