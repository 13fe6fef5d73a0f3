"""The rotary frequencies of a loaded model are those that transformers reckons from the same config.json."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.rope_utils import YarnRoPE
from tests.support.architectures import OWN
from transformers import GptOssConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from mlxq_worker.model.config_json.build import build, config_overrides
from mlxq_worker.model.config_json.yarn import leave_range_unrounded

PUBLISHED: dict[str, Any] = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "original_max_position_embeddings": 4096,
}
"""As in gpt-oss's config.json."""


@pytest.mark.parametrize("truncate", [False, True])
@pytest.mark.parametrize(("theta", "head_dim"), [(150_000.0, 64), (10_000.0, 32), (1_000_000.0, 128)])
def test_yarn_is_rounded_or_not_as_the_config_says(truncate: bool, theta: float, head_dim: int) -> None:
    said = {"model_type": "gpt_oss", **OWN["gpt_oss"], "head_dim": head_dim, "rope_theta": theta}
    config = {**said, "rope_scaling": {**PUBLISHED, "truncate": truncate}}
    full = {**config, **config_overrides(config)}
    model = build(full)
    leave_range_unrounded(model, full)
    own = [module._freqs for _, module in model.named_modules() if isinstance(module, YarnRoPE)]

    theirs = GptOssConfig(head_dim=head_dim, rope_theta=theta, rope_scaling=config["rope_scaling"])

    inverse, factor = ROPE_INIT_FUNCTIONS["yarn"](theirs, "cpu")

    assert own
    for frequencies in own:
        # A handful of float32 operations each way, of which the power is off by 1e-6 at most.
        np.testing.assert_allclose(np.array(1 / frequencies), inverse.numpy(), rtol=1e-5)
    ropes = [module for _, module in model.named_modules() if isinstance(module, YarnRoPE)]
    assert {round(rope.mscale, 6) for rope in ropes} == {round(factor, 6)}
    assert all(frequencies.dtype == mx.float32 for frequencies in own)
