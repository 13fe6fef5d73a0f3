"""Holds the calls of an answer to their tools where the model may as well write text, as rules of llguidance's Lark.

Text is free but for what begins a call, by anything that the reader takes for one. So a call begins with a token that
text never gives, or where its marker is spelled out. Knows no tools and no schemas.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence

from mlxq_worker.dialects.calls import CallSyntax
from mlxq_worker.dialects.forcing import ForcedSyntax

_ANY = r"(.|\n)*"


def text_or_calls(
    syntax: CallSyntax,
    forced: ForcedSyntax,
    added: Mapping[str, int],
    calls: Callable[[ForcedSyntax, bool], str],
    *,
    name: str,
    several: bool,
) -> str:
    """A grammar for an answer that is text, calls, or both.

    Args:
        added: the model's added tokens by their texts.
        calls: the rules of calls that are written so, several or one, of which `name` stands for all.
        several: whether there may be more than one call.
    """
    marker = syntax.marker if forced.begins.startswith(syntax.marker) else forced.begins
    text = f"MLXQ_TEXT: /{_ANY}/ & ~/{_holding(syntax, marker)}/"
    if not marker:  # nothing but the line's start tells a call: the answer is calls or text
        return f"start: {name} | MLXQ_TEXT\n{text}\n{calls(forced, several)}"
    many = "*" if several else "?"
    several = several and not forced.is_each_marked
    if any(forced.begins.startswith(token) for token in added):
        return f"start: (MLXQ_TEXT {name}){many} MLXQ_TEXT\n{text}\n{calls(forced, several)}"
    # The marker belongs to the text before it: only so is it known where that ends.
    begun = f"MLXQ_BEGUN: (/{_ANY}/ & ~/{_holding(syntax, marker)}/) {json.dumps(marker)}"
    rules = calls(forced.without(marker), several)
    return f"start: (MLXQ_BEGUN {name}){many} MLXQ_TEXT\n{text}\n{begun}\n{rules}"


def _holding(syntax: CallSyntax, marker: str) -> str:
    """A regular expression for texts in which a call may begin."""
    anywhere = [*syntax.openers, *([regex_of(marker)] if marker else [])]
    ways = [f"{_ANY}({'|'.join(dict.fromkeys(anywhere))}){_ANY}"] if anywhere else []
    if syntax.line_openers:
        ways.append(f"({_ANY}\\n)?[ \\t]*({'|'.join(syntax.line_openers)}){_ANY}")
    return "|".join(ways)


def regex_of(text: str) -> str:
    """A regular expression for exactly this text, in the dialect of llguidance's grammars."""
    return "".join(f"\\{char}" if char in _SIGNS else "\\n" if char == "\n" else char for char in text)


_SIGNS: Sequence[str] = r".^$*+?()[]{}|\/"
