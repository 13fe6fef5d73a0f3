"""What is reckoned of a GPU: when a prefix is worth a part of its own, and what a step that runs ahead copies."""

from __future__ import annotations

import pytest

from mlxq_worker.engine.kvcache.gpu_costs import InFlightCopies, parts_pay

LAYER_BYTES_8B = 2 * 8 * 128 * 2
"""A token's keys and values in a layer of Llama 3 8B, in bfloat16."""


@pytest.mark.parametrize(
    ("num_rows", "num_tokens", "pays"),
    [(1, 100_000, False), (5, 100_000, False), (6, 11_000, True), (32, 64, False), (32, 397, False), (32, 398, True)],
)
def test_a_prefix_is_attended_to_together_where_enough_rows_would_read_enough_of_it(
    num_rows: int, num_tokens: int, pays: bool
) -> None:
    assert parts_pay(num_rows, num_tokens, LAYER_BYTES_8B) is pays


@pytest.mark.parametrize(
    ("name", "weights_bytes", "num_layers", "are_made"),
    [
        ("a small Llama", 270 << 20, 16, True),
        ("many small layers", 270 << 20, 30, False),
        ("1B in bfloat16", 2_400 << 20, 16, False),
    ],
)
def test_only_a_step_that_is_on_its_way_as_a_whole_has_its_slabs_copied(
    name: str, weights_bytes: int, num_layers: int, are_made: bool
) -> None:
    copies = InFlightCopies(weights_bytes, num_layers)

    assert copies.are_made is are_made
    assert copies.seconds(400_000_000) == (pytest.approx(0.002) if are_made else 0.0)
