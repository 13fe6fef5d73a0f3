"""One layer's recurrent states: one for each row, whatever its length, and one where each shared prefix ends.

A state is what a layer keeps between two tokens, as one or several arrays; what is in them is the model's business.
Refuses to know how a state comes from the one before: `runners/state_cache` has the model compute it.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from mlxq_worker.engine.kvcache.prefix import Prefix

State = tuple[mx.array | None, ...]
"""Of n rows: arrays (n, ...), or `None` for what the layer hasn't set."""


class States:
    """The states of R rows: row r's is number r of each array.

    Attributes:
        current: these arrays; what is put in their place in this list is kept.
    """

    def __init__(self) -> None:
        self.current: list[mx.array | None] = []
        self._prefixes: dict[Prefix, State] = {}

    def __repr__(self) -> str:
        return f"States({self._num_rows} rows; {len(self._prefixes)} prefixes)"

    @property
    def arrays(self) -> list[mx.array]:
        """All that is there, computed or not."""
        return [array for state in (self.current, *self._prefixes.values()) for array in state if array is not None]

    @property
    def _num_rows(self) -> int:
        return next((array.shape[0] for array in self.current if array is not None), 0)

    def first(self, num_rows: int) -> list[mx.array | None]:
        """The states of so many rows from the first, whose arrays may be replaced there: if there are no others, these
        are the states, as in nearly all steps."""
        state = self.current
        for array in state:
            if array is not None and array.shape[0] != num_rows:
                return [None if array is None else array[:num_rows] for array in state]
        return state

    def read(self, rows: mx.array) -> State:
        """The states of rows (n,)."""
        return tuple(None if array is None else array[rows] for array in self.current)

    def write(self, rows: mx.array, num_rows: int, state: State) -> None:
        """Put the states of rows (n,) over what is there, where there are `num_rows` rows."""
        before = self.current or [None] * len(state)
        self.current = [_written(old, rows, num_rows, new) for old, new in zip(before, state, strict=True)]

    def replace(self, state: list[mx.array | None]) -> None:
        """Have these states and no others; they are not copied."""
        self.current = state

    def replace_first(self, state: State, num_rows: int) -> None:
        """Have these states of the first rows, where there are `num_rows`. What is there of those behind them stays: a
        layer's other module may have begun them on this very step."""
        before = self.current or [None] * len(state)
        self.current = [_followed(new, old, num_rows) for new, old in zip(state, before, strict=True)]

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy rows' states to other rows; none is copied from where another is copied to."""
        sources, targets = (mx.array(list(each), dtype=mx.uint32) for each in zip(*pairs, strict=True))
        self.write(targets, max(self._num_rows, *(target + 1 for _, target in pairs)), self.read(sources))

    def read_prefix(self, prefix: Prefix) -> State | None:
        """The state of one row after what there is of a prefix, (1, ...) each; `None` before its first token."""
        before = prefix if prefix in self._prefixes or prefix.base is None else prefix.base
        return self._prefixes.get(before)

    def write_prefix(self, prefix: Prefix, state: State) -> None:
        """Set the state after what there is of a prefix."""
        self._prefixes[prefix] = state

    def evict(self, prefix: Prefix) -> None:
        """Free a prefix."""
        self._prefixes.pop(prefix, None)


def _followed(new: mx.array | None, old: mx.array | None, num_rows: int) -> mx.array | None:
    if new is None or old is None or min(num_rows, old.shape[0]) <= new.shape[0]:
        return new
    return mx.concatenate([new, old[new.shape[0] : num_rows]])


def _written(old: mx.array | None, rows: mx.array, num_rows: int, new: mx.array | None) -> mx.array | None:
    if new is None:
        return old
    if old is None:
        old = mx.zeros((num_rows, *new.shape[1:]), new.dtype)
    elif old.shape[0] < num_rows:
        old = mx.pad(old, [(0, num_rows - old.shape[0]), *[(0, 0)] * (old.ndim - 1)])
    elif old.shape[0] > num_rows:
        old = old[:num_rows]
    old[rows] = new
    return old
