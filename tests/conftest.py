"""Loads OpenBLAS before anything imports mlx, as the Linux wheel's own is fifty times slower; names the fixtures."""

from __future__ import annotations

import ctypes
import sys

if sys.platform == "linux":
    ctypes.CDLL("libopenblas.so.0", mode=ctypes.RTLD_GLOBAL)

pytest_plugins = ["redis_fixture"]
