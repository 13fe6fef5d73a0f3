"""Loads the model and puts together what a worker needs of it: a preparer, and engines as often as it wants one.

The one place where the queue side meets MLX; everything is imported late, so that a worker with another backend
(tests) and RQ's own commands never load it.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from mlxq.errors import ConfigError, ModelError
from mlxq_worker.blas import preload_openblas
from mlxq_worker.config import EngineConfig, WorkerConfig
from mlxq_worker.decoding.memory_watch import MemoryWatch, no_limit, resident_bytes
from mlxq_worker.engine.api import Engine
from mlxq_worker.host import cgroup, facts
from mlxq_worker.host.slow_states import DEBUG_VARIABLES, THREAD_VARIABLES, Setting, narrow_batch, slow_states
from mlxq_worker.messages import Preparer
from mlxq_worker.startup import import_transformers

if TYPE_CHECKING:
    from mlxq_worker.engine.kvcache.fit import Fit
    from mlxq_worker.engine.runners.trial import Packing
    from mlxq_worker.engine.scheduling.step_size import StepSize
    from mlxq_worker.model.generation import OpenFields
    from mlxq_worker.model.load import DescribedModel, LoadedModel

logger = logging.getLogger("rq.worker")

NVIDIA_DEVICE = Path("/proc/driver/nvidia/version")
"""Is there where NVIDIA's driver is."""


def _nothing() -> None:
    """There is nothing to close."""


def _no_engine(_width: int) -> tuple[Engine, Callable[[], int | None]]:
    raise NotImplementedError("this backend builds engines of one width only")


@dataclass(frozen=True, slots=True)
class Backend:
    """A loaded model, and engines of it that run `max_num_seqs` rows at once. `description` is for the log; `memory`
    watches over what model and engine take together. Engines belong to the thread that builds them; `close` comes after
    the last one's. `model_name` is what answers report, `model` what its files say."""

    preparer: Preparer
    new_engine: Callable[[], Engine]
    max_num_seqs: int
    description: str
    memory: MemoryWatch = field(default_factory=no_limit)
    close: Callable[[], None] = _nothing
    model_name: str = ""
    model: DescribedModel | None = None
    engine_at: Callable[[int], tuple[Engine, Callable[[], int | None]]] = _no_engine
    """An engine of another width, and the size of a step that it has measured by then, if it had to."""
    used_bytes: Callable[[], int] = lambda: 0


class ModelEngines:
    """Builds the engines of one loaded model, one after the other: each gets the memory that is free then. The model is
    tried out for the first one.

    Args:
        decode: token ids to text.
        max_num_seqs: how many rows they run at once.
        used_bytes: measures what this process takes.
        limit_bytes: what it may take.

    Raises:
        ModelError: with the model loaded there is no memory left for rows.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        decode: Callable[[Sequence[int]], str],
        max_num_seqs: int,
        config: EngineConfig,
        used_bytes: Callable[[], int],
        limit_bytes: int,
    ) -> None:
        self._loaded = loaded
        self._decode = decode
        self._max_num_seqs = max_num_seqs
        self._config = config
        self._used_bytes = used_bytes
        self._limit_bytes = limit_bytes
        told = config.max_num_batched_tokens
        from mlxq_worker.engine.scheduling.step_size import StepSize

        self._step_size = StepSize(None if told == "auto" else told)
        if not self._room_bytes():
            raise ModelError(
                f"with {loaded.name} loaded the worker takes {used_bytes() / 2**20:.0f} MiB, and it may take no more"
                f" than {limit_bytes / 2**20:.0f} MiB: raise --memory-limit (MLXQ_MEMORY_LIMIT) or choose a smaller"
                " model"
            )

    def build(self) -> Engine:
        """An empty engine, for the thread that calls. What size of a step is best is measured by one engine for all."""
        return self._build(self._max_num_seqs, self._step_size)

    def build_at(self, width: int) -> tuple[Engine, Callable[[], int | None]]:
        """An empty engine of another width, which measures for itself what size of a step is best; and how to ask."""
        from mlxq_worker.engine.scheduling.step_size import StepSize

        step_size = StepSize()
        return self._build(width, step_size), lambda: step_size.known

    def _build(self, width: int, step_size: StepSize) -> Engine:
        from mlxq_worker.engine.engine import BatchEngine

        return BatchEngine(
            self._loaded.model,
            self._decode,
            max_num_seqs=width,
            max_num_batched_tokens=step_size,
            max_prefix_bytes=self._config.max_prefix_bytes,
            longest_first=self._config.longest_first,
            kv_bytes=self._room_bytes(),
            packing=self._packing,
        )

    @cached_property
    def _packing(self) -> Packing:
        from mlxq_worker.engine.runners.trial import find_packing

        return find_packing(self._loaded.model)

    def _room_bytes(self) -> int:
        from mlxq_worker.engine.kvcache.memory import room_for_rows

        return room_for_rows(self._limit_bytes, self._used_bytes())


def load_backend(config: WorkerConfig, *, max_model_len: int | None = None) -> Backend:
    """Load the model on this thread, which then owns it.

    Args:
        max_model_len: how many tokens prompt and answer may have together, if fewer than the model can.

    Raises:
        ModelError: the model can't be loaded, leaves no memory for rows, or (EosError) says nowhere how its answers
            end.
        ConfigError: more memory is to be wired than Metal allows, or `max_model_len` is more than the model can.
    """
    has_openblas = preload_openblas()  # before the next lines bring in mlx, which binds its BLAS as it loads
    import_transformers()

    from mlxq_worker.dialects.reasoning import reasoning_markers_of
    from mlxq_worker.dialects.tool_format import tool_format_of
    from mlxq_worker.engine.kvcache.device import Device
    from mlxq_worker.engine.kvcache.memory import mlx_limited
    from mlxq_worker.engine.kvcache.wired import wired
    from mlxq_worker.model.load import read_weights
    from mlxq_worker.text.prepare import ModelPreparer

    device = Device()
    limit_bytes = config.memory_limit_bytes or default_memory_limit()

    def used_bytes() -> int:
        return max(resident_bytes(), device.active_bytes())  # the former holds the latter, but maybe not everywhere

    with ExitStack() as stack:
        stack.enter_context(mlx_limited(limit_bytes, device))
        loaded = _without_weights(config)
        fit = _look_before_loading(loaded, config, limit_bytes, max_model_len, has_openblas)
        read_weights(loaded)
        open_fields = _open_fields(loaded, config)
        preparer = ModelPreparer(
            loaded.tokenizer,
            loaded.eos,
            vocab_size=loaded.vocab_size,
            context_length=max_model_len or loaded.context_length,
            default_max_tokens=open_fields.max_tokens,
            sampling_defaults=open_fields.sampling,
            model_name=config.served_model_name or loaded.name,
            tool_format=tool_format_of(loaded.tokenizer, config.tool_call_parser),
            markers=reasoning_markers_of(loaded.tokenizer, config.reasoning_parser),
        )
        wiring = stack.enter_context(wired(config.wired_limit, device))
        engines = ModelEngines(loaded, preparer.decode, fit.max_num_seqs, config.engine, used_bytes, limit_bytes)
        end_tokens = ", ".join(f"{token.id} {token.token!r}" for token in loaded.eos.tokens)
        return Backend(
            preparer,
            engines.build,
            fit.max_num_seqs,
            f"model {loaded.name}{_with_adapter(config)}, end tokens [{end_tokens}], {open_fields}, {wiring}",
            MemoryWatch(used_bytes, limit_bytes, device.release_unused),
            stack.pop_all().close,
            config.served_model_name or loaded.name,
            loaded,
            engines.build_at,
            used_bytes,
        )


def _without_weights(config: WorkerConfig) -> LoadedModel:
    from mlxq_worker.model.load import load_without_weights

    return load_without_weights(
        config.model,
        adapter_path=config.adapter_path,
        extra_eos_tokens=config.extra_eos_tokens,
        allow_no_eos=config.allow_no_eos,
    )


def _with_adapter(config: WorkerConfig) -> str:
    return "" if config.adapter_path is None else f" with the adapter in {config.adapter_path}"


def _open_fields(model: DescribedModel, config: WorkerConfig) -> OpenFields:
    """What is filled in where a request says nothing.

    Raises:
        ModelError: the model's own values are wanted, and one of them is broken.
    """
    from mlxq_worker.model.generation import OpenFields

    return OpenFields.of(model.generation_config, config.generation_config, config.default_max_tokens)


def _look_before_loading(
    model: LoadedModel, config: WorkerConfig, limit_bytes: int, max_model_len: int | None, has_openblas: bool
) -> Fit:
    """What fits of a model whose weights are not read yet. Logs that, and warns of all that will make it slow.

    Raises:
        ConfigError: it can't have sequences as long as that.
        ModelError: there isn't the memory for its weights, or its sampling defaults are broken.
    """
    if max_model_len is not None and max_model_len > model.context_length:
        raise ConfigError(
            f"max_model_len is {max_model_len}, but {model.name} can have {model.context_length} tokens at most"
        )
    fit = what_fits(model, config, limit_bytes)
    if fit.weights_bytes >= limit_bytes:
        raise ModelError(
            f"the weights of {model.name} take {fit.weights_bytes / 2**20:,.0f} MiB, and the worker may take no more "
            f"than {limit_bytes / 2**20:,.0f} MiB: raise --memory-limit (MLXQ_MEMORY_LIMIT) or choose a smaller model"
        )
    logger.info("%s: %s", model.name, fit)
    if fit.given is None:
        logger.info("No width was given: %s", fit.reason)
    setting = setting_of(model.path, config, has_openblas=has_openblas)
    for state in (*slow_states(setting), *narrow_batch(fit.num_longest, fit.wanted, fit.longest_tokens)):
        logger.warning("This worker will be slow: %s", state)
    return fit


@dataclass(frozen=True, slots=True)
class Machine:
    """What a worker would run on."""

    setting: Setting
    machine_bytes: int


def machine_of(folder: Path | None, config: WorkerConfig | None = None) -> Machine:
    """The machine, and the model in that folder, without loading it.

    Args:
        config: what a worker would be told.

    Raises:
        ModelError: the weights' files can't be read.
    """
    has_openblas = preload_openblas()
    return Machine(setting_of(folder, config, has_openblas=has_openblas), facts.machine_bytes())


def setting_of(folder: Path | None, config: WorkerConfig | None, *, has_openblas: bool) -> Setting:
    """What a model in that folder, if there is one, runs on here.

    Raises:
        ModelError: the weights' files can't be read.
    """
    from mlxq_worker.engine.kvcache.device import Device, is_gpu
    from mlxq_worker.engine.kvcache.wired import wiring
    from mlxq_worker.model.safetensors import main_dtype, weights_bytes

    device = Device()
    num_bytes = weights_bytes(folder) if folder is not None else 0
    would_wire = wiring("auto", num_bytes, device.recommended_bytes, can_wire=device.can_wire).limit_bytes > 0
    step_tokens = config.engine.max_num_batched_tokens if config is not None else "auto"
    return Setting(
        platform=sys.platform,
        is_gpu=is_gpu(),
        has_nvidia=NVIDIA_DEVICE.exists(),
        has_openblas=has_openblas,
        num_cores=facts.num_cores(),
        cpu_limit=cgroup.cpu_limit(),
        threads=facts.variables(THREAD_VARIABLES, os.environ),
        debugging=facts.variables(DEBUG_VARIABLES, os.environ),
        is_debug_python=facts.is_debug_python(),
        is_low_power=facts.is_low_power(),
        nice=facts.niceness(),
        dtype=main_dtype(folder) if folder is not None else None,
        weights_bytes=num_bytes,
        available_bytes=facts.available_bytes(),
        recommended_bytes=device.recommended_bytes,
        is_unwired=would_wire and config is not None and config.wired_limit == "off",
        step_tokens=None if step_tokens == "auto" else step_tokens,
    )


def default_memory_limit() -> int:
    """How many bytes a worker takes of this machine at most unless it is told otherwise."""
    preload_openblas()
    from mlxq_worker.engine.kvcache.device import Device
    from mlxq_worker.engine.kvcache.memory import usable_bytes

    return usable_bytes(Device(), facts.machine_bytes())


def fit_of(config: WorkerConfig) -> Fit:
    """What would fit of a model that is not to be loaded.

    Raises:
        ModelError: it can't be found, read or built.
    """
    preload_openblas()
    return what_fits(_without_weights(config), config, config.memory_limit_bytes or default_memory_limit())


def what_fits(model: LoadedModel, config: WorkerConfig, limit_bytes: int) -> Fit:
    """What will fit of a model and its rows; its weights need not have been read. A row that asks for no limit is
    reckoned with a prompt as long as its longest answer."""
    from mlxq_worker.engine.kvcache.budget import KvBudget
    from mlxq_worker.engine.kvcache.device import Device, is_gpu
    from mlxq_worker.engine.kvcache.fit import EXPECTED_TOKENS, Fit, most_rows
    from mlxq_worker.engine.kvcache.memory import measure_cost, room_for_rows, weights_bytes
    from mlxq_worker.engine.runners.step_cost import measure_step
    from mlxq_worker.engine.scheduling.step_size import StepSize
    from mlxq_worker.model.architecture import runs_alone

    num_bytes = weights_bytes(model.model)
    room_bytes = room_for_rows(limit_bytes, resident_bytes() + num_bytes)
    longest_tokens = min(model.context_length, 2 * _open_fields(model, config).max_tokens)
    most = most_rows(
        is_gpu=is_gpu(),
        has_metal=Device().recommended_bytes is not None,
        runs_alone=runs_alone(model.model),
    )
    given = config.engine.max_num_seqs
    told = config.engine.max_num_batched_tokens
    step_size = StepSize(None if told == "auto" else told)
    return Fit(
        weights_bytes=num_bytes,
        limit_bytes=limit_bytes,
        budget=KvBudget(
            measure_cost(model.model, in_slabs=True),
            room_bytes,
            in_slabs=True,
            step=measure_step(model.model),
            step_tokens=step_size.tokens(given or most.num_rows),
        ),
        row_tokens=min(longest_tokens, EXPECTED_TOKENS),
        longest_tokens=longest_tokens,
        most=most,
        given=given,
    )
