"""Every architecture that can be packed gives each row exactly the tokens that mlx-lm gives it alone.

Greedy and in float32, over a tiny random model of each; `test_parity` goes further for a few of them. Prompts on which
a choice is a near-tie are left out, since there another right computation may choose otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import product
from random import Random
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import make_prompt_cache
from tests.support.architecture_table import PACKED, TABLE_PATH, table, way
from tests.support.architectures import VOCAB_SIZE, build
from tests.support.engine_runs import decode, run
from tests.support.rounding import smallest_gap
from tests.support.row_specs import name_of, row_spec

from mlxq_worker.engine.api import RowSpec
from mlxq_worker.engine.engine import BatchEngine
from mlxq_worker.engine.kvcache.prefix import BLOCK
from mlxq_worker.model.architecture import ALONE, PADDED

_SHARED_LENGTH = 70
_LENGTHS = (1, 12, 23, 40)
_BEHIND = (1, 9, 20, 33)
_LIMIT = 9
_FEWEST = 5


@dataclass(frozen=True)
class Reference:
    """A model, rows some of which begin alike, and what mlx-lm generates for each."""

    model: Any
    specs: tuple[RowSpec, ...]
    expected: dict[str, tuple[int, ...]]

    @property
    def num_alike(self) -> int:
        """How many prompts begin with the same tokens."""
        return sum(len(spec.prompt_ids) > _SHARED_LENGTH for spec in self.specs)


@cache
def reference(architecture: str) -> Reference:
    model, random = build(architecture), Random(3)

    def ids(length: int) -> tuple[int, ...]:
        return tuple(random.randrange(VOCAB_SIZE) for _ in range(length))

    shared = ids(_SHARED_LENGTH)
    prompts = [*map(ids, _LENGTHS), *(shared + ids(length) for length in _BEHIND)]
    specs, expected = [], {}
    for index, prompt in enumerate(prompts):
        limit = 3 + index * 5 % (_LIMIT - 2)
        answer = tuple(int(token_id) for token_id, _ in generate_step(mx.array(prompt), model, max_tokens=limit))
        if smallest_gap(model, prompt, answer) > 2:
            specs.append(row_spec(row_id=str(index), prompt_ids=prompt, max_tokens=limit))
            expected[str(index)] = answer
    assert len(specs) >= _FEWEST, f"only {len(specs)} prompts whose answers can be compared"
    return Reference(model, tuple(specs), expected)


def assert_same(architecture: str, width: int, chunk: int, *, pipelined: bool, shares: bool, staggered: bool) -> None:
    given = reference(architecture)
    engine = BatchEngine(
        given.model,
        decode,
        max_num_seqs=width,
        max_num_batched_tokens=chunk,
        pipelined=pipelined,
        max_prefix_bytes=None if shares else 0,
    )

    outcome = run(engine, given.specs, one_per_step=staggered)

    assert {name_of(spec.row_id) for spec in given.specs} == outcome.tokens.keys()
    assert outcome.tokens == given.expected
    num_shared = _SHARED_LENGTH // BLOCK * BLOCK * (given.num_alike - 1) if shares else 0
    num_prompt_tokens = sum(len(spec.prompt_ids) for spec in given.specs)
    assert sum(report.num_prefilled for report in outcome.reports) == num_prompt_tokens - num_shared


KINDS = (
    "llama",
    "gemma2",
    "gemma3_text",
    "gemma4",
    "gpt_oss",
    "lfm2",
    "mamba2",
    "qwen3_next",
    "falcon_h1",
    "baichuan_m1",
    "deepseek_v3",
    "deepseek_v32",
    "kimi_linear",
)
"""One of each kind of layers, of each way to attend, and of those that mix them."""
WIDTHS, CHUNKS = (1, 3, 8), (1, 6, 512)


@pytest.mark.parametrize("architecture", KINDS)
def test_rows_are_as_if_alone(architecture: str) -> None:
    assert_same(architecture, 3, 6, pipelined=True, shares=True, staggered=True)
    assert_same(architecture, 8, 512, pipelined=False, shares=True, staggered=False)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", PACKED)
def test_rows_of_every_architecture_are_as_if_alone(architecture: str) -> None:
    for index, (width, chunk) in enumerate([(3, 6), (8, 512), (1, 1)]):
        assert_same(architecture, width, chunk, pipelined=index == 0, shares=index < 2, staggered=index == 0)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", KINDS)
def test_rows_are_as_if_alone_however_they_are_run(architecture: str) -> None:
    for each in product(WIDTHS, CHUNKS, (True, False), (True, False), (True, False)):
        width, chunk, pipelined, shares, staggered = each
        assert_same(architecture, width, chunk, pipelined=pipelined, shares=shares, staggered=staggered)


def test_the_table_of_architectures_is_up_to_date() -> None:
    assert TABLE_PATH.read_text(encoding="utf-8") == table()


@pytest.mark.parametrize("architecture", [*PADDED, *ALONE])
def test_what_would_be_wrong_packed_is_not_packed(architecture: str) -> None:
    assert way(architecture) is None


@pytest.mark.parametrize("architecture", ALONE)
def test_what_mlx_lm_cannot_batch_either_runs_alone(architecture: str) -> None:
    assert not all(hasattr(cache, "merge") for cache in make_prompt_cache(build(architecture)))
