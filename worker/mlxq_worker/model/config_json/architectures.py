"""Which keys of a config.json mlx-lm's architecture reads: the fields of its dataclasses. Imports mlx.

An architecture that holds a language model inside reads the keys of ``text_config`` with a dataclass of its own, or
with that of a module it imports. What a key means is no concern here.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import MISSING, dataclass, fields, is_dataclass
from types import ModuleType
from typing import Any

_PACKAGE = "mlx_lm.models."


@dataclass(frozen=True, slots=True)
class Words:
    """The keys that are read at the top of a config.json and in its ``text_config``, and those that must be there.

    `architecture` and `text_architecture` are mlx-lm's names. All is empty if mlx-lm doesn't have the architecture.
    """

    architecture: str = ""
    top: frozenset[str] = frozenset()
    required: frozenset[str] = frozenset()
    text_architecture: str = ""
    text: frozenset[str] = frozenset()
    text_required: frozenset[str] = frozenset()


def words_of(config: Mapping[str, Any]) -> Words:
    """What mlx-lm reads of this config."""
    module = _module(config.get("model_type"))
    outer = getattr(module, "ModelArgs", None)
    if module is None or not is_dataclass(outer):
        return Words()
    text = config.get("text_config")
    nested = "text_config" in {field.name for field in fields(outer)}
    inner = _text_class(module, text.get("model_type") if isinstance(text, Mapping) else None) if nested else None
    if inner is not None and not isinstance(text, Mapping):
        outer, inner = inner, None  # such an architecture takes the keys at the top, too
    return Words(
        architecture=_name(outer),
        top=_words(outer),
        required=_required(outer),
        text_architecture="" if inner is None else _name(inner),
        text=frozenset() if inner is None else _words(inner),
        text_required=frozenset() if inner is None else _required(inner),
    )


def _module(model_type: object) -> ModuleType | None:
    from mlx_lm.utils import MODEL_REMAPPING

    name = MODEL_REMAPPING.get(model_type, model_type) if isinstance(model_type, str) else None
    if name is None:
        return None
    try:
        with redirect_stdout(sys.stderr):
            return importlib.import_module(_PACKAGE + name)
    except (ImportError, SystemExit):  # one of them ends the process where a package of its authors is missing
        return None


def _text_class(module: ModuleType, text_type: object) -> Any:
    """The dataclass that reads ``text_config``: the module's own, or that of an architecture which it imports."""
    own = _args_classes(module)
    if len(own) == 1:
        return own[0]
    imported = {each.__name__: each for each in _imported(module)}
    chosen = _module(text_type)
    if chosen is not None and chosen.__name__ in imported:
        return chosen.ModelArgs
    for each in imported.values():
        inner = _text_class(each, text_type) if "text_config" in _words(each.ModelArgs) else each.ModelArgs
        if inner is not None:
            return inner
    return None


def _args_classes(module: ModuleType) -> list[Any]:
    """The dataclasses for configs that a module names, beside that for the whole."""
    from mlx_lm.models.base import BaseModelArgs

    named = [each for name, each in vars(module).items() if isinstance(each, type) and name != "ModelArgs"]
    return [each for each in named if issubclass(each, BaseModelArgs) and each is not BaseModelArgs]


def _imported(module: ModuleType) -> Iterator[ModuleType]:
    """The architectures that a module imports, or whose model it does."""
    for each in vars(module).values():
        name = each.__name__ if isinstance(each, ModuleType) else getattr(each, "__module__", "")
        if name.startswith(_PACKAGE) and name != module.__name__:
            found = importlib.import_module(name)
            if is_dataclass(getattr(found, "ModelArgs", None)):
                yield found


def _words(args_class: Any) -> frozenset[str]:
    return frozenset(field.name for field in fields(args_class))


def _required(args_class: Any) -> frozenset[str]:
    return frozenset(
        field.name for field in fields(args_class) if field.default is MISSING and field.default_factory is MISSING
    )


def _name(args_class: Any) -> str:
    return str(args_class.__module__).removeprefix(_PACKAGE)
