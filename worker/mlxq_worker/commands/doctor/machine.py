"""What MLX computes on, how much memory there is, and how much room for answers."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from mlxq_worker.commands.doctor.finding import Finding, note, ok, problem, warning
from mlxq_worker.host.slow_states import Setting, slow_states

LEAST_FREE_BYTES = 1_000_000_000
_GIB = 2**30


def look_at_device(setting: Setting, machine_bytes: int) -> Iterator[Finding]:
    """What computes, and what makes it slow."""
    device = "the GPU" if setting.is_gpu else "the CPU"
    yield ok("device", f"MLX computes on {device}; the machine has {machine_bytes / _GIB:.0f} GiB of memory")
    states = list(slow_states(setting))
    yield from _warnings("speed", states)
    if not states:
        yield ok("speed", "nothing is known that makes a worker slow here")
    if setting.recommended_bytes is not None:
        yield ok("metal_memory", f"Metal recommends to use up to {setting.recommended_bytes / _GIB:.1f} GiB of it")


def look_at_fit(what_fits: str, weights_bytes: int, limit_bytes: int, *, has_metal: bool) -> Iterator[Finding]:
    """Whether a model's weights have room, and rows beside them.

    Args:
        what_fits: a sentence with all sizes.
        weights_bytes: what the weights will take.
        limit_bytes: what a worker may take of the machine's memory.
    """
    if weights_bytes < 0.8 * limit_bytes:
        yield ok("memory", what_fits)
        return
    todo = "take a smaller model or one of fewer bits, or give more with --memory-limit"
    if has_metal:
        megabytes = round(1.25 * weights_bytes / 1e6)
        todo += f"; on a Mac with more memory than that: sudo sysctl iogpu.wired_limit_mb={megabytes}"
    if weights_bytes < limit_bytes:
        yield warning("memory", f"little is left for rows: {what_fits}", todo)
    else:
        yield problem("memory", what_fits, todo)


def look_at_width(chosen: str, slow: Iterable[str]) -> Iterator[Finding]:
    """How many rows a worker decodes at once.

    Args:
        chosen: that, and why.
        slow: sentences about what makes the batch narrow.
    """
    yield ok("width", chosen)
    yield from _warnings("width", slow)


def look_at_disk(folder: Path, free_bytes: int | None = None) -> Iterator[Finding]:
    """Whether answers have room where they will be written."""
    if not folder.is_dir():
        yield problem("disk", f"there is no directory {folder}", "create it, or name another one with --output-dir")
        return
    free = shutil.disk_usage(folder).free if free_bytes is None else free_bytes
    what = f"{free / 1e9:.1f} GB are free in {folder}"
    if free < LEAST_FREE_BYTES:
        yield warning("disk", what, "make room, or write answers elsewhere: an answer takes a few kB")
    else:
        yield ok("disk", what)


def no_model() -> Iterator[Finding]:
    """Nobody has said which model to look at."""
    yield note("model", "no model was looked at", "name one with --model, or set MLXQ_MODEL")


def _warnings(name: str, states: Iterable[str]) -> Iterator[Finding]:
    for state in states:
        what, _, todo = state.partition(": ")
        yield warning(name, what, todo)
