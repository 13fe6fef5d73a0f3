"""Patterns as the compiler takes them: without look-around.

What a pattern looks ahead for at its very start is a pattern of its own, that the text has to fit as well. Knows just
as much of regular expressions as that takes.
"""

from __future__ import annotations

import re

_LOOK_AROUND = re.compile(r"\(\?(?:=|!|<=|<!)")
_START = "^(?="


def without_lookahead(pattern: str) -> list[str]:
    """Patterns that a text fits all of where it fits this one; just this one if it looks nowhere.

    Raises:
        ValueError: it looks around in other places than its start.
    """
    if not _looks_around(pattern):
        return [pattern]
    aheads: list[str] = []
    rest = pattern
    while rest.startswith(_START):
        end = _closing(rest, len(_START))
        aheads.append(f"^(?:{rest[len(_START) : end]})")
        rest = f"^{rest[end + 1 :]}"
    if any(map(_looks_around, (rest, *aheads))) or _has_choice(rest):
        raise ValueError("look-around and look-ahead can't be enforced, but for (?=...) at the start")
    return [*aheads, rest]


def _looks_around(pattern: str) -> bool:
    return any(_LOOK_AROUND.match(pattern, index) for index, _ in _groups(pattern))


def _has_choice(pattern: str) -> bool:
    """Whether it has alternatives as a whole, so that its start is not that of each."""
    depth = 0
    for _, char in _syntax(pattern):
        depth += {"(": 1, ")": -1}.get(char, 0)
        if char == "|" and depth == 0:
            return True
    return False


def _closing(pattern: str, start: int) -> int:
    """Where the group that is open at `start` ends."""
    depth = 1
    for index, char in _syntax(pattern):
        if index < start:
            continue
        depth += {"(": 1, ")": -1}.get(char, 0)
        if depth == 0:
            return index
    raise ValueError("a group is not closed")


def _groups(pattern: str) -> list[tuple[int, str]]:
    return [(index, char) for index, char in _syntax(pattern) if char == "("]


def _syntax(pattern: str) -> list[tuple[int, str]]:
    """The characters that are neither escaped nor inside a class, with their places."""
    found: list[tuple[int, str]] = []
    index = 0
    class_start: int | None = None
    while index < len(pattern):
        char = pattern[index]
        if char == "\\":
            index += 2
            continue
        if class_start is not None:
            if char == "]" and index > class_start:
                class_start = None
        elif char == "[":
            class_start = index + (2 if pattern.startswith("[^", index) else 1)
            index = class_start - 1  # a bracket right at the start closes nothing
        else:
            found.append((index, char))
        index += 1
    return found
