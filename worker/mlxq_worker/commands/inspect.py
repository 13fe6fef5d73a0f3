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
    """
    from mlxq_worker.model.load import load_tokenizer_only

    try:
        described = load_tokenizer_only(model, extra_eos_tokens=extra_eos_token, allow_no_eos=allow_no_eos)
        found = model_as_object(described, tool_call_parser, reasoning_parser, with_sample=with_sample)
    except MlxqError as error:
        raise click.ClickException(str(error)) from error
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
    tool_format = tool_format_of(tokenizer, tool_call_parser)
    markers = reasoning_markers_of(tokenizer, reasoning_parser)
    samples = sample_chats.try_all(tokenizer, tool_format, model_name=described.name)
    return {
        "model": described.name,
        "path": str(described.path),
        "architecture": described.config["model_type"],
        "batching": _batching(described),
        "context_length": described.context_length,
        "vocab_size": described.vocab_size,
        "quantization": _quantization(described.config),
        "tokenizer": type(tokenizer).__name__,
        "eos": eos_as_object(described),
        "chat_templates": _templates(tokenizer.chat_template),
        "chats": {name: sample.outcome for name, sample in samples.items()},
        "reasoning": None if markers is None else {"parser": markers.name, "start": markers.start, "end": markers.end},
        "tool_calls": None if tool_format is None else sample_chats.about_calls(tokenizer, tool_format),
        **({"sample": samples["tool history"].text or samples["plain"].text} if with_sample else {}),
    }


def _batching(described: DescribedModel) -> dict[str, str]:
    from mlxq_worker.model.architecture import batch_kind_of

    try:
        found = batch_kind_of(described.config)
    except MlxqError as error:
        return {"kind": "refused", "why": str(error)}
    return {"kind": found.kind, "why": found.why}


def _quantization(config: Mapping[str, Any]) -> Any:
    stated = config.get("quantization") or config.get("quantization_config")
    if not isinstance(stated, Mapping):
        return None
    return {key: stated[key] for key in ("bits", "group_size", "mode", "quant_method") if key in stated}


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
        show(found["sample"] or "The chat template renders no sample.")


def _lines(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "architecture", found["architecture"]
    yield "batching", f"{found['batching']['kind']}: {found['batching']['why']}"
    yield "context length", f"{found['context_length']} tokens"
    yield "vocabulary", f"{found['vocab_size']} ids, {found['tokenizer']}"
    yield "quantization", _words(found["quantization"]) or "none"
    for token in found["eos"]["tokens"]:
        yield "ends answers", f"{token['id']} {token['token']} ({', '.join(token['sources'])})"
    for token in found["eos"]["rejected"]:
        yield "ends none", f"{token['token']} ({token['source']}): {token['reason']}"
    yield "chat templates", ", ".join(found["chat_templates"]) or "none: completions only"
    for name, outcome in found["chats"].items():
        yield f"chat: {name}", outcome
    yield "reasoning", _words(found["reasoning"]) or "none known"
    calls = found["tool_calls"]
    yield "tool calls", _words({key: calls[key] for key in calls if key != "example"}) if calls else "none known"
    if calls:
        yield "such as", calls["example"]


def _words(about: Mapping[str, Any] | None) -> str:
    return ", ".join(f"{key.replace('_', ' ')}: {_word(value)}" for key, value in (about or {}).items())


def _word(value: Any) -> str:
    """A value as a person would say it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "unknown" if value is None else str(value)
