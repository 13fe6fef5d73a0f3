"""Loads the model and puts together what a worker needs of it: a preparer, and engines as often as it wants one.

The one place where the queue side meets MLX; everything is imported late, so that a worker with another backend
(tests) and RQ's own commands never load it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from mlxq.errors import ModelError
from mlxq_worker.blas import preload_openblas
from mlxq_worker.config import WorkerConfig
from mlxq_worker.decoding.memory_watch import MemoryWatch, no_limit, resident_bytes
from mlxq_worker.engine.api import Engine
from mlxq_worker.messages import Preparer


@dataclass(frozen=True, slots=True)
class Backend:
    """A loaded model. `description` is for the log; `memory` watches over what model and engine take together. Engines
    belong to the thread that builds them."""

    preparer: Preparer
    new_engine: Callable[[], Engine]
    description: str
    memory: MemoryWatch = field(default_factory=no_limit)


def load_backend(config: WorkerConfig) -> Backend:
    """Load the model on this thread, which then owns it.

    Raises:
        ModelError: the model can't be loaded, leaves no memory for rows, or (EosError) says nowhere how its answers
            end.
    """
    preload_openblas()  # before the next line brings in mlx, which binds its BLAS as it loads

    from mlxq_worker.engine.engine import BatchEngine
    from mlxq_worker.engine.kvcache.memory import active_bytes, room_for_rows, usable_bytes
    from mlxq_worker.model.load import load_model
    from mlxq_worker.model.reasoning import reasoning_markers_of
    from mlxq_worker.model.tool_formats import tool_format_of
    from mlxq_worker.text.prepare import Preparer as ModelPreparer

    loaded = load_model(config.model, extra_eos_tokens=config.extra_eos_tokens, allow_no_eos=config.allow_no_eos)
    preparer = ModelPreparer(
        loaded.tokenizer,
        loaded.eos,
        vocab_size=loaded.vocab_size,
        context_length=loaded.context_length,
        default_max_tokens=config.default_max_tokens,
        model_name=loaded.name,
        tool_format=tool_format_of(loaded.tokenizer),
        markers=reasoning_markers_of(loaded.tokenizer),
    )

    limit_bytes = config.memory_limit_bytes or usable_bytes()

    def used_bytes() -> int:
        return max(resident_bytes(), active_bytes())  # the former holds the latter, but maybe not on every device

    if not room_for_rows(limit_bytes, used_bytes()):
        raise ModelError(
            f"with {loaded.name} loaded the worker takes {used_bytes() / 2**20:.0f} MiB, and it may take no more than "
            f"{limit_bytes / 2**20:.0f} MiB: raise --memory-limit (MLXQ_MEMORY_LIMIT) or choose a smaller model"
        )

    told = config.engine.max_num_batched_tokens
    step_tokens = None if told == "auto" else told

    def new_engine() -> Engine:
        nonlocal step_tokens
        engine = BatchEngine(
            loaded.model,
            preparer.decode,
            max_num_seqs=config.engine.max_num_seqs,
            max_num_batched_tokens=step_tokens,
            max_prefix_bytes=config.engine.max_prefix_bytes,
            longest_first=config.engine.longest_first,
            kv_bytes=room_for_rows(limit_bytes, used_bytes()),
        )
        step_tokens = engine.max_num_batched_tokens  # measured once: rows wait for an engine that replaces another
        return engine

    end_tokens = ", ".join(f"{token.id} {token.token!r}" for token in loaded.eos.tokens)
    return Backend(
        preparer, new_engine, f"model {loaded.name}, end tokens [{end_tokens}]", MemoryWatch(used_bytes, limit_bytes)
    )
