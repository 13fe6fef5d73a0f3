"""Wired memory: what macOS may not page out or compress while a worker decodes.

Without it a model that fits in memory only just may decode ten times slower (mlx-lm#652). With all memory wired, and
buffers coming and going in it, machines froze (mlx#3186). So the weights are wired, which stay where they are, and
nothing else is: keys, values and activations find the limit used up. It is set once, before the first step, and set
back at the end. Not run on Metal.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from mlxq.errors import ConfigError
from mlxq_worker.engine.kvcache.device import Device

WiredLimit = Literal["auto", "off"] | int
"""What a worker is told: to find it out, to wire nothing, or a number of bytes."""

LEAST_SHARE = 4
"""Weights below one part of this many of the recommended working set are left alone: nothing presses on them."""
_PAGES_SHARE = 64
"""So much more than the weights, one part of this many: MLX counts pages, and a weight that doesn't quite fit is not
wired at all."""


@dataclass(frozen=True, slots=True)
class Wiring:
    """How much is to be wired, and why, as a sentence for the log."""

    limit_bytes: int
    reason: str

    def __str__(self) -> str:
        return self.reason


def wiring(told: WiredLimit, weights_bytes: int, recommended_bytes: int | None, *, can_wire: bool = True) -> Wiring:
    """What to wire of a loaded model.

    Args:
        told: by whoever starts the worker.
        weights_bytes: what is allocated once the model is loaded.
        recommended_bytes: what Metal recommends to use at most; `None` without Metal.
        can_wire: whether this macOS does it.

    Raises:
        ConfigError: more than is recommended is asked for, which MLX refuses.
    """
    asked = "" if told in ("auto", "off") else f", though {_mib(int(told))} were asked for"
    if recommended_bytes is None:
        return Wiring(0, f"no memory is wired{asked}: there is no Metal here")
    if not can_wire:
        return Wiring(0, f"no memory is wired{asked}: macOS can do that from version 15 on")
    if told == "off":
        return Wiring(0, "no memory is wired: it is off")
    if told != "auto":
        if told > recommended_bytes:
            raise ConfigError(
                f"wired_limit (MLXQ_WIRED_LIMIT) must be auto, off or at most {_mib(recommended_bytes)}, which is what "
                f"Metal recommends to use on this machine, not {_mib(told)}"
            )
        return Wiring(told, f"{_mib(told)} are wired")
    if weights_bytes < recommended_bytes // LEAST_SHARE:
        return Wiring(0, f"no memory is wired: the weights' {_mib(weights_bytes)} are few for this machine")
    limit_bytes = min(weights_bytes + weights_bytes // _PAGES_SHARE, recommended_bytes)
    return Wiring(limit_bytes, f"the weights are wired, {_mib(limit_bytes)}")


@contextmanager
def wired(told: WiredLimit, device: Device) -> Iterator[Wiring]:
    """Wire for the block what there is to wire of the model that is loaded; nothing else should be allocated yet.

    Raises:
        ConfigError: as `wiring`; or MLX can't wire what is asked for.
    """
    device.release_unused()  # what is kept for reuse would be wired in the weights' place
    decided = wiring(told, device.active_bytes(), device.recommended_bytes, can_wire=device.can_wire)
    before = 0
    if decided.limit_bytes:
        try:
            before = device.set_wired_limit(decided.limit_bytes)
        except (ValueError, RuntimeError) as error:
            if told != "auto":
                raise ConfigError(
                    f"wired_limit (MLXQ_WIRED_LIMIT): {_mib(decided.limit_bytes)} can't be wired: {error}"
                ) from error
            decided = Wiring(0, f"no memory is wired: {_mib(decided.limit_bytes)} can't be: {error}")
    try:
        yield decided
    finally:
        if decided.limit_bytes:
            try:
                device.synchronize()  # nothing may be unwired under a step that is being computed
            finally:
                device.set_wired_limit(before)


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:,.0f} MiB"
