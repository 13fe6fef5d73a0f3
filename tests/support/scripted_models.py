"""Complete tiny model folders that answer with a script, built here: a byte-level tokenizer with the added tokens of a
family, its chat template, and a GPT-2 whose position embedding is the script.

Logits are the tied embedding times the last hidden state; attention and MLP are zero and a token's own embedding is
tiny, so position p says what follows it: any sequence of tokens can be answered, whatever the prompt.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from tests.support.engine_runs import run
from tests.support.row_results import row_result
from tests.support.row_specs import name_of
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from mlxq.contract import Request, StopDetails
from mlxq.requests.openai import parse_object
from mlxq.results.result_lines import result_line
from mlxq_worker.backend import load_backend
from mlxq_worker.config import EngineConfig, WorkerConfig
from mlxq_worker.dialects.reasoning import reasoning_markers_of
from mlxq_worker.dialects.tool_format import tool_format_of
from mlxq_worker.engine.api import Constraint, Decode, RowResult, RowSpec
from mlxq_worker.messages import Preparer
from mlxq_worker.model.load import DescribedModel, load_tokenizer_only
from mlxq_worker.text.prepare import ModelPreparer

POSITIONS = 2048


def byte_level_tokenizer(special: Sequence[str], plain: Sequence[str]) -> Tokenizer:
    """`special` tokens are left out of decoded text, `plain` ones are not; everything else goes byte by byte."""
    vocabulary = {char: index for index, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in plain])
    return tokenizer


@dataclass(frozen=True, kw_only=True)
class Folder:
    """What a model folder says, weights aside. `eos` is the tokenizer's; `special` and `plain` are its further tokens.
    `config`, `generation` and `tokenizer_config` are laid over the files' usual content, `files` are further ones."""

    template: str | None
    special: tuple[str, ...] = ()
    plain: tuple[str, ...] = ()
    bos: str | None = None
    eos: str = "<end>"
    config: Mapping[str, Any] | None = None
    generation: Mapping[str, Any] | None = None
    tokenizer_config: Mapping[str, Any] | None = None
    files: Mapping[str, str] | None = None

    def tokenizer(self) -> Tokenizer:
        special = list(dict.fromkeys([text for text in (self.bos, self.eos) if text] + list(self.special)))
        return byte_level_tokenizer(special, [text for text in self.plain if text not in special])

    def write(self, path: Path) -> Path:
        """The folder without weights."""
        path.mkdir(parents=True, exist_ok=True)
        tokenizer = self.tokenizer()
        tokenizer.save(str(path / "tokenizer.json"))
        described = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": self.bos,
            "eos_token": self.eos,
            "model_max_length": POSITIONS,
            "clean_up_tokenization_spaces": False,
            **({} if self.template is None else {"chat_template": self.template}),
            **(self.tokenizer_config or {}),
        }
        _write_json(path / "tokenizer_config.json", described)
        width = _width(tokenizer)
        config = {
            "model_type": "gpt2",
            "n_ctx": POSITIONS,
            "n_embd": width,
            "n_head": 4,
            "n_layer": 1,
            "n_positions": POSITIONS,
            "layer_norm_epsilon": 1e-5,
            "vocab_size": width,
            "eos_token_id": tokenizer.token_to_id(self.eos),
            **(self.config or {}),
        }
        _write_json(path / "config.json", config)
        if self.generation is not None:
            _write_json(path / "generation_config.json", self.generation)
        for name, text in (self.files or {}).items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_text(text, encoding="utf-8")
        return path


def _width(tokenizer: Tokenizer) -> int:
    return -(-tokenizer.get_vocab_size() // 64) * 64


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")


def write_weights(path: Path, script_ids: Sequence[int], num_prompt_tokens: int, width: int) -> None:
    """Weights that answer a prompt of this length with the script; its last token goes on for ever."""
    positions = np.zeros((POSITIONS, width), np.float32)
    for place in range(num_prompt_tokens - 1, POSITIONS):
        positions[place, script_ids[min(place - num_prompt_tokens + 1, len(script_ids) - 1)]] = 1.0
    weights = {"model.wte.weight": mx.array(np.eye(width, dtype=np.float32) * 1e-3)}
    weights["model.wpe.weight"] = mx.array(positions)
    for name in ("h.0.ln_1", "h.0.ln_2", "ln_f"):
        weights |= {f"model.{name}.weight": mx.ones((width,)), f"model.{name}.bias": mx.zeros((width,))}
    shapes = {"attn.c_attn": (3 * width, width), "attn.c_proj": (width, width)}
    shapes |= {"mlp.c_fc": (4 * width, width), "mlp.c_proj": (width, 4 * width)}
    for name, shape in shapes.items():
        weights |= {f"model.h.0.{name}.weight": mx.zeros(shape), f"model.h.0.{name}.bias": mx.zeros(shape[:1])}
    mx.save_safetensors(str(path / "model.safetensors"), weights, {"format": "mlx"})


def request_of(body: Mapping[str, Any]) -> Request:
    """A body as the producer reads it."""
    given = {"temperature": 0, "max_tokens": 400, **body}
    return parse_object({"custom_id": "r", "body": given}, default_custom_id="r").request


def preparer_of(
    path: Path, *, tool_call_parser: str | None = None, reasoning_parser: str | None = None
) -> ModelPreparer:
    """What a worker makes of a folder, weights aside."""
    return preparer_for(load_tokenizer_only(str(path)), tool_call_parser, reasoning_parser)


def preparer_for(
    described: DescribedModel, tool_call_parser: str | None = None, reasoning_parser: str | None = None
) -> ModelPreparer:
    """The same, once it has been read."""
    return ModelPreparer(
        described.tokenizer,
        described.eos,
        vocab_size=described.vocab_size,
        context_length=described.context_length,
        default_max_tokens=400,
        model_name=described.name,
        tool_format=tool_format_of(described.tokenizer, tool_call_parser),
        markers=reasoning_markers_of(described.tokenizer, reasoning_parser),
    )


def follow(spec: RowSpec, script: Sequence[int], decode: Decode) -> RowResult:
    """What a row comes to without an engine, if it takes its script's next token each time, or where it may not, the
    first that it may."""
    ids: list[int] = []
    details = StopDetails(type="max_tokens")
    while len(ids) < spec.limit:
        wanted = script[min(len(ids), len(script) - 1)]
        ids.append(wanted if spec.constraint is None else _allowed(spec.constraint, wanted))
        if ids[-1] in spec.end_tokens:
            details = spec.ended_on(ids[-1], len(ids) - 1)
            break
        if spec.constraint is not None:
            spec.constraint.advance(ids[-1])
    text = decode(ids[:-1] if details.type == "eos_token" else ids)
    return row_result(row_id=spec.row_id, token_ids=tuple(ids), text=text, stop_details=details)


def _allowed(constraint: Constraint, wanted: int) -> int:
    bits = np.unpackbits(np.frombuffer(constraint.allowed_ids(), np.uint8), bitorder="little")
    return wanted if bits[wanted] else int(np.flatnonzero(bits)[0])


def followed(path: Path, folder: Folder, script: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """The response body of a worker for this folder, whose row follows the script, special tokens by name. Stop strings
    are the engine's affair, which `answer` has."""
    preparer = preparer_of(folder.write(path))
    request = request_of(body)
    specs = preparer.prepare(request, "row")
    ids = folder.tokenizer().encode(script, add_special_tokens=False).ids
    return _body(preparer, request, specs, tuple(follow(spec, ids, preparer.decode) for spec in specs))


def answer(path: Path, folder: Folder, script: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """The response body of a worker that serves this folder, whose model answers with the script, special tokens by
    name."""
    tokenizer = folder.tokenizer()
    folder.write(path)
    request = request_of(body)
    [spec, *_] = preparer_of(path).prepare(request, "row")
    ids = tokenizer.encode(script, add_special_tokens=False).ids
    write_weights(path, ids, len(spec.prompt_ids), _width(tokenizer))
    config = WorkerConfig(model=str(path), engine=EngineConfig(max_num_seqs=2, max_num_batched_tokens=256))
    backend = load_backend(config)
    specs = backend.preparer.prepare(request, "row")
    engine = backend.new_engine()
    try:
        done = run(engine, specs).results
    finally:
        engine.close()
    return _body(backend.preparer, request, specs, tuple(done[name_of(each.row_id)] for each in specs))


def _body(
    preparer: Preparer, request: Request, specs: tuple[RowSpec, ...], results: tuple[RowResult, ...]
) -> dict[str, Any]:
    result = preparer.finish(request, specs, results, request_id="q", created=0, queue_s=0.0)
    body: dict[str, Any] = result_line(result)["response"]["body"]
    return body
