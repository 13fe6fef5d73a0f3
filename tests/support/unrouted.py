"""Takes back for a test what engines of tests before it have had computed otherwise in this process, and hold still."""

from __future__ import annotations

import sys

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_lm.models.switch_layers import SwitchLinear


def unroute_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every function do for the test what it did before it was routed."""
    models = [module for name, module in list(sys.modules.items()) if name.startswith("mlx_lm.models.")]
    for owner in (mx.fast, nn, nn.Conv1d, SwitchLinear, *models):
        for name, function in list(vars(owner).items()):
            if hasattr(function, "is_routed"):
                monkeypatch.setattr(owner, name, function.__wrapped__)
