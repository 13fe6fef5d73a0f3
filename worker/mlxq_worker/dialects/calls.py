"""What every tool-call syntax shares: how calls are looked for in a text, and what a call must be to count.

A syntax says where a call may begin (`opener`) and reads what begins there (`read`); what it can't read, or what calls
no offered tool, stays text. Knows no syntax and no results.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mlxq_worker.dialects.arguments import Schema

_MOST_FAILURES = 256
"""Openers that begin no call, before the rest is left as text: each may cost a look at all that follows."""

BLANKS = re.compile(r"\s*")

IdStyle = Literal["openai", "nine", "kimi"]
"""Ids of calls: ``call_`` and 24 digits, nine letters and digits (Mistral), or ``functions.NAME:INDEX`` (Kimi K2)."""


@dataclass(frozen=True, slots=True)
class Call:
    """A call as the model wrote it. `id` is the model's own, if it wrote one."""

    name: str
    arguments: dict[str, Any]
    id: str | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """Calls that were read, and the index of the text behind them."""

    calls: tuple[Call, ...]
    end: int


@dataclass(frozen=True, slots=True)
class Offered:
    """The tools of a request: each one's name, and the schema of its arguments."""

    schemas: Mapping[str, Schema]

    @classmethod
    def of(cls, tools: Sequence[Mapping[str, Any]]) -> Offered:
        return cls({tool["function"]["name"]: tool["function"].get("parameters") or {} for tool in tools})

    def call(self, name: Any, arguments: Any, call_id: Any = None) -> Call | None:
        """The call, if it is one: of an offered tool, with an object of arguments."""
        if not isinstance(name, str) or not isinstance(arguments, dict):
            return None
        known = self.known_name(name)
        return None if known is None else Call(known, arguments, call_id if isinstance(call_id, str) else None)

    def known_name(self, name: str) -> str | None:
        """The tool that is meant. Models of several families put a namespace before it."""
        name = name.strip()
        bare = name.removeprefix("functions.")
        return next((each for each in (name, bare) if each in self.schemas), None)


Read = Callable[[str, int, Offered], Found | None]
"""Reads the calls that begin at an index of a text; `None` if none do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallSyntax:
    """How calls are written.

    Args:
        opener: matches where calls may begin; the match's start is where `read` starts.
        read: reads them.
        marker: the text that tells that a call has begun, for answers that were cut off; empty if there is none.
        openers: regular expressions without looks around for what else `opener` matches, and more.
        line_openers: the same for what counts at the start of a line only, blanks before it aside.
    """

    opener: re.Pattern[str]
    read: Read
    marker: str = ""
    openers: tuple[str, ...] = ()
    line_openers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an answer: calls, or text."""

    text: str = ""
    calls: tuple[Call, ...] = ()


def pieces(text: str, syntax: CallSyntax, offered: Offered) -> Iterator[Piece]:
    """The text cut into calls and what stands around them, in order."""
    taken, position, failures = 0, 0, 0
    while failures < _MOST_FAILURES and (match := syntax.opener.search(text, position)):
        found = syntax.read(text, match.start(), offered)
        if found is None:
            failures += 1
            position = max(match.end(), match.start() + 1)
            continue
        yield Piece(text=text[taken : match.start()])
        yield Piece(calls=found.calls)
        taken = position = found.end
    yield Piece(text=text[taken:])


def skip(text: str, position: int, pattern: re.Pattern[str]) -> int:
    """The index behind a pattern if it stands here, else the same index."""
    match = pattern.match(text, position)
    return match.end() if match else position
