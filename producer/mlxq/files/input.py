"""Requests read from files and pipes, one at a time, each with an id that a rerun knows again.

A record that can't be accepted becomes a `BadLine` and costs only itself. How a format is read is `mlxq.formats`'
business, what a record means that of `mlxq.tables.requests`; nothing here knows of answers, queues or models.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, Unpack

from mlxq.contract import Failure
from mlxq.errors import RequestError
from mlxq.files.known_lines import Known, KnownBlock, KnownLines, Marked, Marker, made_up_id
from mlxq.files.source import Source
from mlxq.formats.names import Format
from mlxq.formats.records import Record
from mlxq.requests import openai
from mlxq.requests.openai import ParsedLine
from mlxq.results import result_lines
from mlxq.storage.id_table import IdTable
from mlxq.tables.columns import Columns
from mlxq.tables.requests import RequestMaker

KNOWN_BLOCK = 250
"""Lines that are looked up at a time."""

Paths = Path | str | Sequence[Path | str]


@dataclass(frozen=True, slots=True)
class BadLine:
    """One refused input line. `line_number` counts from 1 in its file, which is named in `source` where there are
    several. `custom_id` is the line's own, or one made up from its number if it has none that can be read; `owns_id`
    says that no other line can have it: it is neither made up nor a second use. `kept` is as in `ParsedLine`."""

    line_number: int
    custom_id: str
    error: RequestError
    owns_id: bool = True
    source: str | None = None
    kept: Mapping[str, Any] = field(default_factory=dict)

    @property
    def place(self) -> str:
        """``line 7``, or ``line 7 of more.jsonl``."""
        return _place(self.line_number, self.source)

    def failure(self) -> Failure:
        """The answer to this line."""
        return result_lines.rejection(self.error, custom_id=self.custom_id, request_id=f"line-{self.line_number}")


class HowToRead(TypedDict, total=False):
    """How an input is read.

    `input_format` is what the files are: by default what their names say, or else what they begin with, or JSON lines.
    `chat_text` makes plain text a user message rather than a completion prompt. `system` is a system message for every
    conversation that begins with none; it makes plain text a user message, too. `columns` says what the columns of
    tables, or the fields of lines that are data, are. `allow_unknown` drops unknown fields instead of refusing them.
    `defaults` are body fields for every request that doesn't set them. A line of more than `max_line_bytes` is refused,
    and no more of it is kept in memory than tells that it is longer; at most `openai.MAX_LINE_BYTES`.
    """

    input_format: Format | None
    chat_text: bool
    system: str | None
    columns: Columns
    allow_unknown: bool
    defaults: Mapping[str, Any]
    max_line_bytes: int


def read_requests(paths: Paths, **how: Unpack[HowToRead]) -> Iterator[ParsedLine | BadLine]:
    """Read files of requests, one line or row at a time; of those before, only the ids are kept, on the disk.

    Blank lines are skipped, but counted. A request without an id is called ``row-`` and a hash of its content, with
    ``-2`` and so on for others that ask for the same. Packed files are unpacked, whatever they are called.

    Args:
        paths: a file, several, or ``-`` for standard input.
        how: see `HowToRead`.

    Raises:
        InputFileError: a file can't be read; raised when a line is asked for. It is something else as a whole, such as
            answers or an archive, or lacks a column; raised at once, or of a pipe when a line is asked for.
        ConfigError: a default can't be used, or a file needs a package that isn't there; raised at once.
    """
    sources, taken = _sources(paths, how), IdTable()
    return (line for source in sources for record in source.records() for line in (_line(record, source, taken),))


def read_unknown(
    paths: Paths, known: KnownLines, **how: Unpack[HowToRead]
) -> Iterator[ParsedLine | BadLine | KnownBlock]:
    """Like `read_requests`, but lines of files that are known are not read any further, and come in blocks. Other
    requests have a `mark` by which another run may know them."""
    return _unless_known(_sources(paths, how), known)


def _sources(paths: Paths, how: HowToRead) -> list[Source]:
    defaults = how.get("defaults", {})
    openai.check_defaults(defaults)
    maker = RequestMaker(
        columns=how.get("columns", Columns()),
        chat=how.get("chat_text", False),
        system=how.get("system"),
        allow_unknown=how.get("allow_unknown", False),
        defaults=defaults,
        max_bytes=how.get("max_line_bytes", openai.MAX_LINE_BYTES),
    )
    listed = list_paths(paths)
    names = _names(listed)
    sources = [Source(path, how.get("input_format"), maker, name) for path, name in zip(listed, names, strict=True)]
    for source in sources:
        source.look()
    return sources


def _names(paths: Sequence[Path | str]) -> list[str | None]:
    """What to call each of several files: as short as tells them apart."""
    if len(paths) == 1:
        return [None]
    counts = Counter(Path(path).name for path in paths)
    return [name if counts[name := Path(path).name] == 1 else str(path) for path in paths]


def list_paths(paths: Paths) -> list[Path | str]:
    """The one path, or all of them."""
    return [paths] if isinstance(paths, (str, Path)) else list(paths)


def count_requests(paths: Paths, input_format: Format | None = None) -> int | None:
    """How many lines or rows there are, blank ones too; `None` where only reading all of it would tell.

    Raises:
        InputFileError: a file can't be read.
    """
    counts = [Source(path, input_format, RequestMaker()).count() for path in list_paths(paths)]
    return None if None in counts else sum(count for count in counts if count is not None)


def arrow_fields(paths: Paths, input_format: Format | None, columns: Sequence[str]) -> dict[str, Any]:
    """pyarrow's descriptions of these columns, where all files are its own and agree.

    Raises:
        InputFileError: a file can't be read.
    """
    found: list[dict[str, Any]] = []
    for path in list_paths(paths) if columns else ():
        table = Source(path, input_format, RequestMaker()).arrow_table()
        if table is None:
            return {}
        found.append({name: table.schema.field(name) for name in columns if name in table.columns})
    return found[0] if found and all(other == found[0] for other in found) else {}


class _LookedUp(NamedTuple):
    """A record as a line, and the answer to that, if it is known."""

    record: Record
    line: Marked
    known: Known | None

    def id_and_place(self, source: Source) -> tuple[str, str]:
        assert self.known is not None
        return self.known.custom_id, _place(self.record.number, source.name)


def _unless_known(sources: Sequence[Source], known: KnownLines) -> Iterator[ParsedLine | BadLine | KnownBlock]:
    taken = IdTable()
    for source in sources:
        records = source.records()
        if not source.is_file:  # whose lines may come one by one, and are wanted as they do
            yield from (_line(record, source, taken) for record in records)
            continue
        marker: Marker | None = None  # what the file is is known once it is read
        while block := list(itertools.islice(records, KNOWN_BLOCK)):
            marker = marker or source.marker(known.filled_in)
            lines = [_marked(record, source, marker) for record in block]
            yield from _block(list(map(_LookedUp, block, lines, known.look_up(lines))), source, taken)


def _marked(record: Record, source: Source, marker: Marker) -> Marked:
    value = record.value
    return Marked(None, None) if isinstance(value, RequestError) else Marked(source.id_in(value), marker(value))


def _block(lines: Sequence[_LookedUp], source: Source, taken: IdTable) -> Iterator[ParsedLine | BadLine | KnownBlock]:
    for is_known, group in itertools.groupby(lines, key=lambda line: line.known is not None):
        run = list(group)
        # One whose id is taken, by a line like it for example, is read: there are rules for it.
        seconds = taken.add_many([line.id_and_place(source) for line in run]) if is_known else range(len(run))
        for is_second, places in itertools.groupby(range(len(run)), key=set(seconds).__contains__):
            part = [run[place] for place in places]
            if is_second:
                yield from (_line(line.record, source, taken, line.line.mark) for line in part)
            else:
                yield _known_block(part, source)


def _known_block(lines: Sequence[_LookedUp], source: Source) -> KnownBlock:
    known = [line.known for line in lines if line.known is not None]
    values = [line.record.value for line in lines]
    keeps = bool(source.maker.columns.keep)
    return KnownBlock(
        custom_ids=[each.custom_id for each in known],
        models=Counter(each.model for each in known),
        kept=[source.maker.kept_of(value) for value in values if not isinstance(value, RequestError)] if keeps else (),
        num_bytes=sum(len(value) for value in values if isinstance(value, bytes)),
    )


def _line(record: Record, source: Source, taken: IdTable, mark: str | None = None) -> ParsedLine | BadLine:
    parsed = _parsed(record, source, taken)
    kept = {} if isinstance(record.value, RequestError) else source.maker.kept_of(record.value)
    if isinstance(parsed, ParsedLine) and mark is not None and not parsed.dropped:  # which are counted each time
        return replace(parsed, kept=kept, mark=mark)
    return replace(parsed, kept=kept) if kept else parsed


def _parsed(record: Record, source: Source, taken: IdTable) -> ParsedLine | BadLine:
    place = _place(record.number, source.name)
    try:
        if isinstance(record.value, RequestError):
            raise record.value
        parsed = source.parse(record.value, "")
    except RequestError as error:
        own = None if isinstance(record.value, RequestError) else source.id_in(record.value)
        custom_id = own or _free_id(record.number, taken)
        bad = BadLine(record.number, custom_id, error, owns_id=own is not None, source=source.name)
        return bad if own is None else _refuse_second(bad, own, record.number, place, taken, source.name)
    if not parsed.request.custom_id:
        return parsed.called(_made_up_id(parsed.request.content_hash, place, taken))
    return _refuse_second(parsed, parsed.request.custom_id, record.number, place, taken, source.name)


def _free_id(number: int, taken: IdTable) -> str:
    """What a line is called that gets no answer and has no id: it takes that from nobody."""
    custom_id = f"line-{number}"
    while custom_id in taken:
        custom_id += "+"
    return custom_id


def _made_up_id(content_hash: str, place: str, taken: IdTable) -> str:
    """The same in every run, wherever in the file the request stands: a rerun has to know it again."""
    base = made_up_id(content_hash)
    custom_id, count = base, 1
    while not taken.add(custom_id, place):
        count = (taken.get(f"\0{base}") or 1) + 1  # no id of a line has this: where to go on counting
        taken.put(f"\0{base}", count)
        custom_id = f"{base}-{count}"
    return custom_id


def _refuse_second(
    parsed: ParsedLine | BadLine, custom_id: str, number: int, place: str, taken: IdTable, source: str | None = None
) -> ParsedLine | BadLine:
    """The line itself, or a `BadLine` if an earlier line has its id: answers are told apart by id alone."""
    if taken.add(custom_id, place):
        return parsed
    message = f"{place} has the custom_id of {taken.get(custom_id)}: every id must be used once"
    error = RequestError(message, param="custom_id", code="duplicate_custom_id")
    return BadLine(number, custom_id, error, owns_id=False, source=source)


def _place(number: int, source: str | None) -> str:
    return f"line {number} of {source}" if source else f"line {number}"
