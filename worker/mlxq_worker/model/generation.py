"""What a model's generation_config.json proposes for fields that a request leaves out, checked as the request's own.

Only the fields that vLLM takes (`LEFT_TO_MODELS`); `do_sample` and the rest are transformers' own affairs. Reads
values with the checks of the request's fields, so that a file can't ask for what a request couldn't. Never imports mlx.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from mlxq.contract import LEFT_TO_MODELS, Sampling
from mlxq.errors import ModelError, RequestError
from mlxq.requests.fields import FIELDS
from mlxq_worker.model.json_file import read_object

GenerationConfig = Literal["auto", "off"]
"""Whether the file's proposals are taken."""
FILE = "generation_config.json"
_THEIR_NAMES = {"max_tokens": "max_new_tokens"}
_OWN = Sampling()
DEFAULT_MAX_TOKENS = 2048
"""The limit of a request that sets none, where neither the worker nor its model has another."""


@dataclass(frozen=True, slots=True)
class OpenFields:
    """What a worker fills in where a request says nothing.

    `sampling` are the model's own values, by the names of a request's fields, and `None` where they aren't in force.
    `max_tokens` is the limit, whoever's it is: the worker's own comes first, then the model's, then mlxq's.
    """

    sampling: Mapping[str, float] | None
    max_tokens: int

    @classmethod
    def of(
        cls, generation_config: Mapping[str, Any], mode: GenerationConfig, default_max_tokens: int | None = None
    ) -> Self:
        """
        Args:
            generation_config: the file's content.
            default_max_tokens: the worker's own limit, if it is given one.

        Raises:
            ModelError: the model's values are wanted, and one of them couldn't be a request's.
        """
        if mode == "off":
            return cls(None, default_max_tokens or DEFAULT_MAX_TOKENS)
        sampling = sampling_defaults(generation_config)
        if default_max_tokens is not None:
            sampling.pop("max_tokens", None)
        return cls(sampling, default_max_tokens or int(sampling.get("max_tokens", DEFAULT_MAX_TOKENS)))

    def __str__(self) -> str:
        """For the log."""
        if self.sampling is None:
            return "sampling defaults of mlxq"
        shown = ", ".join(f"{name} {value:g}" for name, value in self.sampling.items())
        return f"sampling defaults of the model [{shown}]"


def sampling_defaults(generation_config: Mapping[str, Any]) -> dict[str, float]:
    """The values that differ from mlxq's own defaults, by the names of a request's fields.

    Args:
        generation_config: the file's content.

    Raises:
        ModelError: one of them couldn't be a request's; the message names it.
    """
    found: dict[str, float] = {}
    for name in LEFT_TO_MODELS:
        theirs = _THEIR_NAMES.get(name, name)
        if (stated := generation_config.get(theirs)) is not None and (value := _read(name, theirs, stated)) is not None:
            found[name] = value
    return found


def read_generation_config(folder: Path) -> Mapping[str, Any]:
    """The file in a model's folder; nothing without one.

    Raises:
        ModelError: it can't be read.
    """
    file = folder / FILE
    return read_object(file) if file.exists() else {}


def _read(name: str, theirs: str, stated: Any) -> float | None:
    """`None` for what mlxq does anyway."""
    try:
        value = FIELDS[name].read(stated, f"{FILE}: {theirs}")
        if name == "max_tokens" and value == 0:
            raise RequestError(f"{FILE}: {theirs} must be at least 1, not 0")
    except RequestError as error:
        raise ModelError(
            f"{error.message}; mend the file, or leave its sampling defaults aside with --generation-config off"
            " (MLXQ_GENERATION_CONFIG)"
        ) from error
    return None if value == getattr(_OWN, name) else value
