"""Counts what a step asks of a device: the graph primitives that it evaluates, and how many kernels they are on Metal.

Works on any machine. The branches for GPUs are taken (`on_a_gpu`), and what is a single kernel there (attention, RMS
norm, RoPE) is replaced by one primitive of the right shape, so the numbers in the arrays mean nothing. Counted is what
`mx.eval` and `mx.async_eval` are given. A primitive is one launch, unless Metal only makes a view of its input; a
concatenation is one for each input, a padding two, and an attention whose mask isn't laid out in full one more
(mlx/backend/metal/scaled_dot_product_attention.cpp copies such a mask in every call).
"""

from __future__ import annotations

import gc
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

import mlx.core as mx
from mlx.utils import tree_flatten

from mlxq_worker.engine.kvcache import device

VIEWS = frozenset(
    {
        *("Slice", "Squeeze", "ExpandDims", "Reshape", "Transpose", "Flatten", "Unflatten", "Broadcast"),
        *("BroadcastAxes", "AsStrided", "Split", "StopGradient", "View", "Copy", "NumberOfElements"),
    }
)
"""Primitives that launch nothing."""
_MASK_COPY = "Sign"
"""Stands for the copy of a mask within an attention: a launch, and no primitive of its own. No model takes a sign."""
_MAX_VECTOR_QUERIES = 8
"""Up to so many queries a row take the kernel that wants its mask in full."""

_NODE = re.compile(r"\{ (\d+) \[label =\"([^\"]*)\"")
_INPUT = re.compile(r"^\"[^\"]*\" -> (\d+)$")
_OUTPUT = re.compile(r"^(\d+) -> \"([^\"]*)\"$")


@dataclass
class Counts:
    """What a step evaluated."""

    primitives: Counter[str] = field(default_factory=Counter)
    launches: int = 0
    waiting_s: float = 0.0
    """Spent in MLX's evaluation; the rest of a step is Python."""
    num_calls: int = 0

    @property
    def num_primitives(self) -> int:
        return self.primitives.total()

    def add(self, name: str, num_inputs: int) -> None:
        """Count one primitive by its label in the graph."""
        name = "Compiled" if name.startswith("Compiled") else name.split()[0]
        self.primitives[name] += name != _MASK_COPY
        if name not in VIEWS:
            self.launches += {"Concatenate": num_inputs, "Pad": 2}.get(name, 1)


@contextmanager
def on_a_gpu() -> Iterator[None]:
    """Take the branches for GPUs for the block, with stand-ins for what is one kernel there. An engine is to be built
    before: it tries its model out."""

    # As short as can be: what they take is counted, too, as if MLX took it.
    def attention(q: Any, k: Any, v: Any, *, scale: float, mask: Any = None, sinks: Any = None, **_: Any) -> Any:
        parts = [k, v] if mask is None or mask.__class__ is str else [k, v, mask]
        if sinks is not None:
            parts += (sinks,)
        if _copies_mask(q, mask):
            parts[2] = mx.sign(mask)
        result = mx.depends(q, parts)
        return result if v.shape[-1] == q.shape[-1] else mx.depends(mx.zeros((*q.shape[:-1], v.shape[-1])), [result])

    def rms_norm(x: Any, weight: Any, eps: float, **_: Any) -> Any:
        return mx.depends(x, [x if weight is None else weight])

    def rope(x: Any, dims: int, *, offset: Any = None, freqs: Any = None, **_: Any) -> Any:
        parts = [offset] if isinstance(offset, mx.array) else [x]
        return mx.depends(x, parts if freqs is None else [*parts, freqs])

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(device, "is_gpu", _yes))
        for name, stand_in in (("scaled_dot_product_attention", attention), ("rms_norm", rms_norm), ("rope", rope)):
            stack.enter_context(mock.patch.object(mx.fast, name, stand_in))
        yield


def _copies_mask(queries: mx.array, mask: Any) -> bool:
    """Whether the kernel for few queries has the mask copied first: it isn't laid out in full."""
    num_rows, num_heads, num_queries, _ = queries.shape
    if not isinstance(mask, mx.array) or num_queries > _MAX_VECTOR_QUERIES or 1 in (num_rows, num_heads):
        return False
    return mask.ndim < 4 or mask.shape[1] != num_heads


def _yes() -> bool:
    """Unlike a mock it takes no time."""
    return True


@contextmanager
def counted(counts: Counts) -> Iterator[None]:
    """Count for the block what is evaluated. Takes long: every graph is drawn."""
    with _wrapping(lambda original, arrays: (_count(arrays, counts), original(*arrays))):
        yield


@contextmanager
def calls_counted(counts: Counts) -> Iterator[None]:
    """Count for the block what Python calls: its own functions and those of its built-in modules, MLX's not. What the
    garbage collector calls (Hypothesis has it do so) comes whenever it likes, and is left out."""

    def count(_: FrameType, event: str, __: object) -> None:
        counts.num_calls += event in ("call", "c_call")

    before = sys.getprofile()
    gc.collect()
    gc.disable()
    sys.setprofile(count)
    try:
        yield
    finally:
        sys.setprofile(before)
        gc.enable()


@contextmanager
def timed(counts: Counts) -> Iterator[None]:
    """Take for the block this thread's time on a processor inside MLX's evaluation, and inside what waits for it."""

    def run(original: Callable[..., Any], arguments: Sequence[Any]) -> Any:
        start = time.thread_time()
        result = original(*arguments)
        counts.waiting_s += time.thread_time() - start
        return result

    originals = {name: getattr(mx.array, name) for name in ("tolist", "item", "__array__")}
    with _wrapping(run):
        try:
            for name, original in originals.items():
                setattr(mx.array, name, lambda *args, _own=original: run(_own, args))
            yield
        finally:
            for name, original in originals.items():
                setattr(mx.array, name, original)


@contextmanager
def _wrapping(run: Callable[[Callable[..., Any], Sequence[Any]], Any]) -> Iterator[None]:
    with ExitStack() as stack:
        for name in ("eval", "async_eval"):
            original = getattr(mx, name)
            stack.enter_context(mock.patch.object(mx, name, lambda *arrays, _own=original: run(_own, arrays)))
        yield


def _count(arguments: Sequence[Any], counts: Counts) -> None:
    arrays = [leaf for _, leaf in tree_flatten(list(arguments)) if isinstance(leaf, mx.array)]
    if not arrays:
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "graph.dot"
        mx.export_to_dot(str(file), *arrays)
        for name, num_inputs in _calls(file.read_text().splitlines()):
            counts.add(name, num_inputs)


def _calls(lines: Sequence[str]) -> list[tuple[str, int]]:
    """The primitives of a drawn graph and how many inputs each has. A compiled function is drawn once for each of its
    outputs, and all its calls have one number: what tells them apart are their outputs."""
    calls: dict[tuple[str, tuple[str, ...]], tuple[str, int]] = {}
    number, name, num_inputs, outputs = "", "", 0, list[str]()
    for line in [*(line.strip() for line in lines), '{ 0 [label ="end"']:
        if node := _NODE.match(line):
            if number:
                calls[number, tuple(outputs)] = (name, num_inputs)
            number, name, num_inputs, outputs = node[1], node[2], 0, []
        elif _INPUT.match(line):
            num_inputs += 1
        elif edge := _OUTPUT.match(line):
            outputs.append(edge[2])
    return list(calls.values())
