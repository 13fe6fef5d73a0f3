"""Tiny model folders of families of models, as data (`tests/dialects/families`), and the answers of each.

A file says what a family's folders look like and how its models write a few calls; `Family.asked` makes of these the
answers that every family has to get right. For an engine, a folder's scripts lie one behind the other in its position
embedding, and each chat is so long that its answer begins where its own script does: all are rows of one batch.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import numpy as np
from tests.support.engine_runs import run
from tests.support.row_specs import name_of
from tests.support.scripted_models import Folder, follow, request_of

from mlxq.contract import Request
from mlxq.errors import RequestError
from mlxq.results.result_lines import result_line
from mlxq_worker.backend import load_backend
from mlxq_worker.config import EngineConfig, WorkerConfig
from mlxq_worker.engine.api import RowResult, RowSpec
from mlxq_worker.messages import Preparer

Choice = dict[str, Any]

DATA = Path(__file__).parents[1] / "dialects" / "families"
_WIDTH = 64
_FIRST_ANSWER = 1024
"""Where the first script lies: no chat is longer, unless it is made so."""
_PAD = "~"
"""A character that is a token of its own."""

PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "share": {"type": "number"},
        "sunny": {"type": "boolean"},
        "unit": {"enum": ["C", "F"]},
        "tags": {"type": "array"},
        "where": {"type": "object"},
        "note": {"type": ["string", "null"]},
    },
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": PARAMETERS}}
STRICT = {"type": "function", "function": {"name": "get_weather", "parameters": PARAMETERS, "strict": True}}
NOW = {"type": "function", "function": {"name": "now"}}
PARIS = 'get_weather {"city": "Paris"}'
ROME = 'get_weather {"city": "Rome"}'
CALLS = {
    "one": (PARIS,),
    "two": (PARIS, ROME),
    "bare": ("now {}",),
    "unicode": ('get_weather {"city": "São Paulo 北京 🌧"}',),
    "typed": (
        "get_weather "
        + json.dumps(
            {"city": "42", "days": 3, "share": 0.5, "sunny": True, "tags": ["a", 1]}
            | {"where": {"x": {"y": None}}, "note": None}
        ),
    ),
}
"""The calls that a file says how to write, under these names."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A request, the script that answers it, special tokens by name, and what is right. An answer that `is_cut` meets
    its limit, of as many tokens as the script has."""

    name: str
    script: str
    body: Mapping[str, Any] = field(default_factory=dict)
    calls: tuple[str, ...] = ()
    content: str = ""
    reasoning: str | None = None
    is_cut: bool = False

    @property
    def is_text_alone(self) -> bool:
        """Whether it has no call, and nothing that a limit cut off, of which special tokens are shown."""
        return not (self.calls or self.is_cut)


@dataclass(frozen=True, kw_only=True, eq=False)
class Family:
    """What a file says. `writes` are its calls as the models write them, by the names of `CALLS`; those of a family
    that doesn't keep text behind them stand at the end."""

    name: str
    dialect: str
    writes: Mapping[str, str]
    folders: Mapping[str, Folder]
    thought: tuple[str, str] | None = None
    keeps_text_behind: bool = True
    is_forced: bool = True
    is_channelled: bool = False
    more: tuple[Asked, ...] = ()

    def asked(self, name: str) -> list[Asked]:
        """The answers of a folder. Calls are demanded of one folder of each family, since each such folder has a
        process of its own that tries grammars out: of the last, where markers are texts if they ever are."""
        demanded = self._demanded() if name == list(self.folders)[-1] else ()
        return [*self._read(), *self._thoughts(), *self._cut_off(), *demanded, *self.more]

    def _read(self) -> Iterator[Asked]:
        one = self.writes["one"]
        for name, calls in CALLS.items():
            yield Asked(name=name, script=self.writes[name], calls=calls)
        if not self.is_channelled:
            yield Asked(name="text before", script=f"I look.\n{one}", calls=(PARIS,), content="I look.")
        if self.keeps_text_behind and not self.is_channelled:
            yield Asked(name="text behind", script=f"{one}\nI wait.", calls=(PARIS,), content="I wait.")
        unknown = one.replace("get_weather", "rm_rf")
        yield Asked(name="unknown tool", script=unknown, content=unknown)
        yield Asked(name="no call", script="It is sunny.", content="It is sunny.")

    def _thoughts(self) -> Iterator[Asked]:
        if self.thought is None:
            return
        start, end = self.thought
        one = self.writes["one"]
        yield Asked(name="thought", script=f"{start}Hm.{end}\n\n{one}", calls=(PARIS,), reasoning="Hm.")
        yield Asked(name="unclosed thought", script=f"{start}Hm.\n{one}", calls=(PARIS,), reasoning="Hm.")

    def _cut_off(self) -> Iterator[Asked]:
        cut = self.writes["one"].partition("aris")[0]
        yield Asked(name="cut off by the limit", script=cut, content=cut, is_cut=True)
        yield Asked(name="cut off by the model", script=cut, content=cut)

    def _demanded(self) -> Iterator[Asked]:
        if not self.is_forced:
            return
        named = {"type": "function", "function": {"name": "get_weather"}}
        yield Asked(name="required", script=self.writes["one"], body={"tool_choice": "required"}, calls=CALLS["one"])
        yield Asked(name="named", script=self.writes["two"], body={"tool_choice": named}, calls=CALLS["one"])
        if not self.is_channelled:
            strict = {"tools": [STRICT, NOW]}
            yield Asked(name="strict", script=self.writes["one"], body=strict, calls=CALLS["one"])
            yield Asked(name="strict, no call", script="It is sunny.", body=strict, content="It is sunny.")
        if not self.is_channelled and self.keeps_text_behind:
            script = f"I look.\n{self.writes['two']}\nI wait."
            yield Asked(
                name="strict amid text", script=script, body=strict, calls=CALLS["two"], content="I look.\nI wait."
            )


@cache
def families() -> tuple[Family, ...]:
    return tuple(_family(path.stem, tomllib.loads(path.read_text("utf-8"))) for path in sorted(DATA.glob("*.toml")))


def _family(name: str, said: dict[str, Any]) -> Family:
    folders, more = said.pop("folder"), said.pop("answer", [])
    thought = said.pop("thought", None)
    return Family(
        name=name,
        writes={key: said.pop(key) for key in CALLS},
        folders={key: _folder(about) for key, about in folders.items()},
        more=tuple(Asked(**{**each, "calls": tuple(each.get("calls", ()))}) for each in more),
        thought=tuple(thought) if thought else None,
        **said,
    )


def _folder(about: Mapping[str, Any]) -> Folder:
    return Folder(**{key: tuple(value) if isinstance(value, list) else value for key, value in about.items()})


def answers(preparer: Preparer, folder: Folder, asked: Sequence[Asked]) -> dict[str, Choice | RequestError]:
    """The choice of each answer by its name, or why it was refused, from what a worker makes of the folder: its own
    tokenizer, template, grammars and answers. Each row follows its script, without an engine."""
    said: dict[str, Choice | RequestError] = {}
    for each in asked:
        script = _ids(folder, each)
        request = _request(each, len(script))
        try:
            [spec] = preparer.prepare(request, each.name)
        except RequestError as error:
            said[each.name] = error
            continue
        said[each.name] = _choice(preparer, request, (spec,), (follow(spec, script, preparer.decode),))
    return said


def engine_answers(path: Path, folder: Folder, asked: Sequence[Asked]) -> dict[str, Choice]:
    """The same from a model and an engine, with weights that say the scripts."""
    scripts = [_ids(folder, each) for each in asked]
    starts = [_FIRST_ANSWER + sum(map(len, scripts[:index])) for index in range(len(scripts))]
    _write(path, folder, scripts, -(-(starts[-1] + len(scripts[-1]) + 300) // 256) * 256)
    config = WorkerConfig(model=str(path), engine=EngineConfig(max_num_seqs=len(asked), max_num_batched_tokens=1024))
    backend = load_backend(config)
    chats = {
        each.name: _padded(backend.preparer, each, start, len(script))
        for each, start, script in zip(asked, starts, scripts, strict=True)
    }
    engine = backend.new_engine()
    try:
        done = run(engine, [spec for _, specs in chats.values() for spec in specs]).results
    finally:
        engine.close()
        backend.close()
    return {
        name: _choice(backend.preparer, request, specs, tuple(done[name_of(spec.row_id)] for spec in specs))
        for name, (request, specs) in chats.items()
    }


def _ids(folder: Folder, asked: Asked) -> list[int]:
    script = asked.script if asked.is_cut else asked.script + folder.eos
    return list(folder.tokenizer().encode(script, add_special_tokens=False).ids)


def _request(asked: Asked, length: int, padding: int = 0) -> Request:
    messages = [{"role": "user", "content": "Is it sunny in Paris?" + _PAD * padding}]
    limit = length if asked.is_cut else length + 200
    return request_of({"messages": messages, "tools": [WEATHER, NOW], "max_tokens": limit, **asked.body})


def _padded(preparer: Preparer, asked: Asked, start: int, length: int) -> tuple[Request, tuple[RowSpec, ...]]:
    """The request whose prompt ends where the answer's script begins."""
    [bare] = preparer.prepare(_request(asked, length), asked.name)
    request = _request(asked, length, start - len(bare.prompt_ids))
    specs = preparer.prepare(request, asked.name)
    assert [len(spec.prompt_ids) for spec in specs] == [start]
    return request, specs


def _choice(preparer: Preparer, request: Request, specs: tuple[RowSpec, ...], results: tuple[RowResult, ...]) -> Choice:
    result = preparer.finish(request, specs, results, request_id="q", created=0, queue_s=0.0)
    [choice] = result_line(result)["response"]["body"]["choices"]
    return cast(Choice, choice)


def _write(path: Path, folder: Folder, scripts: Sequence[Sequence[int]], num_positions: int) -> None:
    sizes = {"n_ctx": num_positions, "n_positions": num_positions, "n_embd": _WIDTH}
    vocab_size = folder.tokenizer().get_vocab_size()
    Folder(**{**vars(folder), "config": {**sizes, "vocab_size": vocab_size, **(folder.config or {})}}).write(path)
    # Directions so far apart that the nearest is never another's.
    tokens = np.random.default_rng(0).normal(size=(vocab_size, _WIDTH)).astype(np.float32)
    tokens -= tokens.mean(axis=1, keepdims=True)
    tokens /= np.linalg.norm(tokens, axis=1, keepdims=True)
    positions = np.zeros((num_positions, _WIDTH), np.float32)
    place = _FIRST_ANSWER - 1
    for script in scripts:
        positions[place : place + len(script)] = tokens[list(script)]
        place += len(script)
    positions[place:] = tokens[scripts[-1][-1]]
    weights = {"model.wte.weight": mx.array(tokens * 1e-3), "model.wpe.weight": mx.array(positions)}
    for name in ("h.0.ln_1", "h.0.ln_2", "ln_f"):
        weights |= {f"model.{name}.weight": mx.ones((_WIDTH,)), f"model.{name}.bias": mx.zeros((_WIDTH,))}
    shapes = {"attn.c_attn": (3, 1), "attn.c_proj": (1, 1), "mlp.c_fc": (4, 1), "mlp.c_proj": (1, 4)}
    for name, (out, into) in shapes.items():
        weights[f"model.h.0.{name}.weight"] = mx.zeros((out * _WIDTH, into * _WIDTH))
        weights[f"model.h.0.{name}.bias"] = mx.zeros((out * _WIDTH,))
    mx.save_safetensors(str(path / "model.safetensors"), weights, {"format": "mlx"})


def calls_of(choice: Mapping[str, Any]) -> tuple[str, ...]:
    """The calls of a choice, each a name and its arguments as one text."""
    functions = [call["function"] for call in choice["message"].get("tool_calls") or ()]
    return tuple(f"{each['name']} {each['arguments']}" for each in functions)
