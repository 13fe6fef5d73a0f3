"""Gemma 4 and FunctionGemma: ``call:name{key:value}``, texts between marks of their own."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from mlxq_worker.dialects.calls import BLANKS, Call, CallSyntax, Found, Offered, skip
from mlxq_worker.dialects.dialect import Dialect, Sign
from mlxq_worker.dialects.forcing import ForcedSyntax, TagArguments

_NAME = re.compile(r"\s*call:\s*([\w./:-]+?)\s*\{")
_BARE_KEY = re.compile(r"\s*([^\s:{}\[\],]+)\s*:")
_BARE_VALUE = re.compile(r"[^,{}\[\]]*")
_MOST_DEPTH = 60


class _GemmaReader:
    """Reads one value after the other; raises `ValueError` for what is none."""

    def __init__(self, text: str, quote: str) -> None:
        self._text, self._quote = text, quote

    def object_at(self, position: int, depth: int = 0) -> tuple[dict[str, Any], int]:
        """The members from behind an opening brace, and the index behind the closing one."""
        members: dict[str, Any] = {}
        position = skip(self._text, position, BLANKS)
        while not self._text.startswith("}", position):
            key, position = self._key(position)
            if key in members:
                raise ValueError(f"{key} comes twice")
            members[key], position = self._value(position, depth)
            position = self._next(position, "}")
        return members, position + 1

    def _list_at(self, position: int, depth: int) -> tuple[list[Any], int]:
        items = []
        position = skip(self._text, position, BLANKS)
        while not self._text.startswith("]", position):
            item, position = self._value(position, depth)
            items.append(item)
            position = self._next(position, "]")
        return items, position + 1

    def _next(self, position: int, closing: str) -> int:
        position = skip(self._text, position, BLANKS)
        if self._text.startswith(",", position):
            return skip(self._text, position + 1, BLANKS)
        if self._text.startswith(closing, position):
            return position
        raise ValueError(f"neither a comma nor {closing}")

    def _key(self, position: int) -> tuple[str, int]:
        start = skip(self._text, position, BLANKS)
        if self._text.startswith(self._quote, start):
            key, position = self._quoted(start)
            if not self._text.startswith(":", position):
                raise ValueError("no colon behind a key")
            return key, position + 1
        if self._text.startswith('"', start):
            key, length = json.JSONDecoder(strict=False).raw_decode(self._text[start:])
            position = skip(self._text, start + length, BLANKS)
            if not self._text.startswith(":", position):
                raise ValueError("no colon behind a key")
            return key, position + 1
        match = _BARE_KEY.match(self._text, position)
        if match is None:
            raise ValueError("no key")
        return match[1], match.end()

    def _value(self, position: int, depth: int) -> tuple[Any, int]:
        if depth > _MOST_DEPTH:
            raise ValueError("too deep")
        position = skip(self._text, position, BLANKS)
        if self._text.startswith(self._quote, position):
            return self._quoted(position)
        if self._text.startswith("{", position):
            return self.object_at(position + 1, depth + 1)
        if self._text.startswith("[", position):
            return self._list_at(position + 1, depth + 1)
        if self._text.startswith('"', position):
            value, length = json.JSONDecoder(strict=False).raw_decode(self._text[position:])
            return value, position + length
        match = _BARE_VALUE.match(self._text, position)
        assert match is not None  # it matches nothing as well
        return _bare(match[0].strip()), match.end()

    def _quoted(self, position: int) -> tuple[str, int]:
        start = position + len(self._quote)
        end = self._text.find(self._quote, start)
        if end < 0:
            raise ValueError("a text without an end")
        return self._text[start:end], end + len(self._quote)


def _bare(word: str) -> Any:
    if word in ("None", "True", "False"):  # the template writes Python's word for null
        return {"None": None, "True": True, "False": False}[word]
    try:
        return json.loads(word, parse_constant=_no_constant)
    except ValueError:
        if not word:
            raise
        return word  # a text without its marks


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _read_calls(start: str, end: str, quote: str) -> Callable[[str, int, Offered], Found | None]:
    opener, closer = re.compile(re.escape(start)), re.compile(rf"\s*{re.escape(end)}")

    def read(text: str, position: int, offered: Offered) -> Found | None:
        match = _NAME.match(text, skip(text, position, opener))
        if match is None:
            return None
        try:
            arguments, position = _GemmaReader(text, quote).object_at(match.end())
        except (ValueError, IndexError):
            return None
        call = offered.call(match[1], arguments)
        return Found((call,), skip(text, position, closer)) if call else None

    return read


def _write_calls(start: str, end: str, quote: str) -> Callable[[Sequence[Call]], str]:
    def value(given: Any) -> str:
        if isinstance(given, str):
            return f"{quote}{given}{quote}"
        if isinstance(given, dict):
            return "{" + ",".join(f"{key}:{value(each)}" for key, each in given.items()) + "}"
        if isinstance(given, list):
            return "[" + ",".join(map(value, given)) + "]"
        return json.dumps(given)

    return lambda calls: "".join(f"{start}call:{call.name}{value(call.arguments)}{end}" for call in calls)


def _dialect(name: str, spoken_by: str, start: str, end: str, quote: str) -> Dialect:
    return Dialect(
        name=name,
        aliases=("function_gemma",) if name == "functiongemma" else (),
        spoken_by=spoken_by,
        signs=(Sign(template=(start, end)), Sign(tokens=(start, end))),
        syntax=CallSyntax(opener=re.compile(re.escape(start)), read=_read_calls(start, end, quote), marker=start),
        forced=ForcedSyntax(
            before=f"{start}call:{{name}}{{{{",
            after=f"}}}}{end}",
            between="",
            tags=TagArguments(
                before=f"{{key}}:{quote}",
                after=quote,
                closing=quote,
                before_other="{key}:",
                after_other="",
                between=",",
                keys=r"[^\s:{}\[\],\"]+",
            ),
        ),
        writes=_write_calls(start, end, quote),
    )


GEMMA4 = _dialect("gemma4", "Gemma 4", "<|tool_call>", "<tool_call|>", '<|"|>')
FUNCTIONGEMMA = _dialect("functiongemma", "FunctionGemma", "<start_function_call>", "<end_function_call>", "<escape>")
