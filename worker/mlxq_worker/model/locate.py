"""Where a model is: a directory in Hugging Face layout, a Hub repository, or the demo that ships in the package.

Looks into none of the files.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mlxq.errors import ModelError
from mlxq_worker.model.safetensors import WEIGHT_FILES

DEMO = "demo"
DEMO_NAME = "mlxq-demo"

logger = logging.getLogger("rq.worker")

_REPOSITORY_ID = re.compile(r"(?!\.)[\w.-]+(/[\w.-]+)?")
_DESCRIPTION_FILES = ("*.json", "*.jsonl", "*.txt", "*.jinja", "tokenizer.model", "*.tiktoken")
_WEIGHT_FILES = (WEIGHT_FILES,)


@dataclass(frozen=True, slots=True)
class Location:
    """A model's folder, and how answers call the model."""

    name: str
    path: Path


def name_of(model: str | None) -> str:
    """How answers will call the model that is asked for like this. Doesn't find out whether there is one."""
    if model is None or model == DEMO:
        return DEMO_NAME
    path = Path(model).expanduser()
    return path.resolve().name if path.is_dir() else model


def folder_of(model: str | None) -> Path | None:
    """Where a model's files lie, if they are on this machine; fetches nothing and checks nothing."""
    if model is None or model == DEMO or Path(model).expanduser().is_dir():
        return locate(model, with_weights=False).path
    if not _REPOSITORY_ID.fullmatch(model):
        return None
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(model, local_files_only=True))
    except Exception as error:  # noqa: BLE001  of many kinds, all of which say that it isn't here
        logger.debug("%s is not in the Hub's cache: %s", model, error)
        return None


def locate(model: str | None, *, with_weights: bool) -> Location:
    """Where a model's files lie, which are fetched from the Hub if they aren't here.

    Raises:
        ModelError: there is no such model, or it can't be fetched.
    """
    if model is None or model == DEMO:
        from mlxq_worker.demo import MODEL_PATH

        return Location(name_of(model), MODEL_PATH)
    path = Path(model).expanduser()
    if path.is_dir():
        return Location(name_of(model), path)
    if path.exists():
        raise ModelError(f"{model} is a file; a model is a directory or a Hub repository such as org/name")
    if not _REPOSITORY_ID.fullmatch(model):
        raise ModelError(f"there is no directory {model}")
    return Location(name_of(model), _download(model, _DESCRIPTION_FILES + (_WEIGHT_FILES if with_weights else ())))


def _download(repository: str, patterns: Sequence[str]) -> Path:
    """The repository's files in the Hub's local cache, fetched if they are not there."""
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(repository, allow_patterns=list(patterns)))
    except Exception as error:
        raise ModelError(
            f"{repository} is neither a directory here nor a Hub repository that can be downloaded: {error}"
        ) from error
