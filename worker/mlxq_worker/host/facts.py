"""Finds out about this machine what `slow_states` decides over: cheap questions, each of which may have no answer.

What is for Macs follows Apple's manuals and has not been run on one.
"""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from mlxq_worker.host import cgroup

PMSET_TIMEOUT_S = 5.0
_MEMINFO = Path("/proc/meminfo")
_AVAILABLE = re.compile(r"^MemAvailable:\s+(\d+) kB$", re.MULTILINE)
_LOW_POWER = re.compile(r"^\s*(?:lowpowermode|powermode)\s+1\s*$", re.MULTILINE)


def machine_bytes(limit_bytes: Callable[[], int | None] = cgroup.memory_limit_bytes) -> int:
    """All of the machine's memory, or what its container or service may take of it."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = limit_bytes()
    return whole if limit is None else min(whole, limit)


def available_bytes(meminfo: Path = _MEMINFO) -> int | None:
    """What programs could take of the machine's memory now, without anything being paged out; `None` if nobody says."""
    if sys.platform == "darwin":
        level = _sysctl_int("kern.memorystatus_level")  # percent
        return None if level is None else level * machine_bytes() // 100
    try:
        found = _AVAILABLE.search(meminfo.read_text())
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def num_cores() -> int:
    """How many cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def niceness() -> int:
    """How far this process lets others go first, from -20 to 19."""
    return os.getpriority(os.PRIO_PROCESS, 0)


def is_debug_python() -> bool:
    """Whether this Python was built to debug it, or checks itself (``-X dev``)."""
    return hasattr(sys, "gettotalrefcount") or sys.flags.dev_mode


def is_low_power(settings: Callable[[], str] | None = None) -> bool:
    """Whether this Mac saves energy (Low Power Mode), which slows its GPU down."""
    return _LOW_POWER.search((settings or _pmset)()) is not None


def variables(names: Mapping[str, str], environment: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Those variables that are set to something else than nothing and 0."""
    return tuple((name, environment[name]) for name in names if environment.get(name, "0") not in ("", "0"))


def _pmset() -> str:
    """What ``pmset -g`` prints; nothing elsewhere than on a Mac."""
    if sys.platform == "darwin":
        with suppress(OSError, subprocess.TimeoutExpired):
            return subprocess.run(
                ["pmset", "-g"], capture_output=True, text=True, timeout=PMSET_TIMEOUT_S, check=False
            ).stdout
    return ""


def _sysctl_int(name: str) -> int | None:
    value, size = ctypes.c_int(), ctypes.c_size_t(ctypes.sizeof(ctypes.c_int))
    failed = ctypes.CDLL(None).sysctlbyname(name.encode(), ctypes.byref(value), ctypes.byref(size), None, 0)
    return None if failed else value.value
