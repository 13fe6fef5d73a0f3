"""The device that keys and values lie on: whether it is a GPU, what memory it has, and what MLX can be told about that.

The only module that calls MLX's functions for memory. Decides nothing: `memory` and `wired` do. What is for Metal
follows MLX's documentation and has not been run there; tests stand in for this class.
"""

from __future__ import annotations

import platform
from functools import cache

import mlx.core as mx

_WIRES_FROM = 15
"""The first macOS in which MLX's wired limit does anything: before it the call succeeds and nothing is wired."""


@cache
def is_gpu() -> bool:
    """Whether arrays are computed by a GPU, where a step costs launches, and attention is a single kernel. Asked in
    every layer of every step; the default device stays what it is."""
    return mx.default_device() != mx.Device(mx.cpu)  # not run on Metal


class Device:
    """MLX's default device and its memory, in bytes."""

    @property
    def recommended_bytes(self) -> int | None:
        """How much of the machine's memory Metal recommends to use at most (`recommendedMaxWorkingSetSize`); `None`
        where there is no Metal."""
        if not mx.metal.is_available():
            return None
        return int(mx.device_info()["max_recommended_working_set_size"])

    @property
    def can_wire(self) -> bool:
        """Whether this macOS wires what it is told to."""
        return int(platform.mac_ver()[0].partition(".")[0] or 0) >= _WIRES_FROM

    def active_bytes(self) -> int:
        """What MLX has allocated and uses; without what it keeps for reuse."""
        return mx.get_active_memory()

    def release_unused(self) -> None:
        """Give back what MLX keeps for reuse."""
        mx.clear_cache()

    def set_wired_limit(self, limit_bytes: int) -> int:
        """Keep buffers of so many bytes resident, those that are there first; returns what the limit was. Does nothing
        where it can't be, or without Metal.

        Raises:
            ValueError: that is more than the system allows.
        """
        return mx.set_wired_limit(limit_bytes)

    def set_memory_limit(self, limit_bytes: int) -> int:
        """Near this MLX gives back what it keeps for reuse; returns what the limit was."""
        return mx.set_memory_limit(limit_bytes)

    def set_cache_limit(self, limit_bytes: int) -> int:
        """Keep no more than this for reuse; returns what the limit was."""
        return mx.set_cache_limit(limit_bytes)

    def synchronize(self) -> None:
        """Wait for all that is being computed."""
        mx.synchronize()
