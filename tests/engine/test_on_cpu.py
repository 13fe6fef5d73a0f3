"""What models on slots compute otherwise on a CPU: rotations, experts, the gated delta rule. As mlx-lm does it, but for
rounding, and only where it is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any
from unittest import mock

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.generate import generate_step
from mlx_lm.models import gated_delta as mlx_lm_delta
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.models.switch_layers import SwitchGLU, SwitchLinear
from tests.bench.graph_count import Counts, counted
from tests.support.architectures import build
from tests.support.engine_runs import decode, run
from tests.support.rounding import tolerance
from tests.support.row_specs import row_spec
from tests.support.unrouted import unroute_all

from mlxq_worker.engine.engine import BatchEngine
from mlxq_worker.engine.kvcache.slot_allocator import Changes, SlabSize, Slot
from mlxq_worker.engine.runners import packed_model
from mlxq_worker.engine.runners.on_cpu import delta_rule, experts
from mlxq_worker.engine.runners.on_cpu.delta_rule import CHUNK, gated_delta
from mlxq_worker.engine.runners.on_cpu.experts import MANY
from mlxq_worker.engine.runners.on_cpu.normalization import route_normalization
from mlxq_worker.engine.runners.on_cpu.quick import Unroute, once, quick
from mlxq_worker.engine.runners.on_cpu.rotation import route_rotation
from mlxq_worker.engine.runners.on_cpu.routes import route_quick
from mlxq_worker.engine.runners.packed_model import PackedModel
from mlxq_worker.engine.runners.step.layout import Layout
from mlxq_worker.engine.runners.step.spans import Span


@pytest.fixture
def routed() -> Iterator[list[Unroute]]:
    """Where a test puts what takes its routes back."""
    routes: list[Unroute] = []
    yield routes
    for take_back in routes:
        take_back()


# Rotations


@pytest.mark.parametrize("num_rows", [1, 5, 700])  # the last are too many numbers for a matrix product
@pytest.mark.parametrize(("dims", "traditional"), [*product((32, 24), (False, True))])
@pytest.mark.parametrize("has_freqs", [False, True])
def test_rows_are_rotated_to_the_bit_as_mlx_does(
    routed: list[Unroute], num_rows: int, dims: int, traditional: bool, has_freqs: bool
) -> None:
    x, positions = mx.random.normal((num_rows, 3, 1, 32)), mx.random.randint(0, 8192, (num_rows,))
    base, freqs = (None, mx.random.uniform(1, 100, (dims // 2,))) if has_freqs else (5e5, None)
    options: dict[str, Any] = {"base": base, "scale": 0.25, "offset": positions, "freqs": freqs}
    expected = mx.fast.rope(x, dims, traditional=traditional, **options)

    routed += route_rotation()
    with quick():
        first, again = (mx.fast.rope(x, dims, traditional=traditional, **options) for _ in range(2))

    np.testing.assert_array_equal(first, expected)
    np.testing.assert_array_equal(again, expected)


def test_angles_are_made_once_for_the_same_positions_and_anew_for_others(
    routed: list[Unroute], monkeypatch: pytest.MonkeyPatch
) -> None:
    cos, made = mx.cos, []
    monkeypatch.setattr(mx, "cos", lambda angles: (made.append(angles), cos(angles))[1])
    routed += route_rotation()

    with quick():
        for positions in (mx.array([3, 5]), mx.array([4, 6])):
            for _ in range(3):
                mx.fast.rope(mx.zeros((2, 1, 1, 8)), 8, traditional=False, base=1e4, scale=1.0, offset=positions)

    assert len(made) == 2


# Norms


def num_operations(array: mx.array) -> int:
    """What MLX is to compute for an array, without views."""
    counts = Counts()
    with counted(counts):
        mx.eval(array)
    return counts.launches


@pytest.mark.parametrize("shape", [(1, 1, 48), (5, 1, 4, 8), (3, 7, 40)])
def test_a_few_rows_are_normalized_as_by_mlx_in_fewer_operations(
    routed: list[Unroute], shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    unroute_all(monkeypatch)
    x, weight = mx.random.normal(shape) * 20, 1 + mx.random.normal(shape[-1:])
    mx.eval(x, weight)
    expected = mx.fast.rms_norm(x, weight, 1e-5)
    num_by_mlx = num_operations(expected)

    routed += route_normalization()
    with quick():
        result = mx.fast.rms_norm(x, weight, 1e-5)

    assert num_operations(result) == 4 < num_by_mlx
    np.testing.assert_allclose(result, expected, rtol=tolerance(shape[-1], 1.0))


@pytest.mark.parametrize("case", ["many numbers", "no weights", "bfloat16"])
def test_other_norms_are_left_to_mlx(routed: list[Unroute], case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    unroute_all(monkeypatch)
    x = mx.random.normal((1 << 10 if case == "many numbers" else 3, 48))
    x, weight = x.astype(mx.bfloat16 if case == "bfloat16" else mx.float32), mx.random.normal((48,)).astype(x.dtype)
    mx.eval(x, weight)
    given = (x, None if case == "no weights" else weight, 1e-5)
    expected = mx.fast.rms_norm(*given)

    routed += route_normalization()
    with quick():
        result = mx.fast.rms_norm(*given)

    assert num_operations(result) == num_operations(expected)
    assert mx.array_equal(result, expected)


@contextmanager
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[mx.array]]:
    """Collects what MLX is asked to compute while more is being described."""
    arrays: list[mx.array] = []
    async_eval = mx.async_eval
    with monkeypatch.context() as patch:
        patch.setattr(mx, "async_eval", lambda *given: (arrays.extend(given), async_eval(*given))[1])
        yield arrays


@pytest.mark.parametrize("norm", [nn.RMSNorm(16), nn.LayerNorm(16), nn.LayerNorm(16, affine=False)])
def test_what_is_normalized_is_started_inside_the_block(
    routed: list[Unroute], norm: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    unroute_all(monkeypatch)
    hidden = mx.random.normal((3, 1, 16)) + 1
    expected = norm(hidden)
    routed += route_normalization()

    with started(monkeypatch) as outside:
        norm(hidden)
    with started(monkeypatch) as inside, quick():
        result = norm(hidden)
        norm(mx.zeros((3, 4, 1, 16)))  # heads' queries

    assert outside == []
    assert [array is hidden for array in inside] == [True]
    np.testing.assert_allclose(result, expected, rtol=tolerance(16, 1.0))


def test_norms_that_mlx_compiles_start_nothing(routed: list[Unroute], monkeypatch: pytest.MonkeyPatch) -> None:
    unroute_all(monkeypatch)
    hidden, norm = mx.random.normal((3, 1, 16)), nn.RMSNorm(16)
    expected = norm(hidden * 2)
    routed += route_normalization()

    with quick():
        result = mx.compile(lambda x: norm(x * 2))(hidden)

    np.testing.assert_allclose(result, expected, rtol=tolerance(16, 1.0))


@pytest.mark.parametrize("architecture", ["llama", "gemma3_text", "cohere2", "lfm2"])
def test_a_decode_step_is_started_layer_by_layer(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(architecture)
    engine = BatchEngine(model, decode, max_num_seqs=2)
    engine.admit(row_spec(prompt_ids=(5, 6, 7), max_tokens=8))
    engine.step(0.0)

    with started(monkeypatch) as arrays:
        engine.step(0.0)

    hidden_states = [array for array in arrays if isinstance(array, mx.array) and array.ndim == 3]
    assert len(hidden_states) >= len(model.layers)


# Experts


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    "num_tokens", [1, 7, 40, 200]
)  # below and above what is sorted there, and multiplied at once here
def test_experts_give_what_mlx_lms_do(routed: list[Unroute], bias: bool, num_tokens: int) -> None:
    num_experts, num_chosen, size = 5, 2, 48
    layer = SwitchGLU(size, 24, num_experts, bias=bias)
    x = mx.random.normal((num_tokens, 1, size))
    indices = mx.random.randint(0, num_experts - 1, (num_tokens, 1, num_chosen)).astype(mx.uint32)  # the last gets none
    expected = layer(x, indices)

    routed += route_quick(layer)
    with quick():
        result = layer(x, indices)

    assert result.shape == expected.shape
    size_of_it = float(mx.abs(expected).max())
    np.testing.assert_allclose(result, expected, rtol=0, atol=tolerance(3 * size, size_of_it))


def test_an_experts_tokens_are_multiplied_at_once_where_there_are_many(
    routed: list[Unroute], monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at: list[mx.array] = []
    runs = experts._runs
    monkeypatch.setattr(experts, "_runs", lambda indices: (looked_at.append(indices), runs(indices))[1])
    layer = SwitchGLU(8, 8, 2)
    routed += route_quick(layer)

    with quick():
        for num_tokens in (MANY - 1, MANY):
            layer(mx.zeros((num_tokens, 1, 8)), mx.zeros((num_tokens, 1, 2), mx.uint32))

    assert [indices.size for indices in looked_at] == [2 * MANY]  # and once for a layer's three projections


# The delta rule


def delta_inputs(num_rows: int, num_tokens: int, *, num_key_heads: int = 2, num_heads: int = 4) -> list[mx.array]:
    keys = (num_rows, num_tokens, num_key_heads, 16)
    q, k = mlx_lm_delta.normalize_qk(*(mx.random.normal(keys) for _ in range(2)), inv_scale=0.25, eps=1e-6)
    v = mx.random.normal((num_rows, num_tokens, num_heads, 8))
    decay = mx.exp(-mx.random.uniform(0, 30, v.shape[:3]) * mx.random.randint(0, 2, v.shape[:3]))  # all, or nearly none
    beta = mx.random.uniform(0, 1, v.shape[:3])
    return [q, k, v, decay, beta, mx.random.normal((num_rows, num_heads, 8, 16))]


@pytest.mark.parametrize("num_tokens", [1, 8, CHUNK, CHUNK + 1, 3 * CHUNK - 1])
@pytest.mark.parametrize("num_rows", [1, 3])
def test_chunks_give_what_token_by_token_does(num_rows: int, num_tokens: int) -> None:
    inputs = delta_inputs(num_rows, num_tokens)

    for result, expected in zip(gated_delta(*inputs), mlx_lm_delta.gated_delta_ops(*inputs), strict=True):
        atol = tolerance(16 * CHUNK, float(mx.abs(expected).max()))
        np.testing.assert_allclose(result, expected, rtol=0, atol=atol)


def test_equal_keys_and_full_writes_lose_nothing() -> None:
    """As a prompt that repeats one token: the system's inverse is then small, and powers of it are huge."""
    q, k, v, decay, beta, state = delta_inputs(1, 2 * CHUNK)
    k = mx.broadcast_to(k[:, :1], k.shape)
    inputs = [q, k, v, mx.ones_like(decay), mx.ones_like(beta), state]

    for result, expected in zip(gated_delta(*inputs), mlx_lm_delta.gated_delta_ops(*inputs), strict=True):
        atol = tolerance(16 * CHUNK, float(mx.abs(expected).max()))
        np.testing.assert_allclose(result, expected, rtol=0, atol=atol)


def test_a_decay_to_nothing_gives_numbers() -> None:
    q, k, v, decay, beta, state = delta_inputs(1, CHUNK)
    inputs = [q, k, v, mx.zeros_like(decay), beta, state]

    for result, expected in zip(gated_delta(*inputs), mlx_lm_delta.gated_delta_ops(*inputs), strict=True):
        np.testing.assert_allclose(result, expected, rtol=0, atol=tolerance(16, float(mx.abs(expected).max())))


def test_a_model_goes_by_chunks_in_a_prompt_and_not_in_a_decode_step(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[int] = []
    original = delta_rule.gated_delta
    monkeypatch.setattr(delta_rule, "gated_delta", lambda q, *rest: (lengths.append(q.shape[1]), original(q, *rest))[1])
    model = build("qwen3_next")
    routes, cache = route_quick(model), make_prompt_cache(model)
    with quick():
        mx.eval(model(mx.arange(20)[None], cache=cache), model(mx.array([[1]]), cache=cache))
    for take_back in routes:
        take_back()

    assert set(lengths) == {20}


# Convolutions


@pytest.mark.parametrize("num_tokens", [1, 2, 40])
@pytest.mark.parametrize(("num_columns", "bias"), [(2, False), (4, True)])
def test_channels_are_convolved_as_by_mlx(routed: list[Unroute], num_tokens: int, num_columns: int, bias: bool) -> None:
    layer = nn.Conv1d(6, 6, num_columns, groups=6, bias=bias)
    if bias:
        layer.bias = mx.random.normal((6,))
    x = mx.random.normal((3, num_columns - 1 + num_tokens, 6))
    expected = layer(x)

    routed += route_quick(layer)
    with quick(), mock.patch.object(mx, "conv1d", None):
        result = layer(x)

    assert result.shape == expected.shape
    np.testing.assert_allclose(result, expected, rtol=0, atol=tolerance(5, float(mx.abs(expected).max())))


@pytest.mark.parametrize("options", [{"groups": 1}, {"groups": 2}, {"padding": 1}, {"stride": 2}, {"dilation": 2}])
def test_other_convolutions_are_left_to_mlx(routed: list[Unroute], options: dict[str, int]) -> None:
    layer, x = nn.Conv1d(6, 6, 3, **{"groups": 6, **options}), mx.random.normal((2, 9, 6))
    expected = layer(x)

    routed += route_quick(layer)
    with quick():
        np.testing.assert_array_equal(layer(x), expected)


# All of them


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_other_types_are_left_to_mlx(routed: list[Unroute], dtype: mx.Dtype) -> None:
    rows, positions = mx.random.normal((9, 2, 1, 16)).astype(dtype), mx.arange(9)
    *inputs, state = (each.astype(dtype) for each in delta_inputs(1, 40))

    def compute() -> list[mx.array]:
        rotated = mx.fast.rope(rows, 16, traditional=False, base=1e4, scale=1.0, offset=positions)
        return [rotated, *mlx_lm_delta.gated_delta_ops(*inputs, state.astype(mx.float32))]

    expected = compute()
    routed += route_quick(build("qwen3_next"))
    with quick():
        result = compute()

    for own, theirs in zip(result, expected, strict=True):
        assert own.dtype == theirs.dtype
        assert mx.array_equal(own, theirs)


def test_a_model_that_is_let_go_leaves_everything_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    unroute_all(monkeypatch)
    there = lambda: (mx.fast.rope, SwitchLinear.__call__, mlx_lm_delta.gated_delta_ops)  # noqa: E731
    before = there()
    packed = PackedModel(build("qwen3_next"))
    inside = there()
    packed.let_go()

    assert all(own is not original for own, original in zip(inside, before, strict=True))
    assert there() == before


@pytest.mark.parametrize("architecture", ["qwen3_next", "gpt_oss"])
def test_a_model_beside_one_on_slots_computes_what_it_did_and_answers_as_mlx_lm_does(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a process in which nothing is routed
    unroute_all(monkeypatch)
    first, second, ids = build(architecture), build(architecture, hidden_size=48), mx.array([[5, 9, 2, 7, 1, 3]])
    before = second(ids, cache=make_prompt_cache(second))
    assert run(BatchEngine(first, decode, max_num_seqs=2), [row_spec(max_tokens=4)]).tokens

    # when nobody but the second model is left
    del first
    after = second(ids, cache=make_prompt_cache(second))
    row = row_spec(prompt_ids=tuple(ids[0].tolist()), max_tokens=4, end_tokens={})
    answer = run(BatchEngine(second, decode, max_num_seqs=2), [row]).tokens

    # then
    assert mx.array_equal(before, after)
    tokens = generate_step(ids[0], second, max_tokens=4)
    assert list(answer.values()) == [tuple(int(token) for token, _ in tokens)]


def test_a_model_is_run_as_mlx_lm_does_before_it_computes_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    # given
    model, inside, calls = build("llama"), list[bool](), list[tuple[bool, int]]()

    class Watched(nn.Module):
        def __init__(self, part: nn.Module) -> None:
            super().__init__()
            self.part = part

        def __call__(self, x: mx.array) -> mx.array:
            calls.append((bool(inside), x.ndim))
            result: mx.array = self.part(x)
            return result

    @contextmanager
    def block() -> Iterator[None]:
        inside.append(True)
        yield
        inside.pop()

    monkeypatch.setattr(packed_model, "quick", block)
    model.layers[0].mlp = Watched(model.layers[0].mlp)

    # when nobody has tried it out
    packed = PackedModel(model)
    packed.arrange(Changes((), (), {0: SlabSize(1, 256)}))
    packed.hidden(mx.array([5]), Layout([], [Span(Slot(0, 0), 0, 1)]))
    packed.let_go()

    # then what mlx-lm compiles has been traced by then, for arrays of as many axes
    assert calls == [(False, 3), (True, 3)]


def test_what_is_made_once_is_made_anew_in_the_next_block() -> None:
    made: list[int] = []

    def make(number: int) -> int:
        made.append(number)
        return number

    for _ in range(2):
        with quick():
            assert [once(make, 1), once(make, 1), once(make, 2)] == [1, 1, 2]

    assert made == [1, 2, 1, 2]


def test_arrays_that_are_gone_are_not_taken_for_new_ones() -> None:
    with quick():
        assert [once(int, mx.array(number)) for number in range(100)] == list(range(100))
