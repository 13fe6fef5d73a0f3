"""States in which a worker runs far below what its machine can do, each as a sentence that says what to do about it.

Decides over facts that others find out; finds out nothing itself, and knows neither MLX nor models.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

OPENBLAS_PACKAGES = "libopenblas0-pthread (apt), openblas (dnf, pacman, apk)"
FULL_BATCH = 32
"""With a quarter of so many rows there is something to gain on any machine."""
LEAST_STEP_TOKENS = 64
"""In smaller steps prompts take for ever."""
MANY_BYTES = 1 << 30
"""Of weights: to read fewer takes no time worth a word."""
NICE = 10
"""A process that is so nice runs when nobody else wants to."""
_HALF = frozenset({"BF16", "F16"})
THREAD_VARIABLES: Mapping[str, str] = {
    "OPENBLAS_NUM_THREADS": "threads of OpenBLAS",
    "OMP_NUM_THREADS": "threads of OpenMP, OpenBLAS's too",
}
DEBUG_VARIABLES: Mapping[str, str] = {
    "MLX_DISABLE_COMPILE": "MLX fuses no operations",
    "METAL_DEVICE_WRAPPER_TYPE": "Metal checks every call",
    "MTL_DEBUG_LAYER": "Metal checks every call",
    "MTL_SHADER_VALIDATION": "Metal checks every access to memory",
    "CUDA_LAUNCH_BLOCKING": "each kernel is waited for",
}
"""Variables that slow everything down, and how."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What a worker runs on.

    Args:
        platform: as `sys.platform`.
        is_gpu: whether MLX computes on one.
        has_nvidia: whether the machine has a GPU by NVIDIA.
        has_openblas: whether OpenBLAS could be loaded; means something on Linux only.
        num_cores: how many the process may run on.
        cpu_limit: how many of them its container or service lets it keep busy; `None` if all.
        threads: the variables that limit those of BLAS, where they are set.
        debugging: `DEBUG_VARIABLES` that are set.
        is_debug_python: whether Python checks itself.
        is_low_power: whether a Mac saves energy.
        nice: as Unix counts it.
        dtype: in which most of the weights are stored, in the words of safetensors; `None` if that isn't known.
        weights_bytes: how much they take, 0 if that isn't known.
        available_bytes: what the machine has left for programs; `None` if that isn't known.
        recommended_bytes: what Metal recommends to use at most; `None` without Metal.
        is_unwired: whether weights that had better be wired are not, since somebody has said so.
        step_tokens: how many tokens a step may take, where somebody has said so.
    """

    platform: str
    is_gpu: bool
    has_nvidia: bool = False
    has_openblas: bool = True
    num_cores: int = 1
    cpu_limit: float | None = None
    threads: tuple[tuple[str, str], ...] = ()
    debugging: tuple[tuple[str, str], ...] = ()
    is_debug_python: bool = False
    is_low_power: bool = False
    nice: int = 0
    dtype: str | None = None
    weights_bytes: int = 0
    available_bytes: int | None = None
    recommended_bytes: int | None = None
    is_unwired: bool = False
    step_tokens: int | None = None


def slow_states(setting: Setting) -> Iterator[str]:
    """What costs speed here, and what helps."""
    if setting.platform == "darwin" and not setting.is_gpu:
        yield (
            "MLX computes on the CPU of this Mac, not on its GPU: run a native arm64 Python, outside containers and "
            "virtual machines, and leave MLX's default device as it is"
        )
    if setting.platform == "linux" and not setting.is_gpu:
        yield from _on_a_cpu(setting)
    if setting.is_gpu and setting.dtype == "F32" and setting.weights_bytes >= MANY_BYTES:
        yield (
            "the weights are in F32, of which a GPU reads twice the bytes: convert the model with `mlx_lm.convert "
            "--dtype bfloat16`, or quantise it with -q"
        )
    yield from _of_the_system(setting)
    yield from _of_memory(setting)
    if setting.step_tokens is not None and setting.step_tokens < LEAST_STEP_TOKENS:
        yield (
            f"a step may take {setting.step_tokens} tokens only, so prompts enter the batch slowly: leave "
            "--max-num-batched-tokens (MLXQ_MAX_NUM_BATCHED_TOKENS) out, or give it 512"
        )


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
    limit = setting.num_cores if setting.cpu_limit is None else setting.cpu_limit
    for name, value in setting.threads:
        if value.isdecimal() and 1 <= int(value) < max(2.0, limit / 2) and limit > 1:
            yield f"{name} is {value}, and the worker may use {limit:g} cores: leave it out"
    if limit <= setting.num_cores / 2 and not setting.threads:
        yield (
            f"its container or service lets the worker use {limit:g} of {setting.num_cores} cores, and OpenBLAS starts "
            f"a thread for each of these: allow more, or set OPENBLAS_NUM_THREADS={max(1, round(limit))}"
        )


def _of_the_system(setting: Setting) -> Iterator[str]:
    for name, value in setting.debugging:
        yield f"{name} is {value}, with which {DEBUG_VARIABLES[name]}: leave it out"
    if setting.is_debug_python:
        yield "this Python checks itself (a debug build, or -X dev): use an ordinary one"
    if setting.is_low_power:
        yield "this Mac is in Low Power Mode, which slows its GPU down: sudo pmset -a lowpowermode 0"
    if setting.nice >= NICE:
        yield f"the worker runs at nice {setting.nice}, after everybody else: start it without `nice`"


def _of_memory(setting: Setting) -> Iterator[str]:
    shares_memory = setting.platform == "darwin" or not setting.is_gpu
    if shares_memory and setting.available_bytes is not None and setting.available_bytes < setting.weights_bytes:
        yield (
            f"the weights take {_gib(setting.weights_bytes)}, and the machine has {_gib(setting.available_bytes)} of "
            "memory left, so it will swap: end other programs, or take a smaller model"
        )
    if setting.is_unwired:
        yield (
            f"the weights take {_gib(setting.weights_bytes)} and aren't wired, so macOS may page them out between two "
            "steps: leave --wired-limit (MLXQ_WIRED_LIMIT) at auto"
        )


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f} GiB"
