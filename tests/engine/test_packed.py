"""Which models are packed, and how their rows lie in slots."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from random import Random
from typing import Any

import mlx.core as mx
import pytest
from tests.support.engine_runs import decode, run
from tests.support.rounding import assert_steady
from tests.support.row_specs import row_named, row_spec
from tests.support.thorough import sample_of
from tests.support.tiny_models import VOCAB_SIZE, build
from tests.support.tried_models import engine_over, model_of

from mlxq.errors import RequestError
from mlxq_worker.engine.api import RowSpec
from mlxq_worker.engine.engine import BatchEngine
from mlxq_worker.engine.kvcache.memory import measure_cost
from mlxq_worker.engine.kvcache.places import Places
from mlxq_worker.engine.kvcache.slot_allocator import Slot
from mlxq_worker.engine.runners.slot_cache import SlotCache
from mlxq_worker.engine.runners.step.layout import Layout
from mlxq_worker.engine.runners.trial import NUM_TRIAL_STEPS, packs
from mlxq_worker.engine.scheduling.step_size import StepSize


class Altered:
    """A model's layers with something done to what comes out of them."""

    def __init__(self, layers: Any, alter: Callable[[mx.array, Any], mx.array]) -> None:
        self._layers = layers
        self._alter = alter

    def __call__(self, inputs: mx.array, cache: Any, *options: Any) -> mx.array:
        return self._alter(self._layers(inputs, cache, *options), cache[0])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layers, name)


def specs_of_many_lengths(seed: int) -> list[RowSpec]:
    random = Random(seed)
    return [
        row_spec(
            row_id=str(index),
            prompt_ids=tuple(random.randrange(VOCAB_SIZE) for _ in range(random.randint(1, 40))),
            max_tokens=random.randint(1, 30),
        )
        for index in range(16)
    ]


@pytest.mark.parametrize("is_tied", [True, False], ids=["tied", "untied"])
def test_models_are_packed_whether_or_not_their_head_is_tied_to_the_embedding(is_tied: bool) -> None:
    model = build("llama", tie_word_embeddings=is_tied)
    specs = specs_of_many_lengths(seed=3)

    packed, padded = (
        run(BatchEngine(model, decode, max_num_seqs=5, max_num_batched_tokens=20, packed=packed), specs).tokens
        for packed in (True, False)
    )

    assert packs(model)
    assert packed == padded


def test_a_model_that_computes_something_else_on_slots_is_not_packed() -> None:
    model = build("llama")
    model.model = Altered(model.model, lambda hidden, _: hidden + hidden.mean(axis=0, keepdims=True))

    assert not packs(model)


def test_a_model_that_asks_slots_for_what_they_do_not_have_is_not_packed(caplog: pytest.LogCaptureFixture) -> None:
    model = build("llama")
    model.model = Altered(model.model, lambda hidden, cache: hidden + cache.size())

    assert not packs(model)
    assert "'SlotCache' object has no attribute 'size'" in caplog.text


@pytest.fixture
def layouts(monkeypatch: pytest.MonkeyPatch) -> list[Layout]:
    """The layouts that the first layer was given, step by step."""
    seen: list[Layout] = []
    original = SlotCache.begin_step

    def begin_step(self: SlotCache, layout: Layout) -> None:
        if not seen or seen[-1] is not layout:
            seen.append(layout)
        original(self, layout)

    monkeypatch.setattr(SlotCache, "begin_step", begin_step)
    return seen


def test_slots_in_use_move_together_when_rows_leave_and_nobody_follows(layouts: list[Layout]) -> None:
    specs = [row_spec(row_id=str(index), max_tokens=limit) for index, limit in enumerate((2, 9, 2, 2, 9, 9))]

    outcome = run(BatchEngine(build("llama"), decode, max_num_seqs=6), specs)

    windows = [window.num_slots for layout in layouts for window in layout.windows]
    assert max(windows) == 6
    assert windows[-1] == 3
    assert len({outcome.tokens[row_id][:9] for row_id in ("1", "4", "5")}) == 1  # same prompt, same answer


def test_prompts_go_through_the_model_without_a_single_padded_token(layouts: list[Layout]) -> None:
    specs = specs_of_many_lengths(seed=5)

    outcome = run(BatchEngine(build("llama"), decode, max_num_seqs=4, max_num_batched_tokens=16), specs)

    num_computed = sum(
        layout.positions.size for layout in layouts[NUM_TRIAL_STEPS:]
    )  # the first ones try the model out
    num_prompt_tokens = sum(len(spec.prompt_ids) for spec in specs)
    num_decoded = sum(len(tokens) - 1 for tokens in outcome.tokens.values())
    assert num_computed == num_prompt_tokens + num_decoded
    assert max(layout.positions.size for layout in layouts[NUM_TRIAL_STEPS:]) <= 16


def sharing_specs(seed: int) -> list[RowSpec]:
    """Rows behind one of two prefixes, or none, of one EOS id among others."""
    random = Random(seed)
    prefixes = [tuple(random.randrange(VOCAB_SIZE) for _ in range(length)) for length in (70, 130, 0)]
    return [
        row_spec(
            row_id=str(index),
            prompt_ids=random.choice(prefixes) + tuple(random.randrange(VOCAB_SIZE) for _ in range(1 + index % 40)),
            max_tokens=1 + index * 7 % 25,
            end_tokens={index % VOCAB_SIZE: "end"},
        )
        for index in range(18)
    ]


@pytest.mark.thorough
@pytest.mark.parametrize(("architecture", "seed"), [("llama", 2), ("llama", 5), ("qwen3", 2), ("mixtral", 2)])
def test_no_answer_that_is_compared_hangs_on_rounding(architecture: str, seed: int) -> None:
    model, specs = model_of(architecture), sharing_specs(seed)

    assert_steady(model, lambda: run(engine_over(model, max_num_seqs=8), specs).tokens)


@cache
def unshared(architecture: str) -> dict[str, tuple[int, ...]]:
    """What rows get where nobody shares anything."""
    return run(engine_over(model_of(architecture), max_num_seqs=8, max_prefix_bytes=0), sharing_specs(seed=2)).tokens


ROOMS = (1, 512), (3, 24), (8, 24), (8, 512)
"""How many rows a batch takes, and how many tokens a step."""


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("architecture", "width", "max_num_batched_tokens"),
    sample_of(
        [(name, *room) for name in ("llama", "qwen3", "mixtral") for room in ROOMS],
        [*(("llama", *room) for room in ROOMS), ("qwen3", 3, 24), ("mixtral", 8, 24)],
    ),
)
@pytest.mark.parametrize("one_per_step", [False, True], ids=["all at once", "one a step"])
def test_rows_that_share_a_prefix_get_the_tokens_that_they_get_without_sharing(
    architecture: str, one_per_step: bool, width: int, max_num_batched_tokens: int
) -> None:
    model, specs = model_of(architecture), sharing_specs(seed=2)

    evicting, sharing = (
        run(
            engine_over(
                model,
                max_num_seqs=width,
                max_num_batched_tokens=max_num_batched_tokens,
                max_prefix_bytes=max_prefix_tokens * measure_cost(model).bytes_per_token,
            ),
            specs,
            one_per_step=one_per_step,
        ).tokens
        for max_prefix_tokens in (150, 5_000)
    )

    assert unshared(architecture) == evicting == sharing


@cache
def read_together() -> dict[str, tuple[int, ...]]:
    """What rows get that read a shared prefix together."""
    engine = engine_over(model_of("llama"), max_num_seqs=8, max_num_batched_tokens=24)
    return run(engine, sharing_specs(seed=5)).tokens


@pytest.mark.parametrize("fewest_tokens", [0, 100, 1000], ids=["read together", "the shorter copied", "all copied"])
@pytest.mark.parametrize("one_per_step", [False, True], ids=["all at once", "one a step"])
def test_rows_get_the_same_tokens_where_attention_is_a_single_kernel(
    fewest_tokens: int, one_per_step: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, specs = model_of("llama"), sharing_specs(seed=5)
    in_parts = read_together()
    monkeypatch.setattr("mlxq_worker.engine.kvcache.device.is_gpu", lambda: True)
    monkeypatch.setattr("mlxq_worker.engine.engine.parts_pay", lambda num_rows, num, _bytes: num >= fewest_tokens)

    engine = engine_over(model, max_num_seqs=8, max_num_batched_tokens=24)
    fused = run(engine, specs, one_per_step=one_per_step).tokens

    assert fused == in_parts


def test_a_shared_prefix_goes_through_the_model_once(layouts: list[Layout]) -> None:
    prefix = tuple(index % VOCAB_SIZE for index in range(128))
    specs = [row_spec(row_id=str(index), prompt_ids=(*prefix, index), max_tokens=1) for index in range(20)]

    run(BatchEngine(build("llama"), decode, max_num_seqs=4), specs)

    assert sum(layout.positions.size for layout in layouts[NUM_TRIAL_STEPS:]) == len(prefix) + len(specs)


def test_four_answers_to_a_prompt_of_400_tokens_cost_one_prefill(layouts: list[Layout]) -> None:
    prompt = tuple(index * 7 % VOCAB_SIZE for index in range(400))
    specs = [row_spec(row_id=str(index), prompt_ids=prompt, max_tokens=1) for index in range(4)]

    run(BatchEngine(build("llama"), decode, max_num_seqs=8, max_num_batched_tokens=64), specs)

    assert sum(layout.positions.size for layout in layouts[NUM_TRIAL_STEPS:]) == 399 + 4


def test_a_prefix_takes_over_what_was_computed_for_the_shorter_one_that_more_rows_share(layouts: list[Layout]) -> None:
    random = Random(4)
    few_shot, question = (tuple(random.randrange(VOCAB_SIZE) for _ in range(length)) for length in (96, 150))
    prompts = [*[few_shot + question] * 3, *[(*few_shot, index) for index in range(3)]]
    specs = [
        row_spec(row_id=str(index), prompt_ids=prompt, max_tokens=8, temperature=1.0, seed=index)
        for index, prompt in enumerate(prompts)
    ]
    model = build("llama")

    outcome = run(BatchEngine(model, decode, max_num_seqs=6, max_num_batched_tokens=64), specs)

    num_computed = sum(layout.positions.size for layout in layouts[NUM_TRIAL_STEPS:])
    assert num_computed == len(few_shot) + (len(question) - 1) + len(specs) + sum(spec.limit - 1 for spec in specs)
    assert outcome.tokens == run(BatchEngine(model, decode, max_num_seqs=6, max_prefix_bytes=0), specs).tokens


@pytest.fixture
def caches(monkeypatch: pytest.MonkeyPatch) -> list[SlotCache]:
    """Every slot cache that is made, the newest last."""
    made: list[SlotCache] = []
    original = SlotCache.__init__

    def init(self: SlotCache, *args: Any) -> None:
        made.append(self)
        original(self, *args)

    monkeypatch.setattr(SlotCache, "__init__", init)
    return made


def test_a_shared_prefix_is_still_there_for_the_next_batch(layouts: list[Layout]) -> None:
    prefix = tuple(index % VOCAB_SIZE for index in range(128))
    batches = [
        [row_spec(row_id=str(index), prompt_ids=(*prefix, index), max_tokens=1) for index in indices]
        for indices in (range(2), range(2, 4))
    ]
    engine = BatchEngine(build("llama"), decode, max_num_seqs=4)
    run(engine, batches[0])
    seen = len(layouts)

    outcome = run(engine, batches[1])

    assert sum(layout.positions.size for layout in layouts[seen:]) == 2
    assert outcome.tokens == run(BatchEngine(build("llama"), decode, max_num_seqs=1), batches[1]).tokens


def test_rows_take_no_more_room_than_their_lengths_ask_for(caches: list[SlotCache]) -> None:
    engine = BatchEngine(build("llama"), decode, max_num_seqs=16, max_num_batched_tokens=1024)
    short = [row_spec(row_id=str(index), prompt_ids=(index,), max_tokens=60) for index in range(3)]
    sizes = []

    def look(step_index: int) -> None:
        if step_index == 10:
            engine.admit(row_spec(row_id="long", prompt_ids=(1,) * 600, max_tokens=2))
        sizes.append(repr(caches[-1].slots))

    run(engine, short, before_step=look)
    engine.step(0.0)

    assert list(dict.fromkeys(sizes)) == [
        "Slots(no slabs; 0 prefixes)",
        "Slots(3 slots of 256 columns; 0 prefixes)",
        "Slots(3 slots of 256 columns, 1 slots of 768 columns; 0 prefixes)",
    ]
    assert sizes[-1] == "Slots(3 slots of 256 columns; 0 prefixes)"
    assert repr(caches[-1].slots) == "Slots(no slabs; 0 prefixes)"


def test_rows_that_outgrow_their_slots_and_those_that_stay_get_the_tokens_that_they_get_alone() -> None:
    model = build("llama", max_position_embeddings=2048)
    lengths = {"stays": 10, "grows once": 250, "grows twice": 510, "long": 900, "leaves": 240, "follows": 30}
    specs = [
        row_spec(row_id=row_id, prompt_ids=tuple(Random(row_id).choices(range(VOCAB_SIZE), k=length)), max_tokens=limit)
        for (row_id, length), limit in zip(lengths.items(), (40, 40, 40, 20, 20, 40), strict=True)
    ]

    together = run(BatchEngine(model, decode, max_num_seqs=5), specs).tokens

    assert together == run(BatchEngine(model, decode, max_num_seqs=1, packed=False), specs).tokens


def test_what_a_row_leaves_in_a_slot_does_not_reach_the_next_one(caches: list[SlotCache]) -> None:
    model, follower = build("llama"), row_spec(row_id="follower", prompt_ids=(5, 6), max_tokens=9)
    beside = row_spec(row_id="beside", prompt_ids=(1,) * 30, max_tokens=40)
    alone = run(BatchEngine(model, decode, max_num_seqs=2), [follower, beside]).tokens
    engine = BatchEngine(model, decode, max_num_seqs=2)

    def overflow(step_index: int) -> None:
        if step_index == 4:
            for cache in caches[-2:]:  # both layers
                keys, values = cache.slots.read(0, 1, 2, 6)  # all that it has written: (1, H, 6, D) each
                values = mx.full_like(values, mx.nan)
                cache.slots.write(Places.of([(Slot(0, 1), range(6))]), keys.swapaxes(0, 2), values.swapaxes(0, 2))
            engine.cancel(row_named("leaver"))
            engine.admit(follower)

    leaver = row_spec(row_id="leaver", prompt_ids=(1, 2, 3), max_tokens=30)
    outcome = run(engine, [beside, leaver], before_step=overflow)

    assert outcome.tokens["follower"] == alone["follower"]
    assert outcome.tokens["beside"] == alone["beside"]


def test_a_row_that_never_fits_is_refused_alone_and_told_what_it_needs() -> None:
    engine = BatchEngine(build("llama"), decode, max_num_seqs=4, kv_bytes=200_000)
    cost = measure_cost(build("llama"))

    with pytest.raises(RequestError, match="1000 prompt tokens and up to 9 generated ones need") as refusal:
        engine.admit(row_spec(row_id="big", prompt_ids=(1,) * 1000, max_tokens=9))

    assert (refusal.value.param, refusal.value.code) == ("max_tokens", "kv_cache_exceeded")
    assert cost.of_row(100) == 100 * 2 * 2 * 2 * 8 * 4  # layers, keys and values, heads, numbers a head, bytes
    assert run(engine, [row_spec(row_id="small", max_tokens=3)]).tokens.keys() == {"small"}


def test_a_step_is_as_large_as_was_measured_where_nobody_says(
    layouts: list[Layout], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    specs = [row_spec(row_id=str(index), prompt_ids=(index,) * 60, max_tokens=3) for index in range(20)]
    model, step_size = build("llama"), StepSize()

    def tokens(max_num_batched_tokens: int | StepSize = 512) -> object:
        engine = BatchEngine(model, decode, max_num_seqs=4, max_num_batched_tokens=max_num_batched_tokens)
        return run(engine, specs).tokens

    choosing = tokens(step_size)
    seen = len(layouts)
    knowing = tokens(step_size)

    [chosen] = map(int, re.findall(r"a step takes up to (\d+) tokens: 4 tokens .* ms, 128 tokens", caplog.text))
    assert step_size.known == chosen
    assert max(layout.positions.size for layout in layouts[seen:]) <= chosen
    assert choosing == knowing == tokens()


def test_no_step_is_measured_where_prompts_never_fill_one() -> None:
    step_size = StepSize()
    engine = BatchEngine(build("llama"), decode, max_num_seqs=4, max_num_batched_tokens=step_size)

    run(engine, [row_spec(row_id=str(index), prompt_ids=(index,) * 30, max_tokens=9) for index in range(4)])

    assert step_size.known is None
