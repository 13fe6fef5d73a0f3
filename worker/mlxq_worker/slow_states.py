"""States in which a worker runs far below what its machine can do, each as a sentence that says what to do about it.

Decides over facts that others find out; finds out nothing itself, and knows neither MLX nor models.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

OPENBLAS_PACKAGES = "libopenblas0-pthread (apt), openblas (dnf, pacman, apk)"
FULL_BATCH = 32
"""With a quarter of so many rows there is something to gain on any machine."""
_HALF = frozenset({"BF16", "F16"})
_THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What a worker runs on.

    Args:
        platform: as `sys.platform`.
        is_gpu: whether MLX computes on one.
        has_nvidia: whether the machine has a GPU by NVIDIA.
        has_openblas: whether OpenBLAS could be loaded; means something on Linux only.
        num_cores: of the CPU.
        threads: the variables that limit those of BLAS, where they are set.
        dtype: in which most of the weights are stored, in the words of safetensors; `None` if that isn't known.
    """

    platform: str
    is_gpu: bool
    has_nvidia: bool = False
    has_openblas: bool = True
    num_cores: int = 1
    threads: tuple[tuple[str, str], ...] = ()
    dtype: str | None = None


def slow_states(setting: Setting) -> Iterator[str]:
    """What costs speed here, and what helps."""
    if setting.platform == "darwin" and not setting.is_gpu:
        yield (
            "MLX computes on the CPU of this Mac, not on its GPU: run a native arm64 Python, outside containers and "
            "virtual machines, and leave MLX's default device as it is"
        )
    if setting.platform == "linux" and not setting.is_gpu:
        yield from _on_a_cpu(setting)


def narrow_batch(num_rows: int, wanted: int, num_tokens: int) -> Iterator[str]:
    """What costs speed where only so few rows of so many tokens fit into memory, of those that are wanted."""
    if num_rows < min(wanted, FULL_BATCH) / 4:
        yield (
            f"only {num_rows} of {wanted} rows fit into memory where requests set no limit, at {num_tokens:,} tokens "
            "with the prompt, so the batch will be narrow: raise --memory-limit, lower --default-max-tokens, or take a "
            "smaller model"
        )


def _on_a_cpu(setting: Setting) -> Iterator[str]:
    if setting.has_nvidia:
        yield 'this machine has an NVIDIA GPU, and MLX computes on the CPU: install "mlxq[cuda]" for it'
    if not setting.has_openblas:
        yield (
            f"OpenBLAS is not installed, so MLX computes up to fifty times slower: install {OPENBLAS_PACKAGES}, then "
            "start the worker again"
        )
    if setting.dtype in _HALF:
        yield (
            f"the weights are in {setting.dtype}, with which a CPU computes many times slower than with F32: convert "
            "the model with `mlx_lm.convert --dtype float32`"
        )
    for name, value in setting.threads:
        if value == "1" and setting.num_cores > 1:
            yield f"{name} is 1, and the machine has {setting.num_cores} cores: leave it out"


def thread_limits(environment: dict[str, str]) -> tuple[tuple[str, str], ...]:
    """The variables that limit BLAS's threads, where they are set."""
    return tuple((name, environment[name]) for name in _THREADS if environment.get(name))
