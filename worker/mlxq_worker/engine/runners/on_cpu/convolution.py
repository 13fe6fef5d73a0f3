"""Convolutions of each channel by itself on a CPU, where mlx takes four times as long for them as for the products that
they are a sum of."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlxq_worker.engine.runners.on_cpu.quick import Unroute, route

_MOST_COLUMNS = 8


def route_convolutions(model: Any) -> list[Unroute]:
    """Make the convolutions of a model go through here, if it has any."""
    if not any(isinstance(module, nn.Conv1d) for module in model.modules()):
        return []
    return route(nn.Conv1d, "__call__", _by_channel)


def _by_channel(layer: nn.Conv1d, x: mx.array) -> mx.array | None:
    """(B, T, C) to (B, T - K + 1, C), as a short `nn.Conv1d` by channel that pads nothing; `None` for all others."""
    weight: mx.array = layer.weight  # (C, K, 1)
    num_channels, num_columns, depth = weight.shape
    is_by_channel = depth == 1 and layer.groups == num_channels == x.shape[-1] and num_columns <= _MOST_COLUMNS
    is_plain = (layer.stride, layer.padding, layer.dilation) == (1, 0, 1)
    if not (is_by_channel and is_plain and x.dtype == weight.dtype == mx.float32):
        return None
    length = x.shape[1] - num_columns + 1
    if length == 1:
        result = (x * weight[..., 0].T).sum(axis=1, keepdims=True)
    else:
        result = x[:, :length] * weight[:, 0, 0]
        for column in range(1, num_columns):
            result = result + x[:, column : column + length] * weight[:, column, 0]
    if "bias" in layer:
        bias: mx.array = layer.bias
        result = result + bias
    return result
