"""What the scheduler decides and a runner carries out: one step, as a value.

Plain Python over rows and prefixes; neither decides nor computes.
"""

from __future__ import annotations

from dataclasses import dataclass

from mlxq_worker.engine.kvcache.prefix import Prefix
from mlxq_worker.engine.rows.group import Fork
from mlxq_worker.engine.rows.row import Row


@dataclass(frozen=True, slots=True)
class PrefillChunk:
    """Tokens `start` to `stop` of a row's prompt, to be prefilled on this step."""

    row: Row
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def token_ids(self) -> tuple[int, ...]:
        return self.row.spec.prompt_ids[self.start : self.stop]

    @property
    def is_last(self) -> bool:
        """Whether the prompt ends here, so that the row gets its first token from this step."""
        return self.stop == len(self.row.spec.prompt_ids)


@dataclass(frozen=True, slots=True)
class PrefixChunk:
    """Tokens `start` to `stop` of a shared prefix, to be prefilled on this step."""

    prefix: Prefix
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def token_ids(self) -> tuple[int, ...]:
        return self.prefix.token_ids[self.start : self.stop]


@dataclass(frozen=True, slots=True)
class Plan:
    """One step: the `decoding` rows get one more token each, after the `forks`, and chunks of prompts and of shared
    prefixes are prefilled. `resting` rows keep their slots; `evicted` prefixes are used by nobody any more."""

    decoding: tuple[Row, ...] = ()
    forks: tuple[Fork, ...] = ()
    prefill: tuple[PrefillChunk, ...] = ()
    prefixes: tuple[PrefixChunk, ...] = ()
    evicted: tuple[Prefix, ...] = ()
    resting: tuple[Row, ...] = ()

    @property
    def is_decoding_alone(self) -> bool:
        """Whether nothing is prefilled or forked."""
        return not (self.prefill or self.prefixes or self.forks)

    def goes_on(self, before: Plan) -> bool:
        """Whether the same rows decode and rest as on the step before."""
        return self.decoding == before.decoding and self.resting == before.resting

    @property
    def num_prefilled(self) -> int:
        """How many tokens of prompts are prefilled."""
        return sum(len(chunk) for chunk in self.prefill) + sum(len(chunk) for chunk in self.prefixes)

    @property
    def rows(self) -> tuple[Row, ...]:
        """Every row that is computed on this step, each once."""
        return self.decoding + tuple(chunk.row for chunk in self.prefill)
