"""Random float32 Llamas of three sizes, written to disk as any other model would be: config, weights, tokenizer.

Weights are random, so the text is noise, and the work per token is that of a real model of the size: the smallest is
for trying a benchmark, and measures nothing. The tokenizer is the demo model's.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

VOCAB_SIZE = 4096
CONTEXT_LENGTH = 8192

SIZES: dict[str, dict[str, int]] = {
    "1m": {"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 2, "num_attention_heads": 2},
    "6m": {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 6, "num_attention_heads": 4},
    "40m": {"hidden_size": 640, "intermediate_size": 1728, "num_hidden_layers": 8, "num_attention_heads": 10},
}


def write_model(size: str, folder: Path, seed: int = 0) -> Path:
    """Build the model of this size under `folder` and return its directory."""
    import mlx.core as mx
    from mlx.utils import tree_flatten
    from mlx_lm.models import llama

    from mlxq_worker.demo import MODEL_PATH

    target = folder / f"random-llama-{size}"
    target.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = {
        "model_type": "llama",
        "vocab_size": VOCAB_SIZE,
        "max_position_embeddings": CONTEXT_LENGTH,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "eos_token_id": [0],
        **SIZES[size],
    }
    (target / "config.json").write_text(json.dumps(config))
    mx.random.seed(seed)
    model = llama.Model(llama.ModelArgs.from_dict(config))
    mx.save_safetensors(str(target / "model.safetensors"), dict(tree_flatten(model.parameters())))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(MODEL_PATH / name, target / name)
    return target
