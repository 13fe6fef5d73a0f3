"""Reads the file of `mlxq worker --models`: one table for each model, and one for when they take turns.

A bad file is an error at the start that names the table and the key, and says what would be right. Starts nothing.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from mlxq.errors import ConfigError
from mlxq.requests import checks
from mlxq_worker.commands.worker_options import WORKER_OPTIONS, words_of
from mlxq_worker.config import SIZE_FORM, WorkerConfig, to_bytes, to_wired_limit
from mlxq_worker.supervision.model_policy import Policy

EXAMPLE = '[models.small]\nmodel = "mlx-community/Qwen3-4B-4bit"'
PER_MODEL: Mapping[str, type[Any]] = {
    "model": str,
    "adapter_path": str,
    "max_num_seqs": int,
    "max_num_batched_tokens": int,
    "max_prefix_bytes": int,
    "longest_first": bool,
    "default_max_tokens": int,
    "generation_config": str,
    "extra_eos_tokens": list,
    "allow_no_eos": bool,
    "tool_call_parser": str,
    "reasoning_parser": str,
    "memory_limit": str,
    "wired_limit": str,
}
"""What a model's table may have: the worker's options for one model, named like them, and the type of each."""
_FIELDS: Mapping[str, str] = {"memory_limit": "memory_limit_bytes"}
_SIZES: Mapping[str, Callable[[str], int | str]] = {"memory_limit": to_bytes, "wired_limit": to_wired_limit}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,99}")
_IN_WORDS = {str: "a string", int: "an integer", bool: "true or false", list: "a list of strings"}


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """One model: the name that requests call it by, and the fields of `WorkerConfig` that its table sets."""

    name: str
    given: Mapping[str, Any]

    def words(self) -> list[str]:
        """What its table sets as options of a worker's command line."""
        return [word for name, value in self.given.items() for word in words_of(WORKER_OPTIONS[name].flag, value)]


@dataclass(frozen=True, slots=True)
class ModelsFile:
    """All of it, in the order of the file."""

    entries: tuple[ModelEntry, ...]
    policy: Policy


def read_models_file(path: Path) -> ModelsFile:
    """The models and their policy. Paths of models and adapters that begin with ``./`` or ``../`` are taken from the
    folder that the file is in.

    Raises:
        ConfigError: it can't be read, or says something that no worker could do.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"--models: {path} can't be read as TOML: {error}") from error
    try:
        return _read(content, path.parent)
    except ConfigError as error:
        raise ConfigError(f"--models: {path}: {error}") from error


def check_folders(file: ModelsFile) -> None:
    """What a file says of folders that aren't there is better known at once than when the first request comes.

    Raises:
        ConfigError: one isn't.
    """
    for entry in file.entries:
        for key in ("model", "adapter_path"):
            path = Path(entry.given.get(key) or "")
            if path.is_absolute() and not path.is_dir():
                raise ConfigError(f"--models: models.{entry.name}.{key}: there is no directory {path}")


def _read(content: Mapping[str, Any], folder: Path) -> ModelsFile:
    for name in content:
        if name not in ("models", "policy"):
            raise ConfigError(f"[{name}] is no table of this file; it has [models.NAME], and maybe [policy]")
    models = content.get("models")
    if not isinstance(models, dict) or not models:
        raise ConfigError(f"there is no model in it; each is a table such as\n{EXAMPLE}")
    return ModelsFile(
        tuple(_entry(name, table, folder) for name, table in models.items()), _policy(content.get("policy", {}))
    )


def _policy(table: Any) -> Policy:
    if not isinstance(table, dict):
        raise ConfigError("policy is a table: [policy]")
    known = [item.name for item in fields(Policy)]
    for name, value in table.items():
        if name not in known:
            raise _unknown(name, "policy", known)
        if type(value) not in (int, float):
            raise ConfigError(f"policy.{name} must be a number of seconds, not {checks.show(value)}")
    return Policy(**{name: float(value) for name, value in table.items()})


def _entry(name: str, table: Any, folder: Path) -> ModelEntry:
    place = f"models.{name}"
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{place}: a name has 1 to 100 letters, digits, '.', '_', '-' or '/'; quote one with a dot")
    if not isinstance(table, dict):
        raise ConfigError(f"{place} is a table such as\n{EXAMPLE}")
    if any(isinstance(value, dict) for value in table.values()):
        raise ConfigError(f'{place} has tables in it; a name with a dot is quoted: [models."{name}.5"]')
    given: dict[str, Any] = {"served_model_name": name}
    for key, value in table.items():
        if key not in PER_MODEL:
            raise _unknown(key, place, PER_MODEL)
        given[_FIELDS.get(key, key)] = _value(f"{place}.{key}", key, value, folder)
    if "model" not in given:
        raise ConfigError(f"{place} lacks model: a directory, a Hub repository or demo")
    try:
        WorkerConfig.from_env({}, **given)
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from error
    return ModelEntry(name, given)


def _value(place: str, key: str, value: Any, folder: Path) -> Any:
    wanted = PER_MODEL[key]
    if key in _SIZES:
        return _size(place, key, value)
    if key == "max_num_batched_tokens" and value == "auto":
        return value
    if type(value) is not wanted or (wanted is list and not all(isinstance(item, str) for item in value)):
        raise ConfigError(f"{place} must be {_IN_WORDS[wanted]}, not {checks.show(value)}")
    if key in ("model", "adapter_path") and value.startswith(("./", "../")):
        return str((folder / value).absolute())  # or "./a" in this folder would be "a", which may be of the Hub
    return tuple(value) if wanted is list else value


def _size(place: str, key: str, value: Any) -> int | str:
    try:
        return _SIZES[key](str(value))
    except ValueError:
        words = "auto, off or " if key == "wired_limit" else ""
        raise ConfigError(f"{place} must be {words}{SIZE_FORM}, not {checks.show(value)}") from None


def _unknown(name: str, place: str, known: Mapping[str, Any] | list[str]) -> ConfigError:
    what = checks.unknown_field(name, list(known), f"{place}.").message
    return ConfigError(f"{what} (there are {', '.join(known)})")
