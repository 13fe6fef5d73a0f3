"""Grammars as people bring them: tells Lark from EBNF, makes Lark of both, and finds the tokens that one names.

Source: Lark's grammar reference, llama.cpp's grammars/README.md, llguidance's docs/syntax.md. Compiles nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from mlxq_worker.model.tokenizer import Tokenizer, find_token

_EBNF_RULE = re.compile(r"^\s*[\w-]+\s*::=", re.MULTILINE)
_LARK_RULE = re.compile(r"^\s*(?:[?!]*_?[a-zA-Z]\w*(?:\.-?\d+)?(?:\{[^}\n]*\})?\s*:|%[a-z]+\b)", re.MULTILINE)
_PRIORITY = re.compile(r"^(\s*[?!]*_?[a-zA-Z]\w*)\.-?\d+(\s*:)", re.MULTILINE)
_EBNF_OPAQUE = r'"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]|#[^\n]*'
_LARK_OPAQUE = re.compile(r'//[^\n]*|"(?:\\.|[^"\\\n])*"|/(?:\\.|[^/\\\n])+/')
_EBNF_NAME = re.compile(rf"({_EBNF_OPAQUE})|([\w-]+)")
_TOKEN = re.compile(r"<(\[[^\]>]*\]|[^\s<>]+)>")
_RANGE = re.compile(r"(\d+)(?:-(\d+))?")
_LARK_START, _EBNF_START = "start", "root"


def as_lark(text: str) -> str:
    """A grammar in Lark's syntax, as the compiler takes it.

    EBNF is what has rules with ``::=``; what has rules of neither kind is taken for it, too. Its first rule is
    ``root``, or ``start`` where there is no such rule. Priorities only choose between ways to read a text, so they are
    left out.

    Raises:
        Exception: the converter can't read it.
    """
    from llguidance.gbnf_to_lark import gbnf_to_lark

    if _LARK_RULE.search(text) and not _EBNF_RULE.search(text):
        return _PRIORITY.sub(r"\1\2", text)
    return str(gbnf_to_lark(_with_free_start(text)))


def named_tokens(lark: str, tokenizer: Tokenizer) -> Iterator[tuple[str, frozenset[int]]]:
    """The special tokens that a grammar names one by one, as it writes them, and the ids that each stands for."""
    for name in _TOKEN.findall(_LARK_OPAQUE.sub(" ", lark)):
        if not name.startswith("["):
            found = find_token(tokenizer, f"<{name}>")
            yield f"<{name}>", frozenset() if found is None else frozenset({found})
        elif "^" not in name and "*" not in name:  # else it leaves others
            ranges = (range(int(first), int(last or first) + 1) for first, last in _RANGE.findall(name))
            yield f"<{name}>", frozenset(each for ids in ranges for each in ids[:_MOST_IDS])


_MOST_IDS = 1024
"""Of a range; a longer one leaves others than end tokens."""


def _with_free_start(ebnf: str) -> str:
    """The converter calls its first rule ``start``, a name that EBNF leaves free."""
    names = {match[2] for match in _EBNF_NAME.finditer(ebnf) if match[2]}
    if _LARK_START not in names:
        return ebnf
    rules = {match[0].split("::=")[0].strip() for match in _EBNF_RULE.finditer(ebnf)}
    new = _EBNF_START if _EBNF_START not in rules else _unused(names)
    return _EBNF_NAME.sub(lambda match: new if match[2] == _LARK_START else match[0], ebnf)


def _unused(names: set[str]) -> str:
    number = 1
    while f"start-{number}" in names or f"start_{number}" in names:
        number += 1
    return f"start-{number}"
