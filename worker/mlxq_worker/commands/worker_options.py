"""The options of a worker, once for all commands: for `mlxq worker`, which has all of them, and for `mlxq run`, which
passes some of them on.

Names, variables and checks are those of `WorkerConfig`; knows nothing of what a worker does with them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import click

from mlxq.cli.operations.address import AddressType
from mlxq_worker.commands.size import Size, StepTokens, WiredLimit
from mlxq_worker.config import KV_BITS, NO_KV_BITS, variable_of

F = TypeVar("F", bound=Callable[..., Any])

WORKER = (sys.executable, "-m", "mlxq", "worker")


@dataclass(frozen=True, slots=True)
class WorkerOption:
    """One option on a command line: its flag, its help, and what else click is to know of it."""

    flag: str
    help: str
    settings: Mapping[str, Any] = field(default_factory=dict)


_FLAG: Mapping[str, Any] = {"is_flag": True, "default": None}
"""On, or not given: the variable may say what it is then."""
_COUNT: Mapping[str, Any] = {"type": click.IntRange(1)}

WORKER_OPTIONS: Mapping[str, WorkerOption] = {
    "model": WorkerOption("--model", "Directory or Hub repository of the model, or demo."),
    "adapter_path": WorkerOption(
        "--adapter-path", "Directory with a LoRA adapter for the model, as mlx-lm writes them.", {"metavar": "DIR"}
    ),
    "served_model_name": WorkerOption(
        "--served-model-name", "What answers call the model.  [default: its own name]", {"metavar": "NAME"}
    ),
    "queues": WorkerOption("--queue", "RQ queue to serve; may be repeated.  [default: mlxq]", {"multiple": True}),
    "burst": WorkerOption("--burst", "End once the queues are empty.", _FLAG),
    "max_num_seqs": WorkerOption(
        "--max-num-seqs",
        "Rows decoded at once.  [default: what mlxq bench has proposed, else what fits into memory and pays]",
        _COUNT,
    ),
    "max_num_batched_tokens": WorkerOption(
        "--max-num-batched-tokens",
        "Tokens, of prompts and decoding rows together, that a step takes; auto measures it once prompts fill one."
        "  [default: auto]",
        {"type": StepTokens()},
    ),
    "max_prefix_bytes": WorkerOption(
        "--max-prefix-bytes",
        "Memory for prefixes that prompts share; 0 shares none.  [default: an eighth of that for keys and values]",
        {"type": click.IntRange(0)},
    ),
    "longest_first": WorkerOption("--longest-first", "Start the longest waiting prompts first.", _FLAG),
    "default_max_tokens": WorkerOption(
        "--default-max-tokens", "Limit for requests that set none, before the model's own.  [default: 2048]", _COUNT
    ),
    "generation_config": WorkerOption(
        "--generation-config",
        "What requests leave out of temperature, top_p, top_k, min_p, repetition_penalty and max_tokens: auto takes it"
        " from the model's generation_config.json, off leaves mlxq's defaults.  [default: auto]",
        {"type": click.Choice(["auto", "off"])},
    ),
    "extra_eos_tokens": WorkerOption(
        "--extra-eos-token",
        "A further end token, as its id or its text; may be repeated.",
        {"multiple": True, "metavar": "TOKEN"},
    ),
    "allow_no_eos": WorkerOption("--allow-no-eos", "Accept a model that names no end token at all.", _FLAG),
    "tool_call_parser": WorkerOption(
        "--tool-call-parser",
        "How the model writes tool calls, in vLLM's names, or none.  [default: what its files tell]",
        {"metavar": "NAME"},
    ),
    "reasoning_parser": WorkerOption(
        "--reasoning-parser",
        "How the model marks its reasoning, in vLLM's names, or none.  [default: what its files tell]",
        {"metavar": "NAME"},
    ),
    "grace_s": WorkerOption(
        "--grace",
        "How long running rows may go on after SIGTERM or SIGINT.  [default: 30]",
        {"type": click.FloatRange(0), "metavar": "SECONDS"},
    ),
    "memory_limit_bytes": WorkerOption(
        "--memory-limit",
        "What a worker may take: 24GB, 24GiB or 70%.  [default: 90% of what Metal recommends, else half the machine's]",
        {"type": Size()},
    ),
    "wired_limit": WorkerOption(
        "--wired-limit",
        "Memory that macOS may not page out: auto (the weights), off, or a size.  [default: auto]",
        {"type": WiredLimit()},
    ),
    "max_jobs": WorkerOption("--max-jobs", "Start a fresh process after so many jobs.", _COUNT),
    "max_generated_tokens": WorkerOption(
        "--max-generated-tokens", "Start a fresh process after so many tokens.", _COUNT
    ),
    "metrics_address": WorkerOption(
        "--metrics-port",
        "Serve /metrics, /health and /ready at this port of 127.0.0.1, or at HOST:PORT.  [default: not at all]",
        {"type": AddressType()},
    ),
}
"""By the field of `WorkerConfig`, or of the `EngineConfig` in it, that each sets."""


def worker_option(name: str, **settings: Any) -> Callable[[F], F]:
    """The option for a field as a click decorator; `settings` are laid over its own."""
    option = WORKER_OPTIONS[name]
    merged = {"envvar": variable_of(name), "help": option.help, **option.settings, **settings}
    return click.option(option.flag, name, **merged)


def all_worker_options(command: F) -> F:
    """A decorator for the command that has all of them."""
    for name in reversed(tuple(WORKER_OPTIONS)):
        command = worker_option(name)(command)
    return command


def no_kv_bits(_ctx: click.Context, _param: click.Parameter, value: object) -> None:
    """Refuse an option of mlx-lm's commands by name.

    Raises:
        UsageError: it is given.
    """
    if value is not None:
        raise click.UsageError(f"{KV_BITS[0]} can't be honoured: {NO_KV_BITS}")


def worker_command(queue: str, **values: Any) -> list[str]:
    """The command line of a worker. Its Redis URL, which may hold a password and would show in `ps`, goes through the
    environment instead.

    Args:
        queue: the one that it serves.
        values: by the names of `WORKER_OPTIONS`; those that are `None` are left to the worker's environment.
    """
    given = [word for name, value in values.items() for word in words_of(WORKER_OPTIONS[name].flag, value)]
    return [*WORKER, "--queue", queue, *given]


def words_of(flag: str, value: object) -> list[str]:
    """An option with its value as words of a command line; none if it isn't given."""
    if value is None or value is False:
        return []
    if value is True:
        return [flag]
    return [word for each in (value if isinstance(value, tuple) else (value,)) for word in (flag, str(each))]
