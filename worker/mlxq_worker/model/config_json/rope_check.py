"""Whether mlx-lm stretches positions as config.json says: some of its architectures read the key, and go by nothing in
it. What counts is what it builds. Imports mlx; runs no model and knows no weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mlxq.errors import ModelError
from mlxq_worker.model.config_json.rope import is_by_layer, is_scaled, kind_of, ropes_of

_KEPT = ("rope_theta", "partial_rotary_factor")


def check_scaling(model: Any, config: Mapping[str, Any], build: Callable[[dict[str, Any]], Any]) -> None:
    """Refuse a model whose positions are the same without the scaling that its config states.

    Args:
        model: as it was built from `config`, which is in mlx-lm's words.
        build: makes a model of a config, without weights.

    Raises:
        ModelError: the scaling makes no difference.
    """
    part = config["text_config"] if isinstance(config.get("text_config"), Mapping) else config
    kinds = sorted({kind_of(rope) for rope in ropes_of(part) if is_scaled(rope)})
    stretched = _signature(model)
    if not kinds or not stretched:
        return
    plain = _plain(part)
    try:
        other = build(plain if part is config else {**config, "text_config": plain})
    except (TypeError, ValueError, KeyError, AttributeError):  # one that can't be built without it does read it
        return
    if _signature(other) == stretched:
        raise ModelError(
            f"config.json stretches positions ({', '.join(kinds)}), which mlx-lm does not do for"
            f" {config.get('model_type')} models; if that was put there to reach longer contexts, take it out again"
        )


def _plain(part: Mapping[str, Any]) -> dict[str, Any]:
    plain = {**part, "rope_scaling": None}
    stated = part.get("rope_parameters")
    if isinstance(stated, Mapping):
        by_layer = is_by_layer(stated)
        plain["rope_parameters"] = {k: _unscaled(v) for k, v in stated.items()} if by_layer else _unscaled(stated)
    return plain


def _unscaled(rope: Any) -> Any:
    if not isinstance(rope, Mapping):
        return rope
    return {**{key: rope[key] for key in _KEPT if key in rope}, "rope_type": "default"}


def _signature(model: Any) -> list[tuple[str, str, str]]:
    """What each module for positions was built with."""
    return [
        (name, type(module).__name__, _settings(module))
        for name, module in model.named_modules()
        if "rope" in type(module).__name__.lower() or "rotary" in type(module).__name__.lower()
    ]


def _settings(module: Any) -> str:
    held = {key: value for key, value in {**vars(module), **module}.items() if not key.startswith("__")}
    return repr(sorted((key, str(value)) for key, value in held.items() if key not in ("_no_grad", "_training")))
