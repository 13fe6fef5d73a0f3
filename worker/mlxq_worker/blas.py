"""Loads OpenBLAS before mlx, on Linux.

The `mlx-cpu` wheel bundles the reference BLAS: about 2 GFLOP/s in float32, where OpenBLAS has 60 to 130 on two
cores. Symbols that are loaded first and globally win, so this has to run before mlx is first imported. Without the
library (Debian: libopenblas0-pthread) everything still works, slowly.
"""

from __future__ import annotations

import ctypes
import logging
import os
import sys
from functools import cache

logger = logging.getLogger(__name__)

LIBRARY = "libopenblas.so.0"


def preload_openblas() -> bool:
    """Make OpenBLAS the BLAS of this process; does nothing where there is none, or outside Linux. Returns whether it
    is, or need not be."""
    if sys.platform != "linux":
        return True
    try:
        ctypes.CDLL(LIBRARY, mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        logger.debug("%s is not there, float32 on the CPU will be slow: %s", LIBRARY, error)
        return False
    return True


@cache
def core_name() -> str | None:
    """The processor that OpenBLAS has chosen its kernels for, such as "Haswell" or "SkylakeX"; `None` where this
    process has not loaded it."""
    if sys.platform != "linux":
        return None
    try:
        library = ctypes.CDLL(LIBRARY, mode=os.RTLD_NOLOAD)
        name = library.openblas_get_corename
    except (OSError, AttributeError):
        return None
    name.restype = ctypes.c_char_p
    return str(name().decode())
