"""Looks into a model: which of its modules is the body that turns token ids into hidden states, and which modules use
each cache; and how it computes where everything is rounded otherwise.

mlx-lm's models name these as they like, and some hold a language model that holds another one. So the model is run
once on its own caches, and what is handed to whom is written down.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import CacheList, make_prompt_cache

_IDS, _CACHES = object(), object()


@dataclass(frozen=True, slots=True)
class Body:
    """The attributes that lead from a model to its body, and how the model calls it: with `_IDS`, `_CACHES` and
    nothings, in some order."""

    path: tuple[str, ...]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Anatomy:
    """What was seen of a model.

    Attributes:
        body: the part that is handed all caches and returns hidden states; `None` where the model has no such part.
        users: the classes of the modules that use each layer's cache; for a cache of several the users of each, or of
            the whole where those are handed to nobody. None where no module is handed it.
    """

    body: Body | None
    users: tuple[tuple[type[nn.Module], ...], ...]


def look_into(model: nn.Module) -> Anatomy:
    """Run one token through a model on its own caches, and see."""
    caches = make_prompt_cache(model)
    watched = [caches, *(part for cache in caches for part in (cache, *_members(cache)))]
    with _watch(model, watched) as seen:
        mx.eval(model(mx.array([[0]]), cache=caches))
    call = next((call for call in seen.calls if call.module is not model and call.is_of(caches)), None)
    body = _body(model, call, caches) if call else None
    return Anatomy(body, tuple(tuple(_users(seen, cache)) for cache in caches))


def split(
    model: Any, anatomy: Anatomy
) -> tuple[Callable[[mx.array, Sequence[Any]], mx.array], Callable[[mx.array], mx.array]]:
    """The body of a model, token ids (N, 1) and caches to hidden states (N, 1, E), and its head, those to logits
    (N, 1, V)."""
    body = anatomy.body
    if body is None:
        return (lambda ids, caches: model(ids, cache=caches)), lambda logits: logits
    holder = head = copy.copy(model)
    for name in body.path[:-1]:
        inner = copy.copy(getattr(holder, name))
        setattr(holder, name, inner)
        holder = inner
    passed = _Passed(getattr(holder, body.path[-1]))
    setattr(holder, body.path[-1], passed)

    def hidden(ids: mx.array, caches: Sequence[Any]) -> mx.array:
        given = {id(_IDS): ids, id(_CACHES): caches}
        args = [given.get(id(each)) for each in body.args]
        result: mx.array = passed.body(*args, **{name: given.get(id(each)) for name, each in body.kwargs.items()})
        return result

    def logits(hidden: mx.array) -> mx.array:
        passed.hidden = hidden
        result: mx.array = head(mx.zeros(hidden.shape[:2], mx.uint32))
        del passed.hidden
        return result

    return hidden, logits


class _Passed:
    """Stands in for a model's body where only its head is to run: returns `hidden`, and still shows the body's parts,
    since a head that is tied to the embedding looks there for its weights."""

    hidden: mx.array

    def __init__(self, body: Any) -> None:
        self.body = body

    def __call__(self, *_: Any, **__: Any) -> mx.array:
        return self.hidden

    def __getattr__(self, name: str) -> Any:
        return getattr(self.body, name)


@dataclass(frozen=True, slots=True)
class _Handing:
    """A module that was handed something that is watched, and what it returned."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    result: Any

    def is_of(self, caches: list[Any]) -> bool:
        """Whether it turns token ids into hidden states given these caches and nothing else."""
        given = [each for each in (*self.args, *self.kwargs.values()) if each is not None]
        ids = self.args[0] if self.args else None
        return (
            len(given) == 2
            and any(each is caches for each in given)
            and isinstance(ids, mx.array)
            and mx.issubdtype(ids.dtype, mx.integer)
            and isinstance(self.result, mx.array)
            and self.result.ndim == 3
        )


@dataclass
class _Seen:
    """Calls of modules that were handed what is watched, the outer after the inner ones; and for each thing that is
    watched the modules that handed it to none of their parts."""

    calls: list[_Handing] = field(default_factory=list)
    num_handed: Counter[int] = field(default_factory=Counter)
    innermost_of: dict[int, list[nn.Module]] = field(default_factory=dict)


@contextmanager
def _watch(model: nn.Module, watched: Sequence[object]) -> Iterator[_Seen]:
    """While this is open the calls of the model's modules are written down."""
    seen, ids = _Seen(), {id(each) for each in watched}
    with wrapped(model.modules(), lambda original: _watched(original, ids, seen)):
        yield seen


@contextmanager
def rounded_otherwise(model: nn.Module) -> Iterator[None]:
    """While this is open each number that a module without parts computes is off by up to what rounding it may have
    changed, at random: the model computes what another right computation of it might."""
    keys = iter(map(mx.random.key, count()))

    def rounded(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            result = original(self, *args, **kwargs)
            if not isinstance(result, mx.array) or not mx.issubdtype(result.dtype, mx.floating):
                return result
            most = mx.finfo(result.dtype).eps / 2
            off = mx.random.uniform(-most, most, result.shape, key=next(keys))  # in float32
            return (result * (1 + off)).astype(result.dtype)

        return call

    with wrapped((module for module in model.modules() if not module.children()), rounded):
        yield


@contextmanager
def wrapped(modules: Iterable[nn.Module], wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """While this is open the classes of these modules are called through what `wrap` makes of their calls."""
    with ExitStack() as stack:
        for kind in {type(module) for module in modules if "__call__" in vars(type(module))}:
            original = kind.__call__
            stack.callback(setattr, kind, "__call__", original)
            kind.__call__ = wrap(original)
        yield


def _watched(original: Callable[..., Any], ids: set[int], seen: _Seen) -> Callable[..., Any]:
    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        given = {id(each) for each in (*args, *kwargs.values())} & ids
        seen.num_handed.update(given)
        before = {each: seen.num_handed[each] for each in given}
        result = original(self, *args, **kwargs)
        for each in given:
            if seen.num_handed[each] == before[each]:
                seen.innermost_of.setdefault(each, []).append(self)
        if given:
            seen.calls.append(_Handing(self, args, kwargs, result))
        return result

    return call


def _users(seen: _Seen, cache: Any) -> Iterator[type[nn.Module]]:
    members = _members(cache)
    if members and all(id(member) in seen.innermost_of for member in members):
        for member in members:
            yield from _users(seen, member)
        return
    yield from map(type, seen.innermost_of.get(id(cache), ()))


def _members(cache: Any) -> tuple[Any, ...]:
    return tuple(cache.caches) if isinstance(cache, CacheList) else ()


def _body(model: nn.Module, call: _Handing, caches: list[Any]) -> Body | None:
    """What was called so, unless it lies in a list of parts."""

    def named(argument: Any) -> Any:
        return _CACHES if argument is caches else None if argument is None else _IDS

    for name, module in model.named_modules():
        path = tuple(name.split("."))
        if module is call.module and all(map(str.isidentifier, path)):
            kwargs = {key: named(each) for key, each in call.kwargs.items()}
            return Body(path, tuple(map(named, call.args)), kwargs)
    return None
