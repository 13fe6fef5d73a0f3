"""What a batch really takes at its peak, beside what admission reckoned for it: keys and values, states, slabs that
grow, and the activations of a step."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import count, islice, product
from random import Random
from typing import Any

import mlx.core as mx
import pytest
from tests.support import architectures
from tests.support.row_specs import row_spec
from tests.support.thorough import sample_of
from tests.support.tiny_models import VOCAB_SIZE, build
from tests.support.tried_models import engine_over

Rows = Sequence[tuple[int, int]]

MOST = 1.2
NUM_LAYERS = sample_of(20, 8)
"""As many as small real models have, or fewer: one layer's slab is there twice while it grows."""


@cache
def deep_llama() -> Any:
    return build("llama", num_key_value_heads=4, num_hidden_layers=NUM_LAYERS)


OF_A_KIND: Mapping[str, Callable[[int], Mapping[str, Any]]] = {
    "gemma2": lambda num_layers: {"num_key_value_heads": 4},
    "gemma3_text": lambda num_layers: {"num_key_value_heads": 4},
    "gpt_oss": lambda num_layers: {
        "num_key_value_heads": 4,
        "layer_types": ["sliding_attention", "full_attention"] * (num_layers // 2),
    },
    "lfm2": lambda num_layers: {"num_key_value_heads": 4, "full_attn_idxs": list(range(1, num_layers, 2))},
    "minimax": lambda num_layers: {"num_key_value_heads": 4},
    "qwen3_next": lambda num_layers: {
        "num_key_value_heads": 4,
        "head_dim": 32,
        "linear_key_head_dim": 32,
        "linear_value_head_dim": 32,
    },
    "deepseek_v3": lambda num_layers: {"kv_lora_rank": 128, "qk_rope_head_dim": 32},
    "deepseek_v32": lambda num_layers: {"kv_lora_rank": 128},
    "mamba2": lambda num_layers: {"num_heads": 4, "head_dim": 32, "state_size": 64},
    "nemotron_h": lambda num_layers: {
        "num_key_value_heads": 4,
        "hybrid_override_pattern": ["*", "M", "-", "M"] * (num_layers // 4),
        "mamba_head_dim": 32,
        "ssm_state_size": 64,
    },
    "kimi_linear": lambda num_layers: {
        "kv_lora_rank": 128,
        "qk_rope_head_dim": 32,
        "linear_attn_config": {
            "num_heads": 4,
            "head_dim": 32,
            "kda_layers": list(range(1, num_layers, 2)),
            "full_attn_layers": list(range(2, num_layers + 1, 2)),
            "short_conv_kernel_size": 3,
        },
    },
}
"""What a model of each kind has beside what all have, by how many layers it has."""


@cache
def of_a_kind(architecture: str, num_layers: int = 12) -> Any:
    return architectures.build(architecture, num_hidden_layers=num_layers, **OF_A_KIND[architecture](num_layers))


@pytest.mark.thorough
@pytest.mark.parametrize(
    "rows",
    [[(230, sample_of(330, 40))] * 8, [(40 * index + 20, sample_of(200, 40)) for index in range(8)]],
    ids=["rows of one length", "rows of many lengths"],
)
@pytest.mark.parametrize("pipelined", [True, False], ids=["pipelined", "plain"])
def test_a_batch_takes_little_more_than_was_reckoned_for_it(rows: Rows, pipelined: bool) -> None:
    # given a model whose keys and values outweigh the rest, as those of real ones do, and rows that outgrow the 256
    # columns of their slots
    model = deep_llama()

    assert taken_over_reckoned(model, rows, pipelined=pipelined) <= MOST


@pytest.mark.thorough
@pytest.mark.parametrize("num_layers", sample_of((4, 8, 12, 20), (4,)))
@pytest.mark.parametrize("architecture", OF_A_KIND)
def test_so_does_a_batch_of_every_kind_of_layers_however_many_there_are(architecture: str, num_layers: int) -> None:
    # given a model, of few layers too, whose steps take as much as what it keeps
    model = of_a_kind(architecture, num_layers)
    rows = [(48 * index + 16, 24) for index in range(8)]

    assert taken_over_reckoned(model, rows, pipelined=True) <= MOST


@pytest.mark.parametrize("architecture", ["deepseek_v3", "mamba2"])
def test_so_does_a_batch_whose_steps_are_large(architecture: str) -> None:
    model = of_a_kind(architecture, 4)

    assert taken_over_reckoned(model, [(500, 8)] * 4, pipelined=True, step_tokens=512) <= MOST


@dataclass(frozen=True)
class Entering:
    """Rows of a prompt's and an answer's length that enter on a step; those with one number begin with `SHARED` tokens
    that they have in common."""

    num_rows: int
    prompt_tokens: int
    max_tokens: int
    step: int = 0
    shared: int | None = None


LONG_COMES = "one remains and a long one comes"
PATTERNS: Mapping[str, Sequence[Entering]] = {
    "all outgrow their slots at once": [Entering(16, 250, 12)],
    "one outgrows its slot after another": [Entering(1, 255 - 2 * index, 20) for index in range(16)],
    "nearly half outgrow their slots": [Entering(8, 100, 150), Entering(6, 200, 100)],
    "one passes through the slab of the others": [Entering(7, 520, 50), Entering(1, 1000, 40)],
    "long ones leave and short ones come": [Entering(7, 900, 4), Entering(1, 20, 60), Entering(7, 20, 20, step=16)],
    "ever shorter ones follow": [
        Entering(3, 600, 16),
        Entering(5, 600, 60),
        Entering(1, 400, 4, step=74),
        Entering(2, 400, 20, step=74),
        Entering(9, 200, 8, step=84),
    ],
    "long ones leave and a prefix comes": [
        Entering(3, 600, 4),
        Entering(3, 600, 60),
        Entering(3, 8, 8, step=60, shared=0),
        Entering(3, 8, 8, step=70, shared=1),
    ],
    LONG_COMES: [Entering(7, 10, 4), Entering(1, 10, 20), Entering(1, 1100, 4, step=10)],
}
SHARED = 500


def by_chance(seed: int) -> Sequence[Entering]:
    """Rows of all lengths that come at any time."""
    random = Random(seed)
    return [
        Entering(1, random.choice((8, 60, 200, 250, 500, 900)), random.choice((4, 20, 60)), random.randrange(60))
        for _ in range(24)
    ]


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("architecture", "pattern"),
    sample_of(
        [*product(["llama", *OF_A_KIND], [*PATTERNS, *range(8)])],
        [*product(["llama"], [*PATTERNS, 0]), *product(["mamba2", "qwen3_next", "deepseek_v3"], [LONG_COMES])],
    ),
)
def test_nor_does_a_batch_take_more_however_its_rows_come_grow_and_leave(architecture: str, pattern: str | int) -> None:
    model = deep_llama() if architecture == "llama" else of_a_kind(architecture)
    entering = by_chance(pattern) if isinstance(pattern, int) else PATTERNS[pattern]

    assert most_taken_over_most_reckoned(model, entering) <= MOST


def most_taken_over_most_reckoned(model: Any, entering: Sequence[Entering]) -> float:
    """How many times what was reckoned at most, for the rows that ran on a step and for all prefixes, was taken."""
    engine = engine_over(
        model, max_num_seqs=16, max_num_batched_tokens=64, max_prefix_bytes=1 << 40, kv_bytes=1 << 40, pipelined=True
    )
    ids = count()
    steps = defaultdict(list)
    for each in entering:
        begins = () if each.shared is None else prompt_ids(1000 + each.shared, SHARED)
        for index in islice(ids, each.num_rows):
            prompt = (*begins, *prompt_ids(index, each.prompt_tokens))
            steps[each.step].append(row_spec(row_id=str(index), prompt_ids=prompt, max_tokens=each.max_tokens))
    scheduler, budget = engine._scheduler, engine._budget
    mx.clear_cache()
    before_bytes = mx.get_active_memory()
    mx.reset_peak_memory()
    most_reckoned = 0.0
    for step in count():
        for spec in steps.pop(step, ()):
            engine.admit(spec)
        report = engine.step(0.0)
        unused = scheduler._prefixes.num_tokens - scheduler._prefixes.num_locked_tokens
        reckoned = budget.limit_bytes * engine.kv_usage() + budget.cost.bytes_per_prefix_token * unused
        most_reckoned = max(most_reckoned, reckoned)
        if not (steps or report.num_running or report.num_waiting):
            break
    return (mx.get_peak_memory() - before_bytes) / most_reckoned


def prompt_ids(seed: int, length: int) -> tuple[int, ...]:
    """Ids that begin like those of no other seed."""
    random = Random(seed)
    return tuple(random.randrange(VOCAB_SIZE) for _ in range(length))


def taken_over_reckoned(model: Any, rows: Rows, *, pipelined: bool, step_tokens: int = 64) -> float:
    """How many times what admission reckoned for rows, of so many tokens in and out, is what they take at most."""
    engine = engine_over(
        model,
        max_num_seqs=8,
        max_num_batched_tokens=step_tokens,
        max_prefix_bytes=0,
        kv_bytes=1 << 40,
        pipelined=pipelined,
    )
    for index, (prompt_length, max_tokens) in enumerate(rows):
        prompt_ids = tuple((index + 7 * i) % VOCAB_SIZE for i in range(prompt_length))
        engine.admit(row_spec(row_id=str(index), prompt_ids=prompt_ids, max_tokens=max_tokens))
    mx.clear_cache()
    before_bytes = mx.get_active_memory()
    mx.reset_peak_memory()
    while engine.step(0.0).num_running:
        pass
    return (mx.get_peak_memory() - before_bytes) / engine._budget.taken(map(sum, rows))
