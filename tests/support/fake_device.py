"""Stands in for MLX's calls about a device's memory, so that what is for Metal runs anywhere."""

from __future__ import annotations

from dataclasses import dataclass, field

from mlxq_worker.engine.kvcache.device import Device

GIB = 1 << 30


@dataclass
class FakeDevice(Device):
    """A Mac with this much memory recommended (`None`: no Metal), this much of which Metal lets be wired, and this much
    allocated. `calls` has what it was told, in order, and `limits` what holds."""

    recommended: int | None = 48 * GIB
    active: int = 20 * GIB
    wirable: int = 48 * GIB
    macos: int = 15
    failure: Exception | None = None
    """Of the steps that are being computed."""
    limits: dict[str, int] = field(default_factory=lambda: {"wired": 0, "memory": 0, "cache": 0})
    calls: list[str] = field(default_factory=list)

    @property
    def recommended_bytes(self) -> int | None:
        return self.recommended

    @property
    def can_wire(self) -> bool:
        return self.macos >= 15

    def active_bytes(self) -> int:
        return self.active

    def release_unused(self) -> None:
        self.calls.append("release")

    def synchronize(self) -> None:
        self.calls.append("synchronize")
        if self.failure is not None:
            raise self.failure

    def set_wired_limit(self, limit_bytes: int) -> int:
        if limit_bytes > self.wirable:  # as MLX does
            raise ValueError("[metal::set_wired_limit] Setting a wired limit larger than the maximum working set size")
        return self._set("wired", limit_bytes)

    def set_memory_limit(self, limit_bytes: int) -> int:
        return self._set("memory", limit_bytes)

    def set_cache_limit(self, limit_bytes: int) -> int:
        return self._set("cache", limit_bytes)

    def _set(self, name: str, limit_bytes: int) -> int:
        self.calls.append(f"{name} {limit_bytes}")
        before, self.limits[name] = self.limits[name], limit_bytes
        return before
