"""Trains the demo model: a four-layer Llama of about a million parameters, in float32, on the answers' tokens only.

Each step takes rows of all tasks, sorted by length into a few batches so that little is computed on padding. Counting
starts with short answers and grows to full length: a long answer teaches the next number two hundred times, but
where to stop only once.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.models.llama import Model, ModelArgs

from mlxq_worker.demo.prompts import TokenizedExample, encode, load_tokenizer
from mlxq_worker.demo.tasks import MAX_COUNT_TOKENS, Example, generate, sample_count
from mlxq_worker.demo.tokenizer import (
    BOS,
    CONTEXT_LENGTH,
    END_OF_MESSAGE,
    END_OF_TEXT,
    END_OF_TURN,
    build_tokenizer,
    save_tokenizer,
    write_json,
)

ROWS_PER_STEP = 24
"""Of counting, and as many again of all other tasks together."""

BATCHES_PER_STEP = 3
PEAK_LEARNING_RATE = 3e-3
WARMUP_STEPS = 50
FIRST_MAX_COUNT_TOKENS = 24
LOG_EVERY = 50


@dataclass(frozen=True, slots=True)
class TrainingBatch:
    """Rows padded to one length. `positions` index the flattened (B * T) inputs where an answer token is
    predicted, and `targets` are those tokens."""

    inputs: mx.array  # (B, T)
    positions: mx.array  # (N,)
    targets: mx.array  # (N,)


def train(out: Path, steps: int, seed: int) -> None:
    """Build the tokenizer, train the model, and write all files of the model directory `out`."""
    out.mkdir(parents=True, exist_ok=True)
    save_tokenizer(build_tokenizer(), out)
    tokenizer = load_tokenizer(out)
    config = model_config(tokenizer)
    write_json(out / "config.json", config)
    write_json(out / "generation_config.json", generation_config(config))
    mx.random.seed(seed)
    model = Model(ModelArgs.from_dict(config))
    batches = (
        _batches([encode(tokenizer, example) for example in examples]) for examples in _training_rows(steps, seed)
    )
    _fit(model, batches, steps)
    mx.save_safetensors(str(out / "model.safetensors"), dict(tree_flatten(model.parameters())), {"format": "mlx"})


def model_config(tokenizer: Any) -> dict[str, Any]:
    """config.json. The EOS ids stand in Llama 3.1's order: end of text, end of message, end of turn."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(tokenizer),
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": CONTEXT_LENGTH,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": tokenizer.convert_tokens_to_ids(BOS),
        "eos_token_id": tokenizer.convert_tokens_to_ids([END_OF_TEXT, END_OF_MESSAGE, END_OF_TURN]),
        "torch_dtype": "float32",
    }


def generation_config(config: dict[str, Any]) -> dict[str, Any]:
    """generation_config.json: the same ids as config.json, and greedy decoding."""
    return {key: config[key] for key in ("bos_token_id", "eos_token_id")} | {"do_sample": False}


def _training_rows(steps: int, seed: int) -> Iterator[list[Example]]:
    """The examples of each step."""
    count_rng = random.Random(seed)
    others = generate(seed, "train", ("chat", "tool", "tool", "plain"))
    for step in range(steps):
        max_tokens = _max_count_tokens(step, steps)
        counts = [sample_count(count_rng, "train", max_tokens) for _ in range(ROWS_PER_STEP)]
        yield counts + [next(others) for _ in range(ROWS_PER_STEP)]


def _max_count_tokens(step: int, steps: int) -> int:
    """The longest counting answer at a step: full length from 40% of the training on."""
    progress = min(1.0, step / (0.4 * steps))
    return round(FIRST_MAX_COUNT_TOKENS + progress * (MAX_COUNT_TOKENS - FIRST_MAX_COUNT_TOKENS))


def _batches(rows: list[TokenizedExample]) -> list[TrainingBatch]:
    """The rows of one step in a few batches of similar length."""
    by_length = sorted(rows, key=lambda row: len(row.prompt_ids) + len(row.answer_ids))
    size = -(-len(rows) // BATCHES_PER_STEP)
    return [_pad(by_length[start : start + size]) for start in range(0, len(rows), size)]


def _pad(rows: list[TokenizedExample]) -> TrainingBatch:
    """Rows as one batch. Padding is on the right, where causal attention never sees it."""
    width = max(len(row.prompt_ids) + len(row.answer_ids) for row in rows) - 1
    inputs = np.zeros((len(rows), width), dtype=np.int32)
    positions: list[int] = []
    targets: list[int] = []
    for index, row in enumerate(rows):
        ids = (row.prompt_ids + row.answer_ids)[:-1]
        inputs[index, : len(ids)] = ids
        first = index * width + len(row.prompt_ids) - 1  # the last prompt token predicts the first answer token
        positions.extend(range(first, first + len(row.answer_ids)))
        targets.extend(row.answer_ids)
    return TrainingBatch(mx.array(inputs), mx.array(positions), mx.array(targets))


def _fit(model: Any, steps_of_batches: Iterator[list[TrainingBatch]], steps: int) -> None:
    """Run the optimizer over all steps."""
    optimizer = optim.AdamW(learning_rate=_schedule(steps), betas=[0.9, 0.98], weight_decay=0.01)
    loss_and_grad = nn.value_and_grad(model, partial(_loss, model))
    began = time.monotonic()
    for step, batches in enumerate(steps_of_batches, start=1):
        (loss, correct), grads = loss_and_grad(batches)
        grads, _ = optim.clip_grad_norm(grads, 1.0)
        optimizer.update(model, grads)
        mx.eval(model.parameters(), optimizer.state, loss, correct)
        if step % LOG_EVERY == 0:
            elapsed_s = time.monotonic() - began
            print(
                f"step {step}/{steps} loss {loss.item():.4f} tokens {correct.item():.4%} {elapsed_s:.0f} s", flush=True
            )


def _schedule(steps: int) -> Any:
    warmup = optim.linear_schedule(0.0, PEAK_LEARNING_RATE, WARMUP_STEPS)
    decay = optim.cosine_decay(PEAK_LEARNING_RATE, steps - WARMUP_STEPS, PEAK_LEARNING_RATE / 50)
    return optim.join_schedules([warmup, decay], [WARMUP_STEPS])


def _loss(model: Any, batches: list[TrainingBatch]) -> tuple[mx.array, mx.array]:
    """Mean cross-entropy over the answer tokens of all batches, and the share that is predicted right."""
    logits = mx.concatenate([_answer_logits(model, batch) for batch in batches])  # (N, vocab)
    targets = mx.concatenate([batch.targets for batch in batches])  # (N,)
    correct = mx.mean(mx.argmax(logits, axis=-1) == targets)
    return nn.losses.cross_entropy(logits, targets, reduction="mean"), correct


def _answer_logits(model: Any, batch: TrainingBatch) -> mx.array:
    """Logits where answers are predicted: prompts are most of the tokens, and their logits teach nothing."""
    hidden = model.model(batch.inputs)  # (B, T, hidden)
    answers = hidden.reshape(-1, hidden.shape[-1])[batch.positions]  # (N, hidden)
    logits: mx.array = model.model.embed_tokens.as_linear(answers)
    return logits
