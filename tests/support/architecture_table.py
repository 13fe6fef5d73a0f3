"""The document `docs/architectures.md`: what becomes of each architecture.

`python -m tests.support.architecture_table` writes it; a test holds that it is what trying the models out gives.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlx_lm.models.cache import ArraysCache, CacheList, KVCache, RotatingKVCache, make_prompt_cache
from tests.support.architectures import OWN
from tests.support.tried_models import architecture_of, packing_of

from mlxq_worker.engine.runners.packed_model import Way
from mlxq_worker.model.architecture import ALONE, PADDED

TABLE_PATH = Path(__file__).parents[2] / "docs" / "architectures.md"

ELSEWHERE: Mapping[str, str] = {
    "bitnet": "its kernels need a GPU by Apple",
    "muse_spark": "its kernels need a GPU by Apple",
    "olmo": "it needs the package ai2-olmo",
    "phi3small": "its products of blocks end the process on a CPU, in mlx itself",
    "prism_hadamard_qwen35": "its weights are packed by a list in its config, of widths from 128 on",
}
"""Why each of those that can't be tried out here can't."""

PACKED = tuple(sorted(name for name in OWN if name not in {*PADDED, *ALONE, *ELSEWHERE}))

_WAYS = {
    Way.SHARED: "together, and to shared prefixes together",
    Way.OWN: "by the model's own code, slab by slab",
    Way.ALONE: "by the model's own code, row by row",
}
_LAYERS: Mapping[type, str] = {KVCache: "full", RotatingKVCache: "sliding", ArraysCache: "state"}

_DOCUMENT = """# Which models are packed

mlxq tries a model out when it loads it: what it computes in mlxq's slots must be what it computes on mlx-lm's own
caches, up to mlx-lm's own rounding. If it is, the model is *packed*: prompts of any length go through it beside the
rows that decode, and what prompts begin with in common is computed once. If not, it is *padded*, on mlx-lm's caches,
and the log says why. This is what becomes of tiny models of the architectures of mlx-lm that can be built from a
few numbers. `python -m tests.support.architecture_table` writes this page, and a test holds it.

{num_packed} are packed, {num_padded} padded, {num_alone} run one row at a time.

| Architecture | Layers | Attends |
|---|---|---|
{packed}

The layers' kinds: *full* attention, *sliding* windows, a recurrent or convolutional *state*; *+* within one layer.

| Not packed | | Why |
|---|---|---|
{others}
"""


def table() -> str:
    """The document."""
    packed = [f"| `{name}` | {_layers_and_way(name)} |" for name in PACKED]
    others = [
        f"| `{name}` | {how} | {reason} |"
        for how, reasons in (("padded", PADDED), ("one row at a time", ALONE), ("not tried", ELSEWHERE))
        for name, reason in reasons.items()
    ]
    return _DOCUMENT.format(
        num_packed=len(PACKED),
        num_padded=len(PADDED),
        num_alone=len(ALONE),
        packed="\n".join(packed),
        others="\n".join(others),
    )


def way(name: str) -> Way | None:
    """How a tiny model of this architecture is packed, if it is."""
    return packing_of(architecture_of(name)).way


def _layers_and_way(name: str) -> str:
    """How many layers there are of each kind, and how a model of them attends."""
    found = way(name)
    assert found is not None, f"{name} isn't packed"
    kinds = Counter(map(_kind, make_prompt_cache(architecture_of(name))))
    return ", ".join(f"{number} {kind}" for kind, number in kinds.items()) + f" | {_WAYS[found]}"


def _kind(cache: Any) -> str:
    return " + ".join(map(_kind, cache.caches)) if isinstance(cache, CacheList) else _LAYERS[type(cache)]


if __name__ == "__main__":
    TABLE_PATH.write_text(table(), encoding="utf-8")
