"""Where and when models compute otherwise than mlx-lm does: inside a block, on a CPU, where they were routed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial, wraps
from typing import Any, TypeVar

import mlx.core as mx

from mlxq_worker.engine.kvcache import device

T = TypeVar("T")

Unroute = Callable[[], None]
"""Has a function do again what it did."""

_made: ContextVar[dict[Hashable, Any] | None] = ContextVar("made", default=None)
"""What the block has made of its arrays; `None` outside of it."""


@contextmanager
def quick() -> Iterator[None]:
    """On a CPU, what is routed is computed otherwise for the block."""
    token = _made.set(None if device.is_gpu() else {})
    try:
        yield
    finally:
        _made.reset(token)


def once(make: Callable[..., T], *arguments: Any) -> T:
    """What `make` makes of these, made when a block first asks for it: most layers of a step ask for the same. Arrays
    are the same if they are the same object."""
    made = _made.get()
    assert made is not None, "asked for inside the block alone"
    key = (make, *(id(each) if isinstance(each, mx.array) else each for each in arguments))
    if key not in made:
        made[key] = make(*arguments), arguments  # while these are kept no other array has their ids
    result: T = made[key][0]
    return result


def route(owner: Any, name: str, otherwise: Callable[..., Any]) -> list[Unroute]:
    """Have a module's function or a class's method ask `otherwise` first inside `quick`; where that returns `None` it
    does what it did.

    Returns what takes that back; nothing where it is routed already, or isn't there.
    """
    original = getattr(owner, name, None)
    if original is None or hasattr(original, "is_routed"):
        return []

    @wraps(original)
    def routed(*args: Any, **kwargs: Any) -> Any:
        result = None if _made.get() is None else otherwise(*args, **kwargs)
        return original(*args, **kwargs) if result is None else result

    routed.is_routed = True  # type: ignore[attr-defined]
    setattr(owner, name, routed)
    return [partial(setattr, owner, name, original)]


def sources_of(model: Any) -> list[Any]:
    """The Python modules that define a model and its parts, in the same order every time."""
    names = {kind.__module__ for module in model.modules() for kind in type(module).__mro__}
    return [sys.modules[name] for name in sorted(names)]
