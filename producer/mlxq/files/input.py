"""Requests read from a file or a pipe, one line at a time, each with an id that a rerun knows again.

A line that can't be accepted becomes a `BadLine` and costs only itself. What a line means is
`mlxq.requests.openai`'s business; nothing here knows of answers, queues or models.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

from mlxq.contract import Failure
from mlxq.errors import InputFileError, RequestError
from mlxq.formats.kinds import HEAD_BYTES, kind_of
from mlxq.files.paths import STDIN, file_errors
from mlxq.requests import openai
from mlxq.requests.openai import ParsedLine
from mlxq.results import read_back, result_lines

InputFormat = Literal["jsonl", "text"]

_BOM = b"\xef\xbb\xbf"

_Parse = Callable[[bytes, str], ParsedLine]


@dataclass(frozen=True, slots=True)
class BadLine:
    """One refused input line. `line_number` counts from 1; `custom_id` is the line's own, or one made up from its
    number if it has none that can be read. `owns_id` says that no other line can have it: it is neither made up nor a
    second use."""

    line_number: int
    custom_id: str
    error: RequestError
    owns_id: bool = True

    def failure(self) -> Failure:
        """The answer to this line."""
        return result_lines.rejection(self.error, custom_id=self.custom_id, request_id=f"line-{self.line_number}")


def read_requests(
    path: Path | str,
    *,
    input_format: InputFormat | None = None,
    chat_text: bool = False,
    allow_unknown: bool = False,
    defaults: Mapping[str, Any] | None = None,
    max_line_bytes: int = openai.MAX_LINE_BYTES,
) -> Iterator[ParsedLine | BadLine]:
    """Read a file of requests, one line at a time; of the lines before, only the ids are kept.

    Blank lines are skipped, but counted. A request without an id is called ``line-{number}``, with a ``+`` if an
    earlier line has that id.

    Args:
        path: the file, or ``-`` for standard input.
        input_format: JSON lines, or text with one prompt per line; by default ``.txt`` is text.
        chat_text: make each line of text a user message rather than a completion prompt.
        allow_unknown: drop unknown fields instead of refusing them.
        defaults: body fields for every request that doesn't set them.
        max_line_bytes: a longer line is refused, and no more of it is kept in memory than tells that it is longer;
            at most `openai.MAX_LINE_BYTES`.

    Raises:
        InputFileError: the file can't be read; raised when a line is asked for. It is something else as a whole, such
            as answers, a table or an archive; raised at once, or of a pipe when a line is asked for.
        ConfigError: a default can't be used; raised at once.
    """
    openai.check_defaults(defaults or {})
    read_limit = max_line_bytes + len(_BOM) + len(b"\r\n")
    text = _is_text(path, input_format)
    _refuse_other_kinds(path, text)
    parse = _text_parser(chat_text, defaults) if text else _json_parser(allow_unknown, defaults)
    return _requests(_numbered_lines(path, read_limit, text), _bounded(parse, max_line_bytes))


def _requests(lines: Iterator[tuple[int, bytes]], parse: _Parse) -> Iterator[ParsedLine | BadLine]:
    first_lines: dict[str, int] = {}
    for number, line in lines:
        if line.strip():
            yield _refuse_second(_parsed(parse, line, number, first_lines), number, first_lines)


def _refuse_other_kinds(path: Path | str, text: bool) -> None:
    """One error for the whole file, rather than one per line, and before anything is started for it."""
    if str(path) == STDIN or not Path(path).is_file():
        return
    with file_errors(path, "read"), Path(path).open("rb") as source:
        head = source.read(HEAD_BYTES)
        _refuse_other_kind(path, head, text)
        source.seek(0)
        if read_back.decode_output_line(source.readline(openai.MAX_LINE_BYTES)) is not None:
            raise InputFileError(f"{path} is a file of answers, not of requests; are -i and -o swapped?")


def _refuse_other_kind(path: Path | str, head: bytes, text: bool) -> None:
    kind = kind_of(head, is_text=text)
    if kind is not None:
        raise InputFileError(kind.of(path))


def _is_text(path: Path | str, input_format: InputFormat | None) -> bool:
    return Path(path).suffix.lower() == ".txt" if input_format is None else input_format == "text"


def _bounded(parse: _Parse, max_bytes: int) -> _Parse:
    def parse_bounded(line: bytes, custom_id: str) -> ParsedLine:
        if len(line) > max_bytes:
            raise openai.line_too_long(max_bytes)
        return parse(line, custom_id)

    return parse_bounded


def _json_parser(allow_unknown: bool, defaults: Mapping[str, Any] | None) -> _Parse:
    return lambda line, custom_id: openai.parse_line(
        line, default_custom_id=custom_id, allow_unknown=allow_unknown, defaults=defaults
    )


def _text_parser(chat: bool, defaults: Mapping[str, Any] | None) -> _Parse:
    return lambda line, custom_id: openai.text_request(
        _decoded_text(line), custom_id=custom_id, chat=chat, defaults=defaults
    )


def _decoded_text(line: bytes) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise RequestError(f"the line is not UTF-8: {error}", code="invalid_encoding") from error


def _parsed(parse: _Parse, line: bytes, number: int, taken: Collection[str]) -> ParsedLine | BadLine:
    made_up = _made_up_id(number, taken)
    try:
        return parse(line, made_up)
    except RequestError as error:
        own = openai.read_custom_id(line)
        return BadLine(number, own or made_up, error, owns_id=own is not None)


def _made_up_id(number: int, taken: Collection[str]) -> str:
    """The same in every run over a file that only grows: a rerun has to know the line again."""
    custom_id = f"line-{number}"
    while custom_id in taken:
        custom_id += "+"
    return custom_id


def _refuse_second(parsed: ParsedLine | BadLine, number: int, first_lines: dict[str, int]) -> ParsedLine | BadLine:
    """The line itself, or a `BadLine` if an earlier line has its id: answers are told apart by id alone.

    A made-up id of a line that gets no answer takes that id from nobody.
    """
    if isinstance(parsed, BadLine) and not parsed.owns_id:
        return parsed
    custom_id = parsed.custom_id if isinstance(parsed, BadLine) else parsed.request.custom_id
    first = first_lines.setdefault(custom_id, number)
    if first == number:
        return parsed
    message = f"line {number} has the custom_id of line {first}: every id must be used once"
    if custom_id.rstrip("+") == f"line-{first}":
        message += f", and a line without one, as line {first} may be, is called by its number"
    error = RequestError(message, param="custom_id", code="duplicate_custom_id")
    return BadLine(number, custom_id, error, owns_id=False)


def _numbered_lines(path: Path | str, read_limit: int, text: bool) -> Iterator[tuple[int, bytes]]:
    with file_errors(path, "read"), _opened(path) as stream:
        _refuse_other_kind(path, stream.peek(HEAD_BYTES), text)  # what has come of a pipe; it isn't waited for more
        for number, line in enumerate(_bounded_lines(stream, read_limit), start=1):
            yield number, (line.removeprefix(_BOM) if number == 1 else line).rstrip(b"\r\n")


def _opened(path: Path | str) -> contextlib.AbstractContextManager[io.BufferedReader]:
    if str(path) == STDIN:
        return _standard_input()
    return io.BufferedReader(io.FileIO(path), HEAD_BYTES)


def _standard_input() -> contextlib.AbstractContextManager[io.BufferedReader]:
    """Not the interpreter's own reader: a thread that still waits in that one when the process ends would crash it."""
    if sys.stdin is None:  # so Python has it where the shell closed it
        raise InputFileError("standard input is closed: give a file, or pipe the requests in")
    try:
        return io.BufferedReader(io.FileIO(sys.stdin.fileno(), closefd=False), HEAD_BYTES)
    except io.UnsupportedOperation:  # a stand-in that is no file
        return contextlib.nullcontext(io.BufferedReader(cast(io.RawIOBase, sys.stdin.buffer), HEAD_BYTES))


def _bounded_lines(stream: BinaryIO, read_limit: int) -> Iterator[bytes]:
    """Lines, cut off at the read limit: one endless line must not fill the memory."""
    while line := stream.readline(read_limit):
        yield line
        while len(line) == read_limit and not line.endswith(b"\n"):
            line = stream.readline(read_limit)
