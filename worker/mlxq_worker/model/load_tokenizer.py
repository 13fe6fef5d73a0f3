"""Loads the tokenizer in a model's folder: what tokenizer.json says, whatever class its configuration names.

transformers makes a tokenizer of the class that the configuration or the architecture's name suggests, and some of its
classes lay rules of their own over tokenizer.json: splitting of words, a normalizer, added tokens. The model was
trained on what the file says.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlxq.errors import ModelError
from mlxq_worker.model.json_file import read_object
from mlxq_worker.model.python_template import use_python_template
from mlxq_worker.model.tokenizer import Tokenizer
from mlxq_worker.startup import import_transformers

logger = logging.getLogger("rq.worker")

_SAMPLE = "The quick-brown Fox's 12345 jumps,  over\n\tthe lazy dog. École 北京 🌧 don't I'LL x=1;y+=2 "
"""A bit of everything that tokenizers split in ways of their own."""


def load_tokenizer(path: Path, config: Mapping[str, Any]) -> Tokenizer:
    """Load the tokenizer of a model with this config.json.

    Raises:
        ModelError: there is none that can be loaded.
    """
    # mlx-lm's loader gives the same tokenizer inside a wrapper, but imports mlx and replaces EOS ids.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # it would advise to install PyTorch
    if (path / "tokenizer.json").exists():
        tokenizer = _as_the_file_says(path, config)
    else:
        try:
            tokenizer = _of_its_class(path, config)
        except Exception as error:  # what transformers says then is about packages
            raise ModelError(f"{path} has no tokenizer.json, and no other tokenizer that can be loaded") from error
    use_python_template(tokenizer)
    _add_processor_template(tokenizer, path)
    loaded: Tokenizer = tokenizer
    return loaded


def _as_the_file_says(path: Path, config: Mapping[str, Any]) -> Any:
    """A tokenizer of the class that transformers chooses, unless that reads texts otherwise than tokenizer.json."""
    from tokenizers import Tokenizer as RawTokenizer

    file = path / "tokenizer.json"
    try:  # the library raises bare Exceptions on a damaged file
        expected = RawTokenizer.from_file(str(file)).encode(_SAMPLE, add_special_tokens=False).ids
    except Exception as error:
        raise ModelError(f"the tokenizer in {path} can't be loaded: {error}") from error
    tokenizer: Any = None
    try:
        tokenizer = _of_its_class(path, config)
        if tokenizer.encode(_SAMPLE, add_special_tokens=False) == expected:
            return tokenizer
        said = f"transformers' {type(tokenizer).__name__} reads texts otherwise than {file} says"
        failure = ""
    except Exception as error:  # noqa: BLE001 (of a class that wants another file, a package, or other tokens)
        tokenizer, failure = None, _first_line(error)
        said = f"transformers can't make its own tokenizer of {file} ({failure})"
    try:
        plain = _of_no_class(path)
        followed = plain.encode(_SAMPLE, add_special_tokens=False) == expected
    except Exception as error:
        raise ModelError(f"the tokenizer in {path} can't be loaded: {failure or _first_line(error)}") from error
    if followed or tokenizer is None:
        logger.warning("%s: it is read as the file says", said)
        return plain
    logger.warning("%s, and so does tokenizer_config.json", said)
    return tokenizer


def _of_its_class(path: Path, config: Mapping[str, Any]) -> Any:
    import_transformers()

    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path, config=_config_for_tokenizer(config), trust_remote_code=False)


def _of_no_class(path: Path) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(path)


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _add_processor_template(tokenizer: Any, path: Path) -> None:
    """The template of chat_template.json, where processors keep it: a tokenizer doesn't look there."""
    file = path / "chat_template.json"
    if tokenizer.chat_template is not None or not file.exists():
        return
    template = read_object(file).get("chat_template")
    if not isinstance(template, str):
        raise ModelError(f"{file} must hold a text under chat_template")
    tokenizer.chat_template = template


def _config_for_tokenizer(config: Mapping[str, Any]) -> Any:
    """What transformers chooses the tokenizer's class by. From the model's type alone: given the whole file, it
    refuses fields that it does not like, an EOS that is a text or a nested list among them."""
    from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

    model_type = config["model_type"]
    known = model_type in CONFIG_MAPPING  # mlx-lm has architectures that transformers has not
    chosen = AutoConfig.for_model(model_type) if known else PreTrainedConfig()
    chosen.tokenizer_class = config.get("tokenizer_class")
    return chosen
