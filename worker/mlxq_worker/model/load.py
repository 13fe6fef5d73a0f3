"""Finds a model, reads what it says about itself, and loads its weights.

A model is a directory in Hugging Face layout, a Hub repository, or the demo that ships in the package. Everything
but the weights is read without importing mlx, so that `mlxq eos` starts at once. Never runs code that comes with a
model. Knows nothing of requests or batches.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxq.errors import ModelError
from mlxq_worker.blas import preload_openblas
from mlxq_worker.model.config_json.build import build, config_overrides, untagged, window_not_kept
from mlxq_worker.model.config_json.rope_check import check_scaling
from mlxq_worker.model.config_json.yarn import leave_range_unrounded
from mlxq_worker.model.eos import EosSet, resolve_eos
from mlxq_worker.model.generation import read_generation_config
from mlxq_worker.model.json_file import read_object
from mlxq_worker.model.load_tokenizer import load_tokenizer
from mlxq_worker.model.locate import Location, locate
from mlxq_worker.model.tokenizer import Tokenizer

UNSTATED_CONTEXT_LENGTH = 131_072
"""The limit for a model that states none, such as one with a recurrent state instead of positions."""

_CONTEXT_LENGTH_FIELDS = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "seq_length")
# transformers writes about 1e30 where a tokenizer states no length.
_LARGEST_STATED_LENGTH = 10**9

logger = logging.getLogger("rq.worker")


@dataclass(frozen=True, kw_only=True)
class DescribedModel:
    """A model without its weights.

    `name` is what responses report. `vocab_size` is how many ids the model takes and produces, `context_length` how
    many tokens prompt and answer may have together. `config` and `generation_config` are the files' content.
    """

    name: str
    path: Path
    tokenizer: Tokenizer
    config: Mapping[str, Any]
    generation_config: Mapping[str, Any]
    vocab_size: int
    context_length: int
    eos: EosSet


@dataclass(frozen=True, kw_only=True)
class LoadedModel(DescribedModel):
    """A model that can run; `model` is an `mlx.nn.Module` and belongs to the thread that loaded it."""

    model: Any


def load_model(model: str | None = None, *, adapter_path: str | Path | None = None) -> LoadedModel:
    """Load a model with its weights.

    Raises:
        ModelError, EosError: as `load_without_weights` and `read_weights` do.
    """
    loaded = load_without_weights(model, adapter_path=adapter_path)
    read_weights(loaded)
    return loaded


def load_without_weights(
    model: str | None = None,
    *,
    adapter_path: str | Path | None = None,
    extra_eos_tokens: Sequence[int | str] = (),
    allow_no_eos: bool = False,
) -> LoadedModel:
    """A model whose weights are still on the disk: `read_weights` reads them, or whatever uses them first.

    Args:
        model: a directory, a Hub repository id, or ``demo`` (also `None`); a local directory that is called
            demo is ``./demo``.
        adapter_path: a directory with a LoRA adapter for it, as mlx-lm writes them.

    Raises:
        ModelError: it can't be found, read or built.
        EosError: its end tokens are missing or impossible.
    """
    described = _describe(locate(model, with_weights=True), extra_eos_tokens, allow_no_eos)
    loaded = LoadedModel(**vars(described), model=_build(described))
    if adapter_path is not None:
        _lay_adapter_over(loaded, Path(adapter_path).expanduser())
    return loaded


def read_weights(loaded: LoadedModel) -> None:
    """Read the weights from the disk.

    Raises:
        ModelError: they can't be.
    """
    import mlx.core as mx

    try:
        mx.eval(loaded.model.parameters())
    except Exception as error:  # of MLX, and of whatever a damaged file does to it
        raise _cannot_load(loaded, error) from error


def load_tokenizer_only(
    model: str | None = None, *, extra_eos_tokens: Sequence[int | str] = (), allow_no_eos: bool = False
) -> DescribedModel:
    """Read everything but the weights, without importing mlx. Arguments and errors are `load_model`'s."""
    return _describe(locate(model, with_weights=False), extra_eos_tokens, allow_no_eos)


def vocab_size_of(config: Mapping[str, Any], tokenizer: Tokenizer) -> int:
    """How many ids the model has; the number of the tokenizer's tokens where config.json does not say.

    Where a config states it twice, architectures differ in which one they build: the smaller is safe with either.
    """
    stated = [size for part in _parts(config) if (size := part.get("vocab_size")) is not None]
    for size in stated:
        if type(size) is not int or size < 1:
            raise ModelError(f"config.json: vocab_size is {size!r}, not a positive whole number")
    return min(stated, default=len(tokenizer))


def context_length_of(config: Mapping[str, Any], tokenizer: Tokenizer) -> int:
    """How many tokens a sequence may have, by config.json, else by the tokenizer, else `UNSTATED_CONTEXT_LENGTH`."""
    stated = (part.get(field) for part in _parts(config) for field in _CONTEXT_LENGTH_FIELDS)
    for length in (*stated, tokenizer.model_max_length):
        if type(length) is int and 0 < length <= _LARGEST_STATED_LENGTH:
            return length
    return UNSTATED_CONTEXT_LENGTH


def _parts(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The text model's part of a multimodal config, and the config itself."""
    if isinstance(text_config := config.get("text_config"), Mapping):
        yield text_config
    yield config


def _describe(location: Location, extra_eos_tokens: Sequence[int | str], allow_no_eos: bool) -> DescribedModel:
    config = _read_config(location.path)
    generation_config = read_generation_config(location.path)
    tokenizer = load_tokenizer(location.path, config)
    vocab_size = vocab_size_of(config, tokenizer)
    eos = resolve_eos(
        tokenizer,
        config,
        generation_config,
        vocab_size=vocab_size,
        extra=extra_eos_tokens,
        allow_no_eos=allow_no_eos,
    )
    return DescribedModel(
        name=location.name,
        path=location.path,
        tokenizer=tokenizer,
        config=config,
        generation_config=generation_config,
        vocab_size=vocab_size,
        context_length=context_length_of(config, tokenizer),
        eos=eos,
    )


def _read_config(path: Path) -> Mapping[str, Any]:
    file = path / "config.json"
    if not file.exists():
        raise ModelError(f"{path} has no config.json: it is not a model in Hugging Face layout")
    config = read_object(file, object_hook=untagged)
    if not isinstance(config.get("model_type"), str):
        raise ModelError(f"{file} does not say which model_type this is")
    if config.get("model_file") is not None:
        raise ModelError(f"{path} brings its own model code ({config['model_file']}), which is never run")
    return config


def _build(described: DescribedModel) -> Any:
    """The model with weights that are read when they are first used."""
    preload_openblas()
    from mlx_lm.utils import load_model as load_lazily

    try:
        said = config_overrides(described.config)
        model, _config = load_lazily(described.path, lazy=True, model_config=said)
        config = {**described.config, **said}
        check_scaling(model, config, build)
        leave_range_unrounded(model, config)
    except ModelError:
        raise
    except Exception as error:  # a wrong config fails anywhere inside the model's own code
        raise _cannot_load(described, error) from error
    window = window_not_kept(described.config)
    if window is not None and window < described.context_length:
        logger.warning(
            "config.json states a sliding window of %d tokens, but mlx-lm attends to everything for this model: longer"
            " sequences get other answers than it was trained to give",
            window,
        )
    return model


def _lay_adapter_over(loaded: LoadedModel, folder: Path) -> None:
    """
    Raises:
        ModelError: it can't be read, or isn't one for this model.
    """
    from mlx_lm.utils import load_adapters

    for name in ("adapter_config.json", "adapters.safetensors"):
        if not (folder / name).is_file():
            raise ModelError(f"{folder} has no {name}: a LoRA adapter is a directory that mlx_lm.lora has written")
    read_object(folder / "adapter_config.json")
    try:
        load_adapters(loaded.model, str(folder))
    except Exception as error:  # of mlx-lm, of MLX, and of whatever a wrong file does to them
        raise ModelError(f"the adapter in {folder} doesn't go with {loaded.name}: {error}") from error
    loaded.model.eval()


def _cannot_load(described: DescribedModel, error: Exception) -> ModelError:
    kind = described.config["model_type"]
    return ModelError(f"mlx-lm can't load the {kind} model in {described.path}: {error}")
