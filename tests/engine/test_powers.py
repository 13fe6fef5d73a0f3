"""Powers of two and single queries' attention by numpy: as MLX computes them, but for rounding."""

from __future__ import annotations

from functools import partial
from unittest import mock

import mlx.core as mx
import numpy as np
import pytest
from tests.support.rounding import attention_tolerance, unit

from mlxq_worker.engine.kvcache import device
from mlxq_worker.engine.runners.attention import attend_in_part
from mlxq_worker.engine.runners.on_cpu import powers, single_query
from mlxq_worker.engine.runners.on_cpu.powers import MANY, power_of_two

LEAST_NORMAL = 2.0**-126
"""Powers below it may be taken for nothing."""


def assert_powers(result: mx.array, x: mx.array) -> None:
    """Right but for rounding: an implementation is off by eight units at most; and by two roundings of the exponent
    where that is multiplied by a factor that is rounded, too."""
    expected = 2.0 ** np.array(x, dtype=np.float64)
    off = (8 + 2 * np.abs(np.array(x, dtype=np.float64))) * unit() * expected + LEAST_NORMAL
    assert (np.abs(np.array(result) - expected) <= off).all()


def many(*shape: int) -> mx.array:
    return mx.random.uniform(-140, 120, shape, key=mx.random.key(0))


def by_numpy() -> mock._patch[mock.Mock]:
    """Counts how often numpy computes powers."""
    return mock.patch.object(np, "exp", wraps=np.exp)


def test_many_powers_are_mlxs_but_for_rounding() -> None:
    x = many(3, MANY)

    with by_numpy() as exp:
        result = power_of_two(x * 1)

    assert exp.call_count == 1
    assert_powers(result, x)


def test_what_has_no_end_or_is_no_number_stays_that() -> None:
    x = many(MANY)
    x[:4] = mx.array([-mx.inf, mx.inf, mx.nan, 1e30])

    assert [str(each) for each in power_of_two(x * 1)[:4].tolist()] == ["0.0", "inf", "nan", "inf"]


@pytest.mark.parametrize("x", [many(8), many(MANY).astype(mx.float16)], ids=["few", "of another type"])
def test_others_are_left_to_mlx(x: mx.array) -> None:
    with by_numpy() as exp:
        np.testing.assert_array_equal(power_of_two(x * 1), mx.power(2, x))

    exp.assert_not_called()


@pytest.mark.parametrize("num_kv_heads", [4, 2], ids=["one query a head", "two queries a head"])
def test_a_gpu_gets_nothing_from_numpy(num_kv_heads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "is_gpu", lambda: True)
    queries, keys = many(1, 4, 1, 8), many(1, num_kv_heads, MANY, 8)
    with by_numpy() as exp:
        attend_in_part(queries, keys, keys, 0.3)

    exp.assert_not_called()


def test_numbers_that_lie_at_the_same_place_are_raised_once() -> None:
    row = many(4)
    x = mx.broadcast_to(row, (MANY, 4)) * 1

    assert_powers(power_of_two(x)[-1], row)


def test_a_function_that_is_compiled_is_computed_by_mlx() -> None:
    x = many(MANY)

    result = partial(mx.compile, shapeless=True)(lambda x: power_of_two(x * 1) * 1)(x)

    assert_powers(result, x)


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """However few numbers there are, numpy has them."""
    monkeypatch.setattr(powers, "MANY", 1)
    monkeypatch.setattr(single_query, "MANY", 1)


@pytest.fixture
def apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where rows don't see all there is, each reads what it sees."""
    monkeypatch.setattr(single_query, "PER_ROW", 1)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("is_masked", [False, True])
@pytest.mark.parametrize(("num_kv_heads", "num_calls"), [(4, 1), (2, 0)], ids=["one a head", "two a head"])
def test_a_single_query_attends_as_others_do(num_kv_heads: int, num_calls: int, is_masked: bool) -> None:
    queries = mx.random.normal((3, 4, 1, 8), key=mx.random.key(1))
    keys, values = (mx.random.normal((3, num_kv_heads, 12, 8), key=mx.random.key(seed)) * 5 for seed in (2, 3))
    mask = mx.arange(12)[None, None, None] < mx.array([12, 7, 1])[:, None, None, None] if is_masked else None

    with mock.patch.object(single_query, "attend", wraps=single_query.attend) as attend:
        attended = attend_in_part(queries, keys, values, 0.3, mask).result(mx.float32)

    expected = mx.fast.scaled_dot_product_attention(queries, keys, values, scale=0.3, mask=mask)
    assert attend.call_count == num_calls
    off = attention_tolerance(queries, keys, values, 0.3)
    np.testing.assert_allclose(attended, expected, rtol=0, atol=off)


def seen(*ranges: range) -> mx.array:
    """A mask (B, 1, 1, 12) by which each row sees the columns of its range."""
    return mx.array([[[[column in each for column in range(12)]]] for each in ranges])


@pytest.mark.usefixtures("always", "apart")
@pytest.mark.parametrize(
    ("mask", "num_read"),
    [
        (seen(range(3), range(12), range(1)), 3 + 12 + 1),
        (seen(range(2, 5), range(7, 11), range(9, 12)), 3 + 4 + 3),
        (seen(range(12), range(12), range(12)), 3 * 12),
        (seen(range(12), range(3), range(0, 12, 2)), 3 * 12),
        (seen(range(5))[0, 0], 3 * 5),
    ],
    ids=["beginnings", "windows", "everything", "gaps", "one for all"],
)
def test_rows_read_what_they_see(mask: mx.array, num_read: int) -> None:
    queries = mx.random.normal((3, 4, 1, 8), key=mx.random.key(1))
    keys, values = (mx.random.normal((3, 4, 12, 8), key=mx.random.key(seed)) * 5 for seed in (2, 3))

    with mock.patch.object(np, "matmul", wraps=np.matmul) as matmul:
        attended = attend_in_part(queries, keys, values, 0.3, mask).result(mx.float32)

    numbers_read = sum(call.args[1].size for call in matmul.call_args_list)
    assert numbers_read == 2 * num_read * 4 * 8  # of keys and of values, of 4 heads of 8
    expected = mx.fast.scaled_dot_product_attention(queries, keys, values, scale=0.3, mask=mask)
    off = attention_tolerance(queries, keys, values, 0.3)
    np.testing.assert_allclose(attended, expected, rtol=0, atol=off)


@pytest.mark.usefixtures("always", "apart")
def test_a_single_query_that_sees_nothing_counts_for_nothing() -> None:
    queries = mx.random.normal((2, 4, 1, 8), key=mx.random.key(4))
    keys, values = (mx.random.normal((2, 4, 12, 8), key=mx.random.key(seed)) for seed in (5, 6))
    part = attend_in_part(queries, keys, values, 0.3, seen(range(0), range(0)))
    merged = part.merged(attend_in_part(queries, keys, values, 0.3)).result(mx.float32)

    expected = mx.fast.scaled_dot_product_attention(queries, keys, values, scale=0.3)
    off = attention_tolerance(queries, keys, values, 0.3)
    np.testing.assert_allclose(merged, expected, rtol=0, atol=off)


@pytest.mark.usefixtures("always")
def test_a_row_whose_keys_are_no_numbers_spoils_no_other() -> None:
    queries, keys, values = (mx.random.normal((2, 4, 5, 8), key=mx.random.key(seed)) for seed in (7, 8, 9))
    queries, keys[0] = queries[:, :, :1], mx.nan

    attended = attend_in_part(queries, keys, values, 0.3).result(mx.float32)

    assert mx.isnan(attended[0]).all()
    assert mx.isfinite(attended[1]).all()
