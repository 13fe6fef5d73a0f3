"""What a worker and its engine can be told, checked when built and never changed afterwards.

`WorkerConfig.from_env` is the one place in the worker that reads the environment: `mlxq worker` lays its options
over it, and under stock `rq worker` the variables are all there is. Knows nothing of Redis, RQ or models beyond
their addresses and names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeVar

from mlxq import keys
from mlxq.errors import ConfigError
from mlxq.metrics.address import ADDRESS_FORM, Address
from mlxq_worker.decoding.memory_watch import machine_bytes
from mlxq_worker.model.generation import GenerationConfig

T = TypeVar("T")

KV_BITS = ("--kv-bits", "MLXQ_KV_BITS")
NO_KV_BITS = "keys and values are kept as the model computes them; leave it out, and see --memory-limit for less memory"
"""What mlx-lm's commands quantise them to, which is refused here rather than ignored."""

SIZE_FORM = "a size such as 24GB, 24GiB or 70%"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """How wide the batch may get and how prompts enter it.

    Args:
        max_num_seqs: rows decoded at once, at most; `None` for as many as fit into memory and pay (`kvcache.fit`).
        max_num_batched_tokens: tokens, of prompts and decoding rows together, that one step takes through the model;
            "auto" to measure what is best when the engine is built.
        max_prefix_bytes: what prefixes that rows share may take of the memory for keys and values, which they leave to
            rows where it is short; 0 shares nothing, `None` is an eighth.
        longest_first: admit the longest waiting prompts first, and not those that came first.

    Raises:
        ConfigError: a value is out of range.
    """

    max_num_seqs: int | None = None
    max_num_batched_tokens: int | Literal["auto"] = "auto"
    max_prefix_bytes: int | None = None
    longest_first: bool = False

    def __post_init__(self) -> None:
        _check(self, "max_num_seqs", self.max_num_seqs is None or self.max_num_seqs >= 1, "at least 1")
        given = self.max_num_batched_tokens
        _check(self, "max_num_batched_tokens", given == "auto" or given >= 1, "at least 1, or auto")
        _check(self, "max_prefix_bytes", (self.max_prefix_bytes or 0) >= 0, "not negative")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConfig:
    """One worker: what it serves, from where, and how it treats its jobs.

    Args:
        model: a directory, a repository on the Hub, or ``demo``.
        adapter_path: a directory with a LoRA adapter for the model, as mlx-lm writes them.
        served_model_name: what answers call the model; by default its own name.
        queues: RQ queues in order of preference.
        url: Redis URL; unused where RQ's own command line opens the connection.
        burst: end once the queues are empty.
        default_max_tokens: the limit of a request that sets none; by default the model's own, else 2048.
        generation_config: whether what a request leaves out is taken from the model's generation_config.json.
        extra_eos_tokens: further end-of-sequence tokens, each as its id or its text.
        allow_no_eos: accept a model without any end-of-sequence token.
        tool_call_parser: how the model writes tool calls, in vLLM's names; by default what its files tell.
        reasoning_parser: likewise, how it marks its reasoning.
        claim_ahead: rows that may be active, running and prepared together, as a multiple of those decoded at once.
            The order of work is chosen among them, so more of them save prompts that begin alike (see
            ``tests/bench/order.py``). Each of them costs Redis a look every second, a worker that dies gives all of
            them a strike, and no other worker gets them while they wait.
        lease_s: seconds after its last sign of life at which a worker's jobs go to others.
        grace_s: seconds that running rows get to end after a first SIGTERM or SIGINT.
        maintenance_s: seconds between two looks for jobs of dead workers.
        step_timeout_s: seconds without a token for any of the rows in the engine after which the process ends.
        memory_limit_bytes: what the process may take of the machine's memory; by default 0.9 of what Metal recommends,
            half of the machine elsewhere.
        wired_limit: bytes of memory that macOS may not page out, "auto" for those of the weights, "off" for none.
        max_jobs: end after so many jobs, once the running rows have ended; a supervisor starts a fresh process then.
        max_generated_tokens: likewise after so many tokens.
        parent_pid: the process that looks after this worker, which ends when that is gone; `None` to live on alone.
        name: the worker's name in Redis; a new one by default.
        ready_fd: a file descriptor to which it is written, once the model is loaded, how many rows are decoded at once.
        reports_fd: a file descriptor to which the worker's figures are written, once a second.
        metrics_address: where the process that looks after this worker serves its figures.
        engine: the batch.

    Raises:
        ConfigError: a value is out of range.
    """

    model: str
    adapter_path: str | None = None
    served_model_name: str | None = None
    queues: tuple[str, ...] = (keys.DEFAULT_QUEUE,)
    url: str = field(default=keys.DEFAULT_URL, repr=False)  # may hold a password
    burst: bool = False
    default_max_tokens: int | None = None
    generation_config: GenerationConfig = "auto"
    extra_eos_tokens: tuple[str, ...] = ()
    allow_no_eos: bool = False
    tool_call_parser: str | None = None
    reasoning_parser: str | None = None
    claim_ahead: int = 4
    lease_s: float = 90.0
    grace_s: float = 30.0
    maintenance_s: float = 10.0
    step_timeout_s: float = 300.0
    memory_limit_bytes: int | None = None
    wired_limit: int | Literal["auto", "off"] = "auto"
    max_jobs: int | None = None
    max_generated_tokens: int | None = None
    parent_pid: int | None = None
    name: str | None = None
    ready_fd: int | None = None
    reports_fd: int | None = None
    metrics_address: Address | None = None
    engine: EngineConfig = field(default_factory=EngineConfig)

    def __post_init__(self) -> None:
        _check(self, "model", bool(self.model), "a directory, a Hub repository or demo")
        _check(self, "queues", bool(self.queues) and all(self.queues), "at least one queue name")
        _check(self, "generation_config", self.generation_config in ("auto", "off"), "auto or off")
        _check(self, "claim_ahead", self.claim_ahead >= 1, "at least 1")
        _check(self, "lease_s", 1 <= self.lease_s <= 90, "from 1 to 90 seconds")
        _check(self, "grace_s", self.grace_s >= 0, "not negative")
        _check(self, "maintenance_s", self.maintenance_s > 0, "above 0 seconds")
        _check(self, "step_timeout_s", self.step_timeout_s > 0, "above 0 seconds")
        for name in ("default_max_tokens", "memory_limit_bytes", "max_jobs", "max_generated_tokens"):
            _check(self, name, getattr(self, name) is None or getattr(self, name) >= 1, "at least 1")
        wired = self.wired_limit
        _check(self, "wired_limit", wired in ("auto", "off") or int(wired) >= 1, f"auto, off or {SIZE_FORM}")

    @classmethod
    def from_env(cls, env: Mapping[str, str], **given: Any) -> WorkerConfig:
        """The variables ``MLXQ_*`` (and ``REDIS_URL`` where ``MLXQ_URL`` is not set) under the given values.

        Args:
            env: usually `os.environ`.
            given: values of fields, of `EngineConfig`'s too, that win over the environment; `None` is not given.

        Raises:
            ConfigError: a variable is missing or has a bad value; the message names it.
        """
        if env.get(KV_BITS[1]):
            raise ConfigError(f"{KV_BITS[1]} can't be honoured: {NO_KV_BITS}")
        values = {name: parse(env, variable) for name, (variable, parse) in _VARIABLES.items() if env.get(variable)}
        if "url" not in values and env.get("REDIS_URL"):
            values["url"] = env["REDIS_URL"]
        values.update({name: value for name, value in given.items() if value is not None})
        if "model" not in values:
            raise ConfigError("no model is given: set MLXQ_MODEL or use --model")
        engine = {name: values.pop(name) for name in _names(EngineConfig) if name in values}
        return cls(engine=EngineConfig(**engine), **values)


def variable_of(name: str) -> str:
    """The environment variable that sets a field of `WorkerConfig` or of its `EngineConfig`."""
    return _VARIABLES[name][0]


def _names(config: type) -> list[str]:
    return [item.name for item in fields(config)]


def _check(config: object, name: str, is_good: bool, expected: str) -> None:
    if not is_good:
        raise ConfigError(f"{name} (MLXQ_{name.upper()}) must be {expected}, not {getattr(config, name)!r}")


_Parser = Callable[[Mapping[str, str], str], Any]


def _value(convert: Callable[[str], T], expected: str) -> Callable[[Mapping[str, str], str], T]:
    def parse(env: Mapping[str, str], variable: str) -> T:
        try:
            return convert(env[variable])
        except ValueError:
            raise ConfigError(f"{variable} must be {expected}, not {env[variable]!r}") from None

    return parse


def _to_bool(text: str) -> bool:
    try:
        return {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}[text.lower()]
    except KeyError:
        raise ValueError(text) from None


def to_step_tokens(text: str) -> int | Literal["auto"]:
    """`max_num_batched_tokens` from a text.

    Raises:
        ValueError: it is neither an integer nor "auto".
    """
    return "auto" if text == "auto" else int(text)


def to_wired_limit(text: str) -> int | Literal["auto", "off"]:
    """`wired_limit` from a text.

    Raises:
        ValueError: it is neither a size nor "auto" or "off".
    """
    match text:
        case "auto" | "off":
            return text
        case _:
            return to_bytes(text)


def _to_words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def to_bytes(text: str) -> int:
    """Bytes of a size such as ``24GB`` (powers of 1000), ``24GiB`` (powers of 1024), ``70%`` (of the machine's memory)
    or a plain number of bytes.

    Raises:
        ValueError: it is none of these, or more than all of the machine's memory in percent.
    """
    if not (match := _SIZE.fullmatch(text.strip())):
        raise ValueError(text)
    number, prefix, binary, percent = match.groups()
    if percent and float(number) > 100:
        raise ValueError(text)
    if percent:
        return round(float(number) / 100 * machine_bytes())
    unit: int = (1024 if binary else 1000) ** " KMGT".index((prefix or " ").upper())
    return round(float(number) * unit)


_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?(?:([KMGT])(i)?B?|B|(%))?", re.IGNORECASE)

_text = _value(str, "text")
_words = _value(_to_words, "words with blanks between them")
_integer = _value(int, "an integer")
_step_tokens = _value(to_step_tokens, "an integer or auto")
_seconds = _value(float, "a number of seconds")
_size = _value(to_bytes, SIZE_FORM)
_wired_limit = _value(to_wired_limit, f"auto, off or {SIZE_FORM}")
_address = _value(Address.read, ADDRESS_FORM)
_flag = _value(_to_bool, "1 or 0")

_VARIABLES: Mapping[str, tuple[str, _Parser]] = {
    "model": ("MLXQ_MODEL", _text),
    "adapter_path": ("MLXQ_ADAPTER_PATH", _text),
    "served_model_name": ("MLXQ_SERVED_MODEL_NAME", _text),
    "queues": ("MLXQ_QUEUE", _words),
    "url": ("MLXQ_URL", _text),
    "burst": ("MLXQ_BURST", _flag),
    "max_num_seqs": ("MLXQ_MAX_NUM_SEQS", _integer),
    "max_num_batched_tokens": ("MLXQ_MAX_NUM_BATCHED_TOKENS", _step_tokens),
    "max_prefix_bytes": ("MLXQ_MAX_PREFIX_BYTES", _integer),
    "longest_first": ("MLXQ_LONGEST_FIRST", _flag),
    "default_max_tokens": ("MLXQ_DEFAULT_MAX_TOKENS", _integer),
    "generation_config": ("MLXQ_GENERATION_CONFIG", _text),
    "extra_eos_tokens": ("MLXQ_EXTRA_EOS_TOKEN", _words),
    "allow_no_eos": ("MLXQ_ALLOW_NO_EOS", _flag),
    "tool_call_parser": ("MLXQ_TOOL_CALL_PARSER", _text),
    "reasoning_parser": ("MLXQ_REASONING_PARSER", _text),
    "claim_ahead": ("MLXQ_CLAIM_AHEAD", _integer),
    "lease_s": ("MLXQ_LEASE_S", _seconds),
    "grace_s": ("MLXQ_GRACE_S", _seconds),
    "maintenance_s": ("MLXQ_MAINTENANCE_S", _seconds),
    "step_timeout_s": ("MLXQ_STEP_TIMEOUT_S", _seconds),
    "memory_limit_bytes": ("MLXQ_MEMORY_LIMIT", _size),
    "wired_limit": ("MLXQ_WIRED_LIMIT", _wired_limit),
    "max_jobs": ("MLXQ_MAX_JOBS", _integer),
    "max_generated_tokens": ("MLXQ_MAX_GENERATED_TOKENS", _integer),
    "parent_pid": ("MLXQ_PARENT_PID", _integer),
    "name": ("MLXQ_NAME", _text),
    "ready_fd": ("MLXQ_READY_FD", _integer),
    "reports_fd": ("MLXQ_REPORTS_FD", _integer),
    "metrics_address": ("MLXQ_METRICS_PORT", _address),
}
"""Field -> its variable and how that is read."""
