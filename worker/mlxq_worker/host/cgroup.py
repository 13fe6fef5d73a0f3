"""What a container or a service may take of its machine, by Linux's control groups of both versions.

A limit holds for a group and all below it, so the smallest on the way up counts. Elsewhere than on Linux, and where the
files can't be read, there is no limit that could be told.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def memory_limit_bytes(root: Path = ROOT, membership: Path = MEMBERSHIP) -> int | None:
    """The most memory that this process and those beside it may take; `None` if nothing limits it."""
    limits = [
        int(text)
        for folder in _folders("memory", root, membership)
        for name in ("memory.max", "memory.limit_in_bytes")
        if (text := _read(folder / name)).isdecimal()
    ]
    return min(limits, default=None)


def cpu_limit(root: Path = ROOT, membership: Path = MEMBERSHIP) -> float | None:
    """How many processors' time it may take, such as 1.5; `None` if nothing limits it."""
    limits = []
    for folder in _folders("cpu", root, membership):
        quota, _, period = _read(folder / "cpu.max").partition(" ")
        if not quota:
            quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
        if quota.isdecimal() and period.isdecimal():  # not "max", nor -1
            limits.append(int(quota) / int(period))
    return min(limits, default=None)


def _folders(controller: str, root: Path, membership: Path) -> Iterator[Path]:
    """Those of this process's groups that may limit it, the innermost first. A container may see its own as the root,
    under a path that isn't there."""
    for line in _read(membership).splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:  # version 2, which has all in one tree
            top = root
        elif controller in controllers.split(","):
            top = root / controller
        else:
            continue
        own = top / path.lstrip("/")
        yield from (folder for folder in (own, *own.parents) if folder.is_relative_to(top))


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""
