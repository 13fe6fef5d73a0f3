"""Every architecture that can be packed gives each row exactly the tokens that mlx-lm gives it alone.

Greedy and in float32, over a tiny random model of each; `test_parity` goes further for a few of them. Prompts are drawn
anew where a choice is a near-tie, since there another right computation may choose otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from functools import cache
from itertools import combinations, product
from pathlib import Path
from random import Random
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm import models
from mlx_lm.generate import generate_step
from tests.support.architecture_table import ELSEWHERE, PACKED, TABLE_PATH, table, way
from tests.support.architectures import OWN, VOCAB_SIZE
from tests.support.engine_runs import run
from tests.support.rounding import smallest_gap
from tests.support.row_specs import name_of, row_spec
from tests.support.thorough import sample_of
from tests.support.tried_models import architecture_of, engine_over, packing_of

from mlxq_worker.engine.api import RowSpec
from mlxq_worker.engine.kvcache.prefix import BLOCK
from mlxq_worker.model.architecture import ALONE, PADDED

_SHARED_LENGTH = 70
_FEW = (1, 12), (1, 9)
_MANY = (1, 12, 23, 40), (1, 9, 20, 33)
"""Lengths of prompts that share nothing, and of what is behind the tokens that others begin with: more rows than places
in a batch of up to three, and as many as there are in one of eight."""
_LIMIT = 9
_MAX_DRAWS = 10
_DEFINITIONS = [re.compile(rf"^class {name}\b", re.MULTILINE) for name in ("Model", "ModelArgs")]
"""In each module of mlx-lm that is an architecture."""


@dataclass(frozen=True, slots=True)
class Setting:
    """How an engine is set up, and whether it gets one row before every step instead of all at once."""

    width: int
    chunk: int
    pipelined: bool
    shares: bool
    staggered: bool

    def __str__(self) -> str:
        words = ("pipelined", self.pipelined), ("shares", self.shares), ("staggered", self.staggered)
        return "-".join([str(self.width), str(self.chunk), *(word for word, is_so in words if is_so)])


EVERY_SETTING = [Setting(*each) for each in product((1, 3, 8), (1, 6, 512), *[(True, False)] * 3)]
SETTINGS = [
    Setting(1, 1, True, True, False),
    Setting(1, 6, True, True, True),
    Setting(1, 512, False, False, True),
    Setting(3, 1, False, True, True),
    Setting(3, 6, True, True, True),
    Setting(3, 512, True, False, False),
    Setting(8, 1, True, False, True),
    Setting(8, 6, False, False, False),
    Setting(8, 512, False, True, False),
]
"""Every pair of values is in one of them. A kind has three of them, and in `make thorough` all combinations."""
HARDEST = Setting(3, 6, True, True, True)
"""Prompts in pieces beside rows that decode, and rows that wait for a place or for a prefix."""
MIXED = Setting(3, 24, True, True, False)
"""The same in fewer steps."""
ANY_BATCH = [HARDEST, Setting(8, 512, False, True, False), Setting(1, 1, False, False, False)]


@dataclass(frozen=True)
class Reference:
    """A model, rows some of which begin alike, and what mlx-lm generates for each."""

    model: Any
    specs: tuple[RowSpec, ...]
    expected: dict[str, tuple[int, ...]]


@cache
def reference(architecture: str, lengths: tuple[Sequence[int], Sequence[int]]) -> Reference:
    model, random = architecture_of(architecture), Random(3)

    def ids(length: int) -> tuple[int, ...]:
        return tuple(random.randrange(VOCAB_SIZE) for _ in range(length))

    def answer(spec: RowSpec) -> tuple[int, ...]:
        generated = generate_step(mx.array(spec.prompt_ids), model, max_tokens=spec.limit)
        return tuple(int(token_id) for token_id, _ in generated)

    alone, behind = lengths
    for _ in range(_MAX_DRAWS):
        shared = ids(_SHARED_LENGTH)
        prompts = [*(ids(each) for each in alone), *(shared + ids(each) for each in behind)]
        specs = [
            row_spec(row_id=str(index), prompt_ids=prompt, max_tokens=3 + index * 5 % (_LIMIT - 2))
            for index, prompt in enumerate(prompts)
        ]
        answers = [answer(spec) for spec in specs]
        if smallest_gap(model, *zip(prompts, answers, strict=True)) > 2:
            return Reference(model, tuple(specs), {str(index): each for index, each in enumerate(answers)})
    raise AssertionError(f"{architecture} answers {_MAX_DRAWS} times some of {len(prompts)} prompts with near-ties")


def assert_same(given: Reference, setting: Setting) -> None:
    engine = engine_over(
        given.model,
        max_num_seqs=setting.width,
        max_num_batched_tokens=setting.chunk,
        pipelined=setting.pipelined,
        max_prefix_bytes=None if setting.shares else 0,
    )

    outcome = run(engine, given.specs, one_per_step=setting.staggered)

    assert {name_of(spec.row_id) for spec in given.specs} == outcome.tokens.keys()
    assert outcome.tokens == given.expected
    lengths = [len(spec.prompt_ids) for spec in given.specs]
    num_alike = sum(length > _SHARED_LENGTH for length in lengths)
    # Where a step has room for all rows and a whole prompt, the first of those that begin alike is through before the
    # engine knows of another one: its prefix is made with the second, and those behind that share it.
    is_roomy = setting.width >= len(lengths) and setting.chunk >= len(lengths) + max(lengths)
    num_sharing = num_alike - (2 if setting.staggered and is_roomy else 1)
    num_shared = _SHARED_LENGTH // BLOCK * BLOCK * num_sharing if setting.shares else 0
    assert sum(report.num_prefilled for report in outcome.reports) == sum(lengths) - num_shared


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


def some_of(index: int) -> list[Setting]:
    """Three settings with all widths and all chunks; three kinds in a row have all settings."""
    return [SETTINGS[3 * width + (index + width) % 3] for width in range(3)]


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize(
    ("architecture", "setting"),
    [
        pytest.param(kind, setting, id=f"{kind}-{setting}")
        for index, kind in enumerate(KINDS)
        for setting in sample_of(EVERY_SETTING, some_of(index))
    ],
)
def test_rows_are_as_if_alone_however_they_are_run(architecture: str, setting: Setting) -> None:
    needs_many = setting.width == 8 and setting.chunk > 1
    assert_same(reference(architecture, sample_of(_MANY, _MANY if needs_many else _FEW)), setting)


def test_every_pair_of_values_is_in_a_setting() -> None:
    def pairs(settings: list[Setting]) -> set[Any]:
        return {pair for each in settings for pair in combinations(enumerate(astuple(each)), 2)}

    assert pairs(SETTINGS) == pairs(EVERY_SETTING)


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize("setting", sample_of(ANY_BATCH, [MIXED]), ids=str)
@pytest.mark.parametrize("architecture", [name for name in PACKED if name not in KINDS])
def test_rows_of_every_architecture_are_as_if_alone(architecture: str, setting: Setting) -> None:
    assert_same(reference(architecture, sample_of(_MANY, _FEW)), setting)


def test_the_table_of_architectures_is_up_to_date() -> None:
    assert TABLE_PATH.read_text(encoding="utf-8") == table()


@pytest.mark.parametrize("architecture", [*PADDED, *ALONE])
def test_what_would_be_wrong_packed_is_not_packed(architecture: str) -> None:
    assert way(architecture) is None


def test_every_architecture_of_mlx_lm_is_in_the_table() -> None:
    sources = {each.stem: each.read_text(encoding="utf-8") for each in Path(models.__path__[0]).glob("*.py")}
    defining = {name for name, source in sources.items() if all(each.search(source) for each in _DEFINITIONS)}

    assert {"llama", "olmo"} <= defining
    assert defining - OWN.keys() == ELSEWHERE.keys() - OWN.keys()


@pytest.mark.parametrize("architecture", [*PADDED, *ALONE])
def test_rows_that_are_not_packed_are_as_if_alone_too(architecture: str) -> None:
    given = reference(architecture, _FEW)

    outcome = run(engine_over(given.model, max_num_seqs=3, max_num_batched_tokens=24), given.specs, one_per_step=True)

    assert outcome.tokens == given.expected


@pytest.mark.parametrize("architecture", [*PADDED, *ALONE])
def test_only_what_is_right_padded_is_padded(architecture: str) -> None:
    assert packing_of(architecture_of(architecture)).pads is (architecture in PADDED)
