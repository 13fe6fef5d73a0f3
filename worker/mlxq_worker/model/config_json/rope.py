"""Says what config.json states of rotary positions in the words that mlx-lm's architecture reads, or refuses the load.

transformers 4 writes ``rope_theta``, ``rope_scaling`` and the rotated part apart from each other, 5 all of it into
``rope_parameters``, for each type of layer if they differ. Pure functions over dicts.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from math import log
from typing import Any

from mlxq.errors import ModelError
from mlxq_worker.model.config_json.layers import FULL, SLIDING
from mlxq_worker.model.config_json.unread import FIXED

THETA = ("rope_theta", "rotary_emb_base", "rope_base")
PARTIAL = ("partial_rotary_factor", "rotary_pct", "rope_pct")
LOCAL_THETA = ("rope_local_base_freq", "swa_rope_theta")
"""What architectures call the same. The last is the theta of layers with a window."""

PLAIN_ROPE = ("default", "mrope")
"""Types of positions that don't stretch them. Sections of ``mrope`` differ for images only."""


def rope(part: Mapping[str, Any], words: Collection[str], architecture: str, where: str) -> dict[str, Any]:
    """What has to be laid over a part of a config so that mlx-lm reads what it says of positions.

    Raises:
        ModelError: it says something that this architecture has no word for.
    """
    given = part.get("rope_parameters")
    stated = given if isinstance(given, Mapping) else {}
    if not stated:
        return _scaling_of_four(part, words, where)
    if is_by_layer(stated):
        return {} if "rope_parameters" in words else _rope_by_layer(stated, part, words, architecture, where)
    if "rope_parameters" in words:  # its own reading of them, but some look for the theta alone there
        return {"rope_scaling": _scaling(stated)} if "rope_scaling" in words and is_scaled(stated) else {}
    return _one_rope(stated, part, words, architecture, f"{where}: rope_parameters")


def is_scaled(rope: Mapping[str, Any]) -> bool:
    """Whether these parameters stretch positions beyond those that a model was trained on."""
    return kind_of(rope) not in PLAIN_ROPE and (rope.get("factor") != 1 or "alpha" in rope) and not _never_felt(rope)


def _never_felt(rope: Mapping[str, Any]) -> bool:
    """Whether this scaling changes nothing for a sequence of at most ``max_position_embeddings`` tokens, and no row
    has more. Architectures of Hunyuan give another meaning to it, by an ``alpha``."""
    return kind_of(rope) == "dynamic" and "alpha" not in rope


def kind_of(rope: Mapping[str, Any]) -> str:
    """The type of positions, under either of its names."""
    return str(rope.get("rope_type") or rope.get("type") or "default")


def ropes_of(part: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """All parameters of positions that a part of a config states: under either name, and of each type of layer."""
    found = [part[key] for key in ("rope_scaling", "rope_parameters") if isinstance(part.get(key), Mapping)]
    flat = [list(each.values()) if is_by_layer(each) else [each] for each in found]
    return [rope for ropes in flat for rope in ropes if rope]


def is_by_layer(stated: Mapping[str, Any]) -> bool:
    """Whether these are parameters for each type of layer."""
    return bool(stated) and all(value is None or isinstance(value, Mapping) for value in stated.values())


def _scaling_of_four(part: Mapping[str, Any], words: Collection[str], where: str) -> dict[str, Any]:
    """transformers 4 keeps the scaling alone, and has had two words for its type."""
    scaling = part.get("rope_scaling")
    if not isinstance(scaling, Mapping) or not scaling:
        return {}
    if not is_scaled(scaling):
        return {"rope_scaling": None} if "rope_scaling" in words else {}
    if "rope_scaling" in words:
        return {"rope_scaling": _scaling(scaling)}
    if "rope_parameters" in words and "rope_theta" not in words:
        theta = {} if part.get("rope_theta") is None else {"rope_theta": part["rope_theta"]}
        return {"rope_parameters": {**theta, **_scaling(scaling)}}
    raise _not_read(f"{where}: rope_scaling", f"of the type {kind_of(scaling)}")


def _not_read(what: str, value: object) -> ModelError:
    return ModelError(f"{what} is {value}, which mlx-lm does not read for this model")


def _rope_by_layer(
    stated: Mapping[str, Any], part: Mapping[str, Any], words: Collection[str], architecture: str, where: str
) -> dict[str, Any]:
    """Parameters of their own for layers that attend to everything, and for those with a window."""
    where = f"{where}: rope_parameters"
    kinds = set(part.get("layer_types") or stated)
    used = {kind: value for kind, value in stated.items() if kind in kinds and value} or dict(stated)
    first = next(iter(used.values()))
    if all(value == first for value in used.values()) and (len(used) == 1 or not is_scaled(first)):
        return {**_one_rope(first, part, words, architecture, where), **_local_theta(first, words)}
    if set(used) - {FULL, SLIDING}:
        raise ModelError(f"{where} has parameters for {', '.join(used)}, which mlx-lm can't tell apart")
    full, sliding = used[FULL], used[SLIDING]
    if is_scaled(sliding):
        raise ModelError(f"{where}.{SLIDING} is of the type {kind_of(sliding)}, which mlx-lm does not compute")
    said = {**_one_rope(full, part, words, architecture, f"{where}.{FULL}"), **_local_theta(sliding, words)}
    for name, default in ((THETA[0], None), (PARTIAL[0], 1)):
        told_apart = name == THETA[0] and any(word in words for word in LOCAL_THETA)
        if full.get(name, default) != sliding.get(name, default) and not told_apart:
            raise ModelError(
                f"{where} has another {name} for {SLIDING} than for {FULL}, which mlx-lm does not read for this model"
            )
    return said  # the scaling is that of the full layers alone, as such architectures have it


def _local_theta(sliding: Mapping[str, Any], words: Collection[str]) -> dict[str, Any]:
    """The theta of layers with a window, for architectures that have a word for it."""
    return {word: sliding[THETA[0]] for word in LOCAL_THETA if word in words and THETA[0] in sliding}


def _one_rope(
    stated: Mapping[str, Any], part: Mapping[str, Any], words: Collection[str], architecture: str, where: str
) -> dict[str, Any]:
    said: dict[str, Any] = {}
    for names in (THETA, PARTIAL):
        name, value = names[0], stated.get(names[0])
        word = next((other for other in names if other in words), None)
        if value is None:
            continue
        if word is not None:
            said[word] = value
        elif name == "partial_rotary_factor" and "rotary_dim" in words and part.get("head_dim"):
            said["rotary_dim"] = int(part["head_dim"] * value)
        elif not _goes_without_saying(name, value, part, architecture):
            raise _not_read(f"{where}.{name}", value)
    if not is_scaled(stated):
        return said
    if "rope_scaling" not in words:
        raise _not_read(where, f"of the type {kind_of(stated)}")
    return {**said, "rope_scaling": _scaling(stated)}


def _goes_without_saying(name: str, value: Any, part: Mapping[str, Any], architecture: str) -> bool:
    if name == "partial_rotary_factor":
        return value == 1 or (architecture, name) in FIXED
    nested = part.get("attn_config")  # DBRX keeps it there, in either language
    return isinstance(nested, Mapping) and nested.get(name) == value


def _scaling(stated: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters as ``rope_scaling``, with both names of the type."""
    kind = kind_of(stated)
    scaling = {key: value for key, value in stated.items() if key not in ("rope_theta", "partial_rotary_factor")}
    if kind == "yarn" and stated.get("attention_factor") is not None and "mscale" not in stated:
        # mlx-lm has 0.1 * mscale * ln(factor) + 1 for it
        scaling["mscale"] = (stated["attention_factor"] - 1) / (0.1 * log(stated["factor"]))
    return {**scaling, "type": kind, "rope_type": kind}
