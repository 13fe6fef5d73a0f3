"""Says what config.json states in transformers 5's words in those that mlx-lm reads, or refuses the load.

transformers 5 writes everything about rotary positions into ``rope_parameters``, and layer types as a list. Most of
mlx-lm's architectures read neither, and would compute other positions without a word. Pure functions over dicts.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from mlxq.errors import ModelError

FULL, SLIDING = "full_attention", "sliding_attention"

_OTHER_WORDS = {
    "rope_theta": ("rope_theta", "rotary_emb_base", "rope_base"),
    "partial_rotary_factor": ("partial_rotary_factor", "rotary_pct"),
}
"""What architectures call the same."""


def in_mlx_lm_words(part: Mapping[str, Any], words: Collection[str], where: str = "config.json") -> dict[str, Any]:
    """What has to be laid over a part of a config so that mlx-lm reads all that it says.

    Args:
        part: config.json, or its ``text_config``.
        words: the keys that mlx-lm's architecture reads from it.
        where: what errors call the part.

    Raises:
        ModelError: it says something that this architecture has no word for.
    """
    return {**_rope(part, words, where), **_sliding_pattern(part, words, where)}


def _rope(part: Mapping[str, Any], words: Collection[str], where: str) -> dict[str, Any]:
    stated = part.get("rope_parameters")
    if not isinstance(stated, Mapping) or not stated:
        return {}
    if "rope_parameters" in words and not _is_by_layer(stated):
        return {}  # its own reading of them
    if _is_by_layer(stated):
        return {} if "rope_parameters" in words else _rope_by_layer(stated, part, words, where)
    return _one_rope(stated, words, f"{where}: rope_parameters")


def _is_by_layer(stated: Mapping[str, Any]) -> bool:
    return all(isinstance(value, Mapping) for value in stated.values())


def _rope_by_layer(
    stated: Mapping[str, Any], part: Mapping[str, Any], words: Collection[str], where: str
) -> dict[str, Any]:
    """Parameters of their own for layers that attend to everything, and for those with a window."""
    where = f"{where}: rope_parameters"
    kinds = set(part.get("layer_types") or stated)
    used = {kind: value for kind, value in stated.items() if kind in kinds} or dict(stated)
    values = list(used.values())
    if all(value == values[0] for value in values):
        return _one_rope(values[0], words, where)
    if set(used) - {FULL, SLIDING}:
        raise ModelError(f"{where} has parameters for {', '.join(used)}, which mlx-lm can't tell apart")
    full, sliding = used[FULL], used[SLIDING]
    said = _one_rope(full, words, f"{where}.{FULL}")
    if sliding.get("rope_type", "default") != "default":
        if "rope_local_base_freq" in words or full.get("rope_theta") != sliding.get("rope_theta"):
            raise ModelError(f"{where}.{SLIDING} is of the type {sliding['rope_type']}, which mlx-lm does not compute")
        return said
    if full.get("rope_theta") == sliding.get("rope_theta"):
        return said  # only the scaling is the full layers' alone, as such architectures have it
    if "rope_local_base_freq" not in words:
        raise ModelError(
            f"{where} has another rope_theta for {SLIDING} than for {FULL}, which mlx-lm does not read for this model"
        )
    return {**said, "rope_local_base_freq": sliding["rope_theta"]}


def _one_rope(stated: Mapping[str, Any], words: Collection[str], where: str) -> dict[str, Any]:
    said: dict[str, Any] = {}
    for name, others in _OTHER_WORDS.items():
        if stated.get(name) is None:
            continue
        word = next((other for other in others if other in words), None)
        if word is not None:
            said[word] = stated[name]
        elif not (name == "partial_rotary_factor" and stated[name] == 1):
            raise ModelError(f"{where}.{name} is {stated[name]}, which mlx-lm does not read for this model")
    kind = stated.get("rope_type", stated.get("type", "default"))
    if kind == "default":
        return said
    if "rope_scaling" not in words:
        raise ModelError(f"{where} is of the type {kind}, which mlx-lm does not read for this model")
    scaling = {key: value for key, value in stated.items() if key not in _OTHER_WORDS}
    return {**said, "rope_scaling": {**scaling, "type": kind, "rope_type": kind}}


def _sliding_pattern(part: Mapping[str, Any], words: Collection[str], where: str) -> dict[str, Any]:
    """How often a layer attends to everything, for architectures that know no list of layer types."""
    types = part.get("layer_types")
    if (
        not isinstance(types, Sequence)
        or "layer_types" in words
        or "sliding_window_pattern" not in words
        or part.get("sliding_window_pattern") is not None
        or SLIDING not in types
    ):
        return {}
    pattern = types.index(FULL) + 1 if FULL in types else len(types) + 1
    expected = [SLIDING if (index + 1) % pattern else FULL for index in range(len(types))]
    if list(types) != expected:
        raise ModelError(f"{where}: layer_types has no regular pattern, which mlx-lm does not read for this model")
    return {"sliding_window_pattern": pattern}
