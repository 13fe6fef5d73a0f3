"""Says what config.json states of single layers in the words that mlx-lm's architecture reads, or refuses the load.

transformers 5 writes lists: which layers attend through a window, which have experts, which have sizes of their own.
Most of mlx-lm's architectures know a number for the same. Pure functions over dicts.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from mlxq.errors import ModelError

FULL, SLIDING = "full_attention", "sliding_attention"

LAYER_NAMES: Mapping[str, Mapping[str, str]] = {
    "granitemoehybrid": {"linear_attention": "mamba", "full_attention": "attention"}
}
"""What an architecture of mlx-lm calls types of layers that have common names in transformers 5."""


def in_layers(part: Mapping[str, Any], words: Collection[str], architecture: str, where: str) -> dict[str, Any]:
    """What has to be laid over a part of a config so that mlx-lm reads what it says of single layers.

    Raises:
        ModelError: it says something that this architecture has no word for.
    """
    said = _names(part, architecture)
    said |= _sliding_pattern(part, words, where)
    said |= _layers_with_experts(part, words, where)
    return said | _sizes_of_single_layers(part, words, where)


def _names(part: Mapping[str, Any], architecture: str) -> dict[str, Any]:
    types = part.get("layer_types")
    names = LAYER_NAMES.get(architecture)
    if names is None or not isinstance(types, Sequence):
        return {}
    return {"layer_types": [names.get(kind, kind) for kind in types]}


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


def _sizes_of_single_layers(part: Mapping[str, Any], words: Collection[str], where: str) -> dict[str, Any]:
    """What transformers 5 says of single layers, where those that attend to everything have heads of another size."""
    own = part.get("per_layer_config")
    if not isinstance(own, Mapping) or not own or "per_layer_config" in words:
        return {}
    types = part.get("layer_types") or ()
    full = {str(index) for index, kind in enumerate(types) if kind == FULL}
    said: dict[str, Any] = {}
    for key in sorted({key for layer in own.values() for key in layer}):
        values = {index: layer[key] for index, layer in own.items() if key in layer}
        word = f"global_{key}"
        if word not in words or set(values) != full or len(set(map(str, values.values()))) != 1:
            raise ModelError(
                f"{where}: per_layer_config has a {key} of its own for some layers, which mlx-lm does not read"
            )
        said[word] = next(iter(values.values()))
    return said


def _layers_with_experts(part: Mapping[str, Any], words: Collection[str], where: str) -> dict[str, Any]:
    """Which layers have experts, where a file says so by ``mlp_layer_types`` alone."""
    types = part.get("mlp_layer_types")
    known = [word for word in _EXPERT_WORDS if word in words]
    if not isinstance(types, Sequence) or "mlp_layer_types" in words or not known:
        return {}
    if any(part.get(word) is not None for word in _EXPERT_WORDS):
        return {}
    sparse = [kind == "sparse" for kind in types]
    dense_first = sparse.index(True) if True in sparse else len(sparse)
    if known[0] in _DENSE_FIRST and not all(sparse[dense_first:]):
        raise ModelError(f"{where}: mlp_layer_types has dense layers behind sparse ones, which mlx-lm does not read")
    values: dict[str, Any] = {
        "first_k_dense_replace": dense_first,
        "num_dense_layers": dense_first,
        "is_moe_layer": sparse,
        "moe_layer_freq": [int(each) for each in sparse],
        "moe_layers_enum": ",".join(str(index) for index, each in enumerate(sparse) if each),
        "mlp_only_layers": [index for index, each in enumerate(sparse) if not each],
    }
    return {known[0]: values[known[0]]}


_DENSE_FIRST = ("first_k_dense_replace", "num_dense_layers")
_EXPERT_WORDS = (*_DENSE_FIRST, "is_moe_layer", "moe_layers_enum", "moe_layer_freq", "mlp_only_layers")
