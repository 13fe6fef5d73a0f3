"""What a look at one thing has found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "note", "warning", "problem"]
"""A *note* is worth knowing, a *warning* will cost something some day, with a *problem* it doesn't work."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One sentence about one thing. `name` tells findings apart for programs and never changes; `todo` says what to do,
    and is empty only where all is well."""

    name: str
    level: Level
    what: str
    todo: str = ""

    def __post_init__(self) -> None:
        if self.level in ("warning", "problem") and not self.todo:
            raise ValueError(f"{self.name}: a {self.level} says what to do")


def in_words(num_bytes: int) -> str:
    """A size for people."""
    return f"{num_bytes / 2**30:.1f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:,.0f} MiB"


def ok(name: str, what: str) -> Finding:
    """All is well."""
    return Finding(name, "ok", what)


def note(name: str, what: str, todo: str = "") -> Finding:
    """Worth knowing."""
    return Finding(name, "note", what, todo)


def warning(name: str, what: str, todo: str) -> Finding:
    """It works, and will cost something."""
    return Finding(name, "warning", what, todo)


def problem(name: str, what: str, todo: str) -> Finding:
    """It doesn't work."""
    return Finding(name, "problem", what, todo)
