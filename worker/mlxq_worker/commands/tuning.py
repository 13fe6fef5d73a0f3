"""What `mlxq bench` has proposed for a model on this machine, kept in the user's cache directory for its workers.

One small file for each model and machine. A file that is gone, old or broken is no proposal; a model whose config.json
has changed is another one. Measures nothing, and knows no engine.
"""

from __future__ import annotations

import hashlib
import os
import sys
from dataclasses import replace
from pathlib import Path

import msgspec

from mlxq.machine import machine_id
from mlxq_worker.config import WorkerConfig, variable_of

CACHE_VARIABLE = "MLXQ_CACHE_DIR"


class Tuning(msgspec.Struct, frozen=True, kw_only=True):
    """A proposal. `measured_at` is a date; `tokens_per_s` what was generated at that width."""

    model: str
    max_num_seqs: int
    max_num_batched_tokens: int | None
    tokens_per_s: float
    measured_at: str

    def __str__(self) -> str:
        steps = "" if self.max_num_batched_tokens is None else f", steps of {self.max_num_batched_tokens} tokens"
        return f"{self.max_num_seqs} rows at once{steps}, as mlxq bench has measured on {self.measured_at}"


def cache_dir() -> Path:
    """Where this user's programs keep what they can find out again: ``MLXQ_CACHE_DIR``, or as the system has it."""
    if own := os.environ.get(CACHE_VARIABLE):
        return Path(own)
    if sys.platform == "darwin":  # not run there
        return Path("~/Library/Caches/mlxq").expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mlxq"


def tuning_file(model: str) -> Path:
    """The file for a model, named as `--model` has it, on this machine."""
    folder = Path(model).expanduser()
    config = folder / "config.json"
    where = str(folder.resolve()) if folder.is_dir() else model
    said = config.read_bytes() if config.is_file() else b""
    digest = hashlib.sha256(b"\0".join([where.encode(), said, machine_id().encode()])).hexdigest()
    return cache_dir() / "tuning" / f"{digest[:20]}.json"


def save(model: str, tuning: Tuning) -> Path:
    """Keep it; returns where.

    Raises:
        OSError: the directory can't be written to.
    """
    file = tuning_file(model)
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_suffix(f".{os.getpid()}")
    draft.write_bytes(msgspec.json.encode(tuning) + b"\n")
    draft.replace(file)
    return file


def tuning_of(model: str) -> Tuning | None:
    """What was proposed, if anything was."""
    try:
        tuning = msgspec.json.decode(tuning_file(model).read_bytes(), type=Tuning)
    except (OSError, ValueError):
        return None
    return tuning if tuning.max_num_seqs >= 1 and (tuning.max_num_batched_tokens or 1) >= 1 else None


def width_of(config: WorkerConfig, otherwise: str) -> str:
    """How many rows `mlxq worker` decodes at once with this configuration, and why, in words.

    Args:
        otherwise: the same for when neither somebody nor `mlxq bench` says anything.
    """
    if (given := config.engine.max_num_seqs) is not None:
        return f"{given} rows at once, as {variable_of('max_num_seqs')} says"
    return str(tuning_of(config.model) or otherwise)


def tuned(config: WorkerConfig, tuning: Tuning) -> WorkerConfig:
    """The configuration with the proposed width, and step size where none was given."""
    tokens = config.engine.max_num_batched_tokens
    if tokens == "auto" and tuning.max_num_batched_tokens is not None:
        tokens = tuning.max_num_batched_tokens
    engine = replace(config.engine, max_num_seqs=tuning.max_num_seqs, max_num_batched_tokens=tokens)
    return replace(config, engine=engine)
