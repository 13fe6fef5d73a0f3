"""Whether answers go together: those that a file holds, and those that a run adds to them, are by one model with one
set of end tokens.

A model of the same name may have got another set, by an option or by another file in its folder; then answers that ran
on to their limit are no answers of the model as it is now. What the set was says each answer; what it is says whoever
can look at the model, or else the first new answer. Asks no model itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

from mlxq.errors import ConfigError
from mlxq.results import read_back

Eos = frozenset[tuple[int, str]]
"""Ids and texts of end tokens."""

HOW_TO_GO_ON = "give each an --output of its own, or go on from them with --accept-model-change"


Ends = tuple[str | None, str | None, bytes, bool | None]
"""On what an answer could end, as its line says it: its model, what kind of object it is, its end tokens as JSON, and
whether its request ignored those. Thousands of lines mostly say the same, so it is read once."""


class EosSets(NamedTuple):
    """The end tokens of a model, by what is asked of it."""

    chat: Eos
    completion: Eos


def _nobody_knows() -> EosSets | None:
    return None


@dataclass(frozen=True, slots=True)
class Expected:
    """The model whose answers are to be gone on from.

    Args:
        name: `None` where nobody knows before the first answer.
        eos: its end tokens, `None` where nobody knows; asked at most once, and only if there are answers to compare.
    """

    name: str | None = None
    eos: Callable[[], EosSets | None] = _nobody_knows


class SameModel:
    """Holds the answers of one output file to one model.

    Args:
        output: the file's name, for messages.
        expected: `None` accepts answers by whatever model.
        models: by whom the answers are that the file holds, each of them counted.
        ends: on what they could end, likewise.

    Raises:
        ConfigError: they are by another model, or by one with other end tokens.
    """

    def __init__(
        self, output: object, expected: Expected | None, models: Mapping[str | None, int], ends: Mapping[Ends, int]
    ) -> None:
        self._output = output
        self._there: dict[tuple[str | None, str | None], Counter[Eos]] = {}  # by model and kind of answer
        if expected is None:
            return
        self._check_names(models, expected.name)
        for each, count in ends.items():
            if (eos := _eos_in(each)) is not None:
                self._there.setdefault(each[:2], Counter())[eos] += count
        if self._there and (now := expected.eos()) is not None:
            for asked in self._there:
                self._check_ends(asked, now.chat if asked[1] == read_back.CHAT_OBJECT else now.completion)

    def check(self, line: Mapping[str, Any]) -> None:
        """Look at an answer before it is added.

        Raises:
            ConfigError: those of the file that are by its model could end on other tokens.
        """
        if self._there and (eos := _eos_in(ends := ends_of(line))) is not None:
            self._check_ends(ends[:2], eos)

    def _check_names(self, models: Mapping[str | None, int], expected: str | None) -> None:
        others = Counter(models if expected is not None else ())
        del others[expected]
        for name, count in others.most_common(1):
            raise ConfigError(f"{self._output} holds {count:,} answers by {name}, not by {expected}: {HOW_TO_GO_ON}")

    def _check_ends(self, asked: tuple[str | None, str | None], now: Eos) -> None:
        others = Counter(self._there.get(asked))
        del others[now]
        for eos, count in others.most_common(1):
            raise ConfigError(
                f"{self._output} holds {count:,} answers by {asked[0]} with the end tokens {_shown(eos)}; now it has"
                f" {_shown(now)}: {HOW_TO_GO_ON}"
            )


def ends_of(line: Mapping[str, Any]) -> Ends:
    """On what the answer in an output line could end."""
    eos = msgspec.json.encode([_End(number, token) for number, token in read_back.eos_of(line)])
    return read_back.model_of(line), read_back.object_of(line), eos, read_back.ignores_eos_of(line)


def _eos_in(ends: Ends) -> Eos | None:
    """`None` where the request ignored all ends, or the line doesn't tell."""
    _, _, eos, is_ignored = ends
    try:
        found = frozenset((end.id, end.token) for end in msgspec.json.decode(eos, type=list[_End]))
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return found if found or is_ignored is False else None


class _End(msgspec.Struct, frozen=True):
    id: int
    token: str


def _shown(eos: Eos) -> str:
    return ", ".join(_each(eos)) or "(none)"


def _each(eos: Eos) -> Iterator[str]:
    return (f"{number} {token!r}" for number, token in sorted(eos))
