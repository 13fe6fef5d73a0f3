"""The one list of all tool-call dialects, and how a model's own is found.

A dialect is told by texts of the chat template and by tokens, never by a model's name. Of those that the signs allow,
the one wins that reads what the model's own template makes of a call.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from mlxq_worker.dialects.dialect import Dialect
from mlxq_worker.dialects.families import (
    deepseek,
    gemma,
    harmony,
    kimi,
    llama,
    minimax_m3,
    mistral,
    named_json,
    pythonic,
    tagged_json,
    tagged_values,
)

DIALECTS: Sequence[Dialect] = (
    harmony.HARMONY,
    deepseek.GIGACHAT35,
    deepseek.DEEPSEEK_V4,
    deepseek.DEEPSEEK_V32,
    deepseek.DEEPSEEK_V3,
    deepseek.DEEPSEEK_V31,
    kimi.KIMI_K2,
    minimax_m3.MINIMAX_M3,
    gemma.GEMMA4,
    gemma.FUNCTIONGEMMA,
    *named_json.DIALECTS,
    *tagged_values.DIALECTS,
    *pythonic.DIALECTS,
    mistral.MISTRAL,
    mistral.MISTRAL_LIST,
    *tagged_json.DIALECTS,
    tagged_json.HERMES,
    pythonic.PYTHONIC,
    llama.LLAMA_JSON,
)
"""Those told by rarer signs first."""

NAMES = tuple(dialect.name for dialect in DIALECTS)


def dialect_named(name: str) -> Dialect | None:
    """The dialect of this name: ours, which is vLLM's where it has one, or one under which others know it."""
    return next((dialect for dialect in DIALECTS if name in (dialect.name, *dialect.aliases)), None)


def dialects_told(template: str, tokens: Collection[str]) -> list[Dialect]:
    """The dialects that a chat template and added tokens speak for: those that the template names first."""
    by_template = [each for each in DIALECTS if any(_in_template(sign.template, template) for sign in each.signs)]
    by_tokens = [
        each
        for each in DIALECTS
        if each not in by_template and any(sign.tokens and set(sign.tokens) <= set(tokens) for sign in each.signs)
    ]
    return [*by_template, *by_tokens]


def _in_template(texts: Sequence[str], template: str) -> bool:
    return bool(texts) and all(text in template for text in texts)
