"""YaRN as config.json states it where mlx-lm's differs: ``"truncate": false``, as in gpt-oss. Imports mlx.

YaRN (Peng et al. 2023, "Efficient Context Window Extension of Large Language Models", section 3.2) leaves fast
frequencies as they are, slows slow ones down, and blends between two dimensions. mlx-lm always rounds those two
outwards; a model that was trained without that gets other angles for the dimensions between.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from mlxq.errors import ModelError
from mlxq_worker.model.config_json.rope import kind_of, ropes_of

_SAME = 1e-5
"""What float32 may differ by, relatively, between two ways to reckon one frequency: a few dozen roundings of 6e-8."""


def leave_range_unrounded(model: Any, config: Mapping[str, Any]) -> None:
    """Give a model the frequencies that its config asks for with ``"truncate": false``.

    Args:
        model: as mlx-lm built it from `config`, which is in mlx-lm's words.

    Raises:
        ModelError: mlx-lm's frequencies are not the rounded ones of these parameters, so there is no telling which
            ones they should be.
    """
    import mlx.core as mx
    from mlx_lm.models.rope_utils import YarnRoPE

    part = config["text_config"] if isinstance(config.get("text_config"), Mapping) else config
    unrounded = [rope for rope in ropes_of(part) if kind_of(rope) == "yarn" and rope.get("truncate") is False]
    if not unrounded:
        return
    rope = {"rope_theta": part.get("rope_theta", 10_000.0), **unrounded[0]}
    for _, module in model.named_modules():
        if isinstance(module, YarnRoPE):
            if not mx.allclose(module._freqs, _frequencies(rope, module.dims, rounded=True), rtol=_SAME, atol=0.0):
                raise ModelError(
                    'config.json: "truncate": false in the parameters of YaRN, which mlx-lm does not do for'
                    f" {config.get('model_type')} models"
                )
            module._freqs = _frequencies(rope, module.dims, rounded=False)


def _frequencies(rope: Mapping[str, Any], dims: int, *, rounded: bool) -> Any:
    """The wavelength of each pair of dimensions, over 2 pi: ``(dims / 2,)`` of float32, as `mx.fast.rope` takes it."""
    import mlx.core as mx

    theta, factor = float(rope["rope_theta"]), float(rope["factor"])
    original = float(rope["original_max_position_embeddings"])

    def dimension_of(rotations: float) -> float:
        """The dimension that turns so often over the original context."""
        return dims * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dimension_of(rope.get("beta_fast") or 32), dimension_of(rope.get("beta_slow") or 1)
    if rounded:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dims - 1)
    slowed = mx.clip((mx.arange(dims // 2, dtype=mx.float32) - low) / ((high - low) or 0.001), 0, 1)
    plain = theta ** (mx.arange(0, dims, 2, dtype=mx.float32) / dims)
    return plain / ((1 - slowed) + slowed / factor)
