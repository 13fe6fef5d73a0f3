"""`mlxq inspect MODEL`: all that a model folder says, and what is made of it.

What a user runs before a night's batch: what answers end on, how chats are rendered, which dialect reasoning and tool
calls are in, and what requests will be refused. Reads no weights.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click

from mlxq.cli import options
from mlxq.cli.terminal import cell, show
from mlxq.errors import MlxqError
from mlxq_worker.commands.eos import PIPED_WIDTH, eos_as_object

if TYPE_CHECKING:
    from mlxq_worker.commands.sample_chats import Sample
    from mlxq_worker.model.load import DescribedModel


@click.command(context_settings=options.SETTINGS)
@click.argument("model")
@click.option("--json", "as_json", envvar="MLXQ_JSON", is_flag=True, help="Print one JSON object instead of a table.")
@click.option("--try", "with_sample", envvar="MLXQ_TRY", is_flag=True, help="Render a sample chat with tools as well.")
@click.option("--extra-eos-token", multiple=True, metavar="TOKEN", help="A further end token, as its id or its text.")
@click.option("--allow-no-eos", is_flag=True, help="Accept a model that names no end token at all.")
@click.option("--tool-call-parser", metavar="NAME", help="How the model writes tool calls, in vLLM's names, or none.")
@click.option("--reasoning-parser", metavar="NAME", help="How it marks its reasoning, in vLLM's names, or none.")
def inspect(
    model: str,
    as_json: bool,
    with_sample: bool,
    extra_eos_token: tuple[str, ...],
    allow_no_eos: bool,
    tool_call_parser: str | None,
    reasoning_parser: str | None,
) -> None:
    """Print what MODEL's files say, and what mlxq makes of it.

    MODEL is a directory, a Hub repository such as org/name, or demo. Weights are not read.

    Example: mlxq inspect mlx-community/Qwen3-4B-4bit
    """
    from mlxq_worker.model.load import load_tokenizer_only

    described = load_tokenizer_only(model, extra_eos_tokens=extra_eos_token, allow_no_eos=allow_no_eos)
    found = model_as_object(described, tool_call_parser, reasoning_parser, with_sample=with_sample)
    if as_json:
        show(json.dumps(found, ensure_ascii=False))
    else:
        _print(found)


def model_as_object(
    described: DescribedModel, tool_call_parser: str | None, reasoning_parser: str | None, *, with_sample: bool = False
) -> dict[str, Any]:
    """What is printed, as JSON has it.

    Raises:
        MlxqError: a parser isn't known.
    """
    from mlxq_worker.commands import sample_chats
    from mlxq_worker.dialects.reasoning import reasoning_markers_of
    from mlxq_worker.dialects.tool_format import tool_format_of

    tokenizer = described.tokenizer
    batching = _batching(described)
    tool_format = tool_format_of(tokenizer, tool_call_parser)
    markers = reasoning_markers_of(tokenizer, reasoning_parser)
    samples = sample_chats.try_all(tokenizer, tool_format, model_name=described.name)
    return {
        "model": described.name,
        "path": str(described.path),
        "architecture": described.config["model_type"],
        "batching": batching,
        "read_otherwise": [] if batching["kind"] == "refused" else _read_otherwise(described.config),
        "weights_bytes": _weights_bytes(described),
        "context_length": described.context_length,
        "window_not_kept": _window_not_kept(described),
        "vocab_size": described.vocab_size,
        "quantization": _quantization(described.config),
        "tokenizer": type(tokenizer).__name__,
        "eos": eos_as_object(described),
        **_sampling_defaults(described.generation_config),
        "chat_templates": _templates(tokenizer.chat_template),
        "chats": {name: sample.outcome for name, sample in samples.items()},
        "reasoning": None if markers is None else {"parser": markers.name, "start": markers.start, "end": markers.end},
        "tool_calls": None if tool_format is None else sample_chats.about_calls(tokenizer, tool_format),
        **({"sample": _sample_text(samples)} if with_sample else {}),
    }


def _sampling_defaults(generation_config: Mapping[str, Any]) -> dict[str, Any]:
    """What the model proposes for fields that requests leave out, or what is wrong with that."""
    from mlxq_worker.model.generation import sampling_defaults

    try:
        return {"sampling_defaults": sampling_defaults(generation_config), "sampling_defaults_error": None}
    except MlxqError as error:
        return {"sampling_defaults": {}, "sampling_defaults_error": str(error)}


def _sample_text(samples: Mapping[str, Sample]) -> str | None:
    """The sample that shows most, of those that could be rendered."""
    texts = [samples[name].text for name in ("tool history", "plain") if name in samples]
    return next((text for text in texts if text), None)


def _batching(described: DescribedModel) -> dict[str, str]:
    from mlxq_worker.model.architecture import batch_kind_of

    try:
        found = batch_kind_of(described.config)
    except MlxqError as error:
        return {"kind": "refused", "why": str(error)}
    return {"kind": found.kind, "why": found.why}


def _read_otherwise(config: Mapping[str, Any]) -> list[str]:
    """The keys that are said to mlx-lm otherwise than config.json says them."""
    from mlxq_worker.model.config_json.build import config_overrides

    said = config_overrides(config)
    stated = config.get("text_config")
    text: Mapping[str, Any] = stated if isinstance(stated, Mapping) else {}
    inner = said.pop("text_config", {}) if text else {}
    changed = {key for key in said if not _says(config, key, said[key])}
    changed |= {f"text_config.{key}" for key in inner if not _says(text, key, inner[key])}
    return sorted(changed)


def _says(config: Mapping[str, Any], key: str, value: Any) -> bool:
    """Whether a config says the same; the type of a scaling has two names, and mlx-lm is always told both."""
    stated = config.get(key)
    if isinstance(stated, Mapping) and isinstance(value, Mapping):
        return {**value, **stated} == value and value.keys() - stated.keys() <= {"type", "rope_type"}
    return key in config and bool(stated == value)


def _weights_bytes(described: DescribedModel) -> int | None:
    """`None` if there are none here: of a Hub repository only the small files are fetched."""
    from mlxq_worker.model.safetensors import weights_bytes

    try:
        return weights_bytes(described.path)
    except MlxqError:
        return None


def _window_not_kept(described: DescribedModel) -> int | None:
    from mlxq_worker.model.config_json.build import window_not_kept

    window = window_not_kept(described.config)
    return window if window is not None and window < described.context_length else None


def _quantization(config: Mapping[str, Any]) -> Any:
    stated = config.get("quantization") or config.get("quantization_config")
    if not isinstance(stated, Mapping):
        return None
    told = {key: stated[key] for key in ("bits", "group_size", "mode", "quant_method") if key in stated}
    num_own = sum(isinstance(each, Mapping) and "bits" in each for each in stated.values())
    return {**told, "layers_with_their_own": num_own} if num_own else told


def _templates(template: Any) -> list[str]:
    if template is None:
        return []
    return ["default"] if isinstance(template, str) else list(template)


def _print(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, title=cell(found["model"]), title_justify="left")
    for name, value in _lines(found):
        table.add_row(name, cell(value))
    Console(width=None if sys.stdout.isatty() else PIPED_WIDTH).print(table)
    if "sample" in found:
        show("A sample chat, as the model gets it:" if found["sample"] else "The chat template renders no sample.")
        show(found["sample"] or "")


def _lines(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "architecture", found["architecture"]
    kind, why = found["batching"]["kind"], found["batching"]["why"]
    yield ("can't be run", why) if kind == "refused" else ("batching", f"{kind}: {why}")
    if found["read_otherwise"]:
        yield "said for mlx-lm", ", ".join(found["read_otherwise"])
    size = found["weights_bytes"]
    yield "weights", "none in this folder" if size is None else f"{size / 2**30:.1f} GiB"
    yield "context length", f"{found['context_length']} tokens"
    if found["window_not_kept"] is not None:
        tokens = f"{found['window_not_kept']} tokens"
        yield "sliding window", f"{tokens}, but mlx-lm attends to everything: longer sequences get other answers"
    yield "vocabulary", f"{found['vocab_size']} ids, {found['tokenizer']}"
    yield "quantization", _words(found["quantization"]) or "none"
    for token in found["eos"]["tokens"]:
        yield "ends answers", f"{token['id']} {token['token']} ({', '.join(token['sources'])})"
    for token in found["eos"]["rejected"]:
        yield "ends none", f"{token['token']} ({token['source']}): {token['reason']}"
    own = ", ".join(f"{name} {value:g}" for name, value in found["sampling_defaults"].items())
    yield "sampling defaults", found["sampling_defaults_error"] or own or "none of its own"
    yield "chat templates", ", ".join(found["chat_templates"]) or "none: completions only"
    for name, outcome in found["chats"].items():
        yield f"chat: {name}", outcome
    yield "reasoning", _words(found["reasoning"]) or "none known"
    calls = found["tool_calls"]
    if not calls:
        yield "tool calls", "none known"
        return
    yield "tool calls", f"parser: {calls['parser']} (as spoken by {calls['spoken_by']})"
    yield "such as", calls["example"]
    yield "a demanded call", "is forced" if calls["can_be_forced"] else "is refused: nothing could force it"
    yield "the template's own", _OWN_CALL[calls["reads_the_templates_own"]]


_OWN_CALL: Mapping[bool | None, str] = {
    True: "call is read",
    False: "call is not read: it is in another syntax",
    None: "call is unknown: it writes none",
}


def _words(about: Mapping[str, Any] | None) -> str:
    return ", ".join(f"{key.replace('_', ' ')}: {_word(value)}" for key, value in (about or {}).items())


def _word(value: Any) -> str:
    """A value as a person would say it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "unknown" if value is None else str(value)
