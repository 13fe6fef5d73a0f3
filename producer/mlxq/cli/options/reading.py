"""The options that say what an input is and what is made of it, shared by the commands that read one.

A command that is decorated with `reading` gets all of them as one value. Reads no input itself.
"""

from __future__ import annotations

import functools
import glob
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import click

from mlxq.errors import ConfigError
from mlxq.files.input import BadLine, HowToRead, arrow_fields, count_requests, read_requests, read_unknown
from mlxq.files.known_lines import KnownBlock, KnownLines
from mlxq.files.paths import STDIN, file_errors, source_name
from mlxq.formats.names import Format
from mlxq.requests.openai import ParsedLine, check_defaults
from mlxq.tables.columns import Columns
from mlxq.tables.requests import RequestMaker
from mlxq.tables.template import PromptTemplate

_MADE_BY_TEMPLATES = ("{{", "{%")
_FIELD_OPTIONS = ("max_tokens", "temperature", "top_p", "seed", "stop")
"""Options that are another spelling of `--set`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What there is to read, and how. `defaults`, `chat`, `system` also go for a prompt of the command line."""

    paths: tuple[Path, ...]
    input_format: Format | None
    columns: Columns
    chat: bool
    system: str | None
    allow_unknown: bool
    defaults: Mapping[str, Any]

    @property
    def source(self) -> str | None:
        """A name for all of it, as of `mlxq.files.paths.source_name`."""
        return source_name(*self.paths)

    def kept_types(self) -> dict[str, Any]:
        """pyarrow's types of the columns that go along, where the input has some."""
        return arrow_fields(self.paths, self.input_format, self.columns.keep)

    def requests(self) -> Iterator[ParsedLine | BadLine]:
        """What `mlxq.files.input.read_requests` yields."""
        return read_requests(self.paths, **self._how())

    def unknown(self, known: KnownLines) -> Iterator[ParsedLine | BadLine | KnownBlock]:
        """What `mlxq.files.input.read_unknown` yields."""
        return read_unknown(self.paths, known, **self._how())

    def _how(self) -> HowToRead:
        return {
            "input_format": self.input_format,
            "chat_text": self.chat,
            "system": self.system,
            "columns": self.columns,
            "allow_unknown": self.allow_unknown,
            "defaults": self.defaults,
        }

    def prompt(self, text: str, *, custom_id: str) -> ParsedLine:
        """A prompt of the command line. Raises `RequestError`."""
        return RequestMaker(chat=self.chat, system=self.system, defaults=self.defaults).of_prompt(text, custom_id)

    def count(self) -> int | None:
        """How many lines or rows there are, where that is known."""
        return count_requests(self.paths, self.input_format)


class _Files(click.Option):
    """Several files, or patterns of their names; as a variable it is one, since paths may have colons and blanks."""

    def value_from_envvar(self, ctx: click.Context) -> Any:
        value = self.resolve_envvar_value(ctx)
        return None if value is None else (value,)


def _expand(ctx: click.Context, param: click.Parameter, given: tuple[Path, ...]) -> tuple[Path, ...]:
    """The files themselves, each once."""
    paths = tuple(path for pattern in given for path in _matching(pattern, ctx, param))
    if len(set(paths)) < len(paths):
        raise click.BadParameter("a file is given twice", ctx, param)
    return paths


def _matching(pattern: Path, ctx: click.Context, param: click.Parameter) -> Sequence[Path]:
    if str(pattern) == STDIN or pattern.exists() or not glob.has_magic(str(pattern)):
        return (pattern,)
    found = [Path(name) for name in sorted(glob.glob(str(pattern), recursive=True)) if Path(name).is_file()]  # noqa: PTH207 - any path
    if not found:
        raise click.BadParameter(f"no file matches {pattern}", ctx, param)
    return found


def _read_settings(_ctx: click.Context, _param: click.Parameter, pairs: tuple[str, ...]) -> dict[str, Any]:
    settings = dict(_read_setting(pair) for pair in pairs)
    check_defaults(settings)
    return settings


def _read_setting(pair: str) -> tuple[str, Any]:
    name, equals, text = pair.partition("=")
    if not equals or not name:
        raise click.BadParameter(f"{pair!r} is not NAME=VALUE, such as temperature=0")
    try:
        return name, json.loads(text)
    except ValueError:
        return name, text


def _read_template(_ctx: click.Context, _param: click.Parameter, given: str | None) -> PromptTemplate | None:
    """The template itself, or that in a file. Nothing that makes sense as the one is the other's name."""
    if given is None:
        return None
    if any(mark in given for mark in _MADE_BY_TEMPLATES):
        return PromptTemplate(given)
    with file_errors(given, "read"):
        return PromptTemplate(Path(given).read_text(encoding="utf-8"))


allow_unknown_params = click.option(
    "--allow-unknown-params",
    is_flag=True,
    help="Drop fields that mlxq doesn't know, or that say how to serve, instead of refusing the line.",
)


def _options(required: bool) -> list[Callable[[Any], Any]]:
    option = click.option
    return [
        option(
            "-i",
            "--input",
            "input_paths",
            cls=_Files,
            envvar="MLXQ_INPUT",
            multiple=True,
            required=required,
            type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
            callback=_expand,
            help="File of requests: JSONL, CSV, TSV, Parquet, Arrow, or .txt with one prompt per line; also .gz and"
            " .zst; - is stdin. May be repeated, and be a pattern such as 'part-*.jsonl'.",
        ),
        option(
            "--format",
            "input_format",
            envvar="MLXQ_FORMAT",
            type=click.Choice(get_args(Format)),
            help="What the input is; text has one prompt per line.  [default: what its name says, else jsonl]",
        ),
        option("--prompt-column", metavar="COLUMN", help="The prompt's column in a table, or field in lines of data."),
        option("--messages-column", metavar="COLUMN", help="The column of a conversation: a list, or JSON text."),
        option("--id-column", metavar="COLUMN", help="The column of ids.  [default: custom_id or id]"),
        option(
            "--template",
            metavar="TEXT|FILE",
            callback=_read_template,
            help="A Jinja template that makes the prompt of a row's columns, such as 'Translate: {{ text }}'.",
        ),
        option(
            "--keep",
            multiple=True,
            metavar="COLUMN",
            help="A column that goes along into the output, which is then a table; may be repeated.",
        ),
        option("--system", metavar="TEXT", help="A system message for conversations without one; implies --chat."),
        option("--chat", is_flag=True, help="Make plain text a chat message rather than a bare prompt."),
        option("--max-tokens", type=click.IntRange(1), help="The same as --set max_tokens=N."),
        option("--temperature", type=click.FloatRange(0), help="The same as --set temperature=X."),
        option("--top-p", type=float, help="The same as --set top_p=X."),
        option("--seed", type=int, help="The same as --set seed=N."),
        option("--stop", multiple=True, metavar="TEXT", help="A stop string, as --set stop; may be repeated."),
        option(
            "--set",
            "defaults",
            envvar="MLXQ_SET",
            multiple=True,
            metavar="NAME=VALUE",
            callback=_read_settings,
            help="A body field, such as top_k=5, for every request that doesn't set it; may be repeated.",
        ),
        allow_unknown_params,
    ]


_NAMES = (
    *(
        "input_paths",
        "input_format",
        "prompt_column",
        "messages_column",
        "id_column",
        "template",
        "keep",
        "system",
        "chat",
    ),
    *(*_FIELD_OPTIONS, "defaults", "allow_unknown_params"),
)


def reading(*, required: bool) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command the options, and it gets a `Reading` called `reading`."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def with_reading(**values: Any) -> None:
            own = {name: values.pop(name) for name in _NAMES}
            command(reading=_reading(**own), **values)

        decorated: Callable[..., None] = with_reading
        for option in reversed(_options(required)):
            decorated = option(decorated)
        return decorated

    return decorate


def _reading(
    *,
    input_paths: tuple[Path, ...],
    input_format: Format | None,
    prompt_column: str | None,
    messages_column: str | None,
    id_column: str | None,
    template: PromptTemplate | None,
    keep: tuple[str, ...],
    system: str | None,
    chat: bool,
    defaults: dict[str, Any],
    allow_unknown_params: bool,
    **fields: Any,
) -> Reading:
    if sum(given is not None for given in (prompt_column, messages_column, template)) > 1:
        raise ConfigError("give one of --prompt-column, --messages-column and --template: each makes the prompt")
    columns = Columns(prompt=prompt_column, messages=messages_column, id=id_column, template=template, keep=keep)
    return Reading(
        paths=input_paths,
        input_format=input_format,
        columns=columns,
        chat=chat,
        system=system,
        allow_unknown=allow_unknown_params,
        defaults={**defaults, **_given(fields)},
    )


def _given(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What the options of single fields say."""
    given = {name: value for name, value in fields.items() if value not in (None, ())}
    if "stop" in given:
        given["stop"] = list(given["stop"])
    check_defaults(given)
    return given
