"""Which whole answers are asked for again by a rerun, and with which limit.

Decides from what a result file says of an answer; asks nobody.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

from mlxq.errors import ConfigError
from mlxq.files.output.done import Done

_LIMIT = re.compile(r"(\d+(?:\.\d+)?)x(?::(\d+))?")


@dataclass(frozen=True, slots=True)
class Retry:
    """Answers that ended for one of `finish_reasons` are asked for again. With a `factor`, those that hit their limit
    are, with a limit so many times as large, up to `most`. With `goes_on`, those that hit their limit get the rest of
    their text, where they can be in parts (`mlxq.files.output.continuation`)."""

    finish_reasons: frozenset[str] = frozenset()
    factor: float | None = None
    most: int | None = None
    goes_on: bool = False

    @classmethod
    def read(cls, finish_reasons: tuple[str, ...], max_tokens: str | None, *, goes_on: bool = False) -> Self:
        """What the user wrote: ``2x`` or ``2x:4096`` for the limit.

        Raises:
            ConfigError: the limit can't be read, or wouldn't be larger; or the options say different things.
        """
        if goes_on and (max_tokens is not None or "length" in finish_reasons):
            raise ConfigError(
                "--continue-length goes on from answers that hit their limit, --max-tokens-on-retry and"
                " --retry-finish-reason length begin them anew: give one of them"
            )
        if max_tokens is None:
            return cls(frozenset(finish_reasons), goes_on=goes_on)
        match = _LIMIT.fullmatch(max_tokens)
        if match is None or float(match[1]) <= 1:
            raise ConfigError(f"--max-tokens-on-retry is a factor above 1, such as 2x or 1.5x:4096, not {max_tokens!r}")
        return cls(frozenset(finish_reasons), float(match[1]), int(match[2]) if match[2] else None)

    def wants(self, done: Done) -> bool:
        """Whether this whole answer is to be asked for again, given a larger limit where it needs one."""
        may_grow = self.factor is not None or self.goes_on
        return not self.finish_reasons.isdisjoint(done.finish_reasons) or (may_grow and done.hit_limit)

    def limit_after(self, done: Done, limit: int | None) -> int | None:
        """The limit of the next try, after one with this limit; `None` if it stays as the request has it."""
        if self.factor is None or not done.hit_limit or limit is None:
            return None
        larger = int(limit * self.factor)
        return larger if self.most is None else min(larger, self.most)
