"""What a tool-call dialect is: who speaks it, by what it is recognised, how its calls are read, forced and written.

Knows no tokenizer and no request.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mlxq_worker.dialects.calls import Call, CallSyntax, IdStyle
from mlxq_worker.dialects.forcing import ForcedSyntax, TagArguments


@dataclass(frozen=True, slots=True, kw_only=True)
class Sign:
    """What tells a dialect: all of these texts in the chat template, or all of these tokens in the vocabulary."""

    template: tuple[str, ...] = ()
    tokens: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """How one family writes tool calls.

    Args:
        name: vLLM's name of its parser, where it has one.
        aliases: further names under which users know it, those of SGLang and mlx-lm among them.
        spoken_by: the families, for people.
        signs: any of them tells the dialect.
        syntax: how its calls are read.
        forced: how they are forced; `None` if no grammar can say it.
        writes: writes calls where `forced` doesn't say how.
        id_style: what the ids of its calls look like.
        is_channelled: the whole answer is messages of channels, of which calls are one kind (gpt-oss).
    """

    name: str
    aliases: tuple[str, ...] = ()
    spoken_by: str
    signs: tuple[Sign, ...]
    syntax: CallSyntax
    forced: ForcedSyntax | None = None
    writes: Callable[[Sequence[Call]], str] | None = None
    id_style: IdStyle = "openai"
    is_channelled: bool = False

    def write(self, calls: Sequence[Call]) -> str:
        """Calls as a model of this dialect writes them."""
        if self.writes is not None:
            return self.writes(calls)
        assert self.forced is not None, f"nothing says how {self.name} writes its calls"
        return _written(self.forced, calls)


def _written(forced: ForcedSyntax, calls: Sequence[Call]) -> str:
    between = forced.between if forced.between is not None else forced.after_all + forced.before_all
    written = (_one(forced, call, index) for index, call in enumerate(calls))
    return forced.before_all + between.join(written) + forced.after_all


def _one(forced: ForcedSyntax, call: Call, index: int) -> str:
    before, after = (text.format(name=call.name, index=index) for text in (forced.before, forced.after))
    if forced.tags is None:
        return before + as_json(call.arguments) + after
    tags = forced.tags
    return before + tags.between.join(_argument(tags, *each) for each in call.arguments.items()) + after


def _argument(tags: TagArguments, key: str, value: Any) -> str:
    if isinstance(value, str) and tags.closing:
        return tags.before.format(key=key) + value + tags.after.format(key=key)
    before = tags.before if tags.before_other is None else tags.before_other
    after = tags.after if tags.after_other is None else tags.after_other
    return before.format(key=key) + as_json(value) + after.format(key=key)


def as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
