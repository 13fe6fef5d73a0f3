"""Tells from its beginning that a file is no file of requests at all, what it seems to be, and what to do with it.

Says so only if nothing in that beginning is a line of JSON: a file with bad lines in it is still a file of requests.
Knows nothing of what a request is.
"""

from __future__ import annotations

import csv
import json
import re
from dataclasses import dataclass
from pathlib import Path

import msgspec

from mlxq.formats.names import Format

STDIN = "-"
HEAD_BYTES = 64 * 1024
MIN_LINES = 3
"""So many lines of plain text, none of which begins like JSON, are no slip of the pen."""
JSONL_HINT = "a file of requests has one JSON object on each line"


@dataclass(frozen=True, slots=True)
class Kind:
    """What a file seems to be, and what its owner can do."""

    name: str
    remedy: str

    def of(self, path: Path | str) -> str:
        """The sentence about a file."""
        shown = "FILE" if str(path) == STDIN else str(path)
        subject = "standard input" if str(path) == STDIN else str(path)
        return f"{subject} is {self.name}, not a file of requests: {self.remedy.format(path=shown)}"


_UTF8 = "save it as UTF-8"
_TABLE = "write it as JSON lines, for example with pandas: to_json(..., orient='records', lines=True)"
_LINES = "write each element on a line of its own, for example: jq -c '.[]' {path}"
_ONE_LINE = "write each object on one line, for example: jq -c . {path}"

_MAGIC: tuple[tuple[bytes, Kind], ...] = (
    (b"BZh", Kind("compressed with bzip2", "unpack it with bunzip2")),
    (b"\xfd7zXZ\x00", Kind("compressed with xz", "unpack it with unxz")),
    (b"\x04\x22\x4d\x18", Kind("compressed with LZ4", "unpack it with lz4 -d")),
    (b"7z\xbc\xaf\x27\x1c", Kind("a 7z archive", "unpack it")),
    (b"PK\x03\x04", Kind("a zip archive, as .xlsx and .docx are too", "unpack it, or export a table as JSON lines")),
    (b"PK\x05\x06", Kind("an empty zip archive", JSONL_HINT)),
    (b"\xd0\xcf\x11\xe0", Kind("an old Excel or Word document", "export it as JSON lines")),
    (b"PAR1", Kind("a Parquet file", "call it .parquet, or add --format parquet")),
    (b"ARROW1", Kind("an Arrow file", "call it .arrow, or add --format arrow")),
    (b"FEA1", Kind("a Feather file", _TABLE)),
    (b"ORC", Kind("an ORC file", _TABLE)),
    (b"Obj\x01", Kind("an Avro file", _TABLE)),
    (b"\x89HDF", Kind("an HDF5 file", _TABLE)),
    (b"\x93NUMPY", Kind("a numpy array", _TABLE)),
    (b"SQLite format 3", Kind("an SQLite database", "export a table as JSON lines")),
    (b"%PDF", Kind("a PDF", JSONL_HINT)),
    (b"\xff\xfe\x00\x00", Kind("UTF-32 text", _UTF8)),
    (b"\x00\x00\xfe\xff", Kind("UTF-32 text", _UTF8)),
    (b"\xff\xfe", Kind("UTF-16 text, as Windows tools write it", _UTF8)),
    (b"\xfe\xff", Kind("UTF-16 text, as Windows tools write it", _UTF8)),
)
_TABLE_MAGIC: tuple[tuple[bytes, Format], ...] = ((b"PAR1", "parquet"), (b"ARROW1", "arrow"))
_PICKLE = re.compile(rb"\x80[\x02-\x05]")
_HTML = re.compile(rb"\s*(<!doctype html|<html)", re.IGNORECASE)
_XML = re.compile(rb"\s*<(\?xml|[A-Za-z][\w:.-]*[\s>/])")
_DELIMITERS = {",": "CSV", "\t": "TSV", ";": "CSV with semicolons"}


def arrow_format_of(head: bytes) -> Format | None:
    """The format of a table that needs no name to be known by, by its first bytes."""
    return next((table_format for magic, table_format in _TABLE_MAGIC if head.startswith(magic)), None)


def kind_of(head: bytes, *, is_text: bool) -> Kind | None:
    """What the file seems to be that begins with these bytes; `None` if it may be what it should be.

    Args:
        head: its first bytes, up to `HEAD_BYTES`; fewer where no more has come yet.
        is_text: whether it should hold a prompt per line, so that only what is no text at all is something else.
    """
    is_readable = is_text and _is_readable(head[:512])  # a prompt may begin with ORC
    if not is_readable and (kind := _kind_by_magic(head)) is not None:
        return kind
    return None if is_text else _kind_of_text(head.removeprefix(b"\xef\xbb\xbf"))


def kind_instead_of_table(head: bytes) -> Kind | None:
    """What a file seems to be that is called a table of text; `None` if it may be one."""
    kind = None if _is_readable(head[:512]) else _kind_by_magic(head)
    return kind or _kind_with_nul(head)


def _kind_by_magic(head: bytes) -> Kind | None:
    if _PICKLE.match(head):
        return Kind("a Python pickle", _TABLE)
    return next((kind for magic, kind in _MAGIC if head.startswith(magic)), None)


def _kind_with_nul(head: bytes) -> Kind | None:
    if b"\x00" not in head[:1024]:
        return None
    is_wide = any(set(head[:64][offset::2]) == {0} for offset in (0, 1))
    return Kind("UTF-16 text without its mark", _UTF8) if is_wide else Kind("binary data", JSONL_HINT)


def _kind_of_text(head: bytes) -> Kind | None:
    lines = [line for line in head.split(b"\n") if line.strip()]
    whole = lines if head.endswith(b"\n") else lines[:-1]
    # The last line of an array may be an object by itself.
    if not lines or (any(_is_object(line) for line in lines) and not _is_array_over_lines(lines[0], head)):
        return None
    if (kind := _kind_with_nul(head)) is not None:
        return kind
    if _HTML.match(head):
        return Kind("a web page (HTML), maybe the error of a download", JSONL_HINT)
    if _XML.match(head):
        return Kind("XML", JSONL_HINT)
    first = lines[0].strip()
    if first.startswith(b"["):
        return _kind_of_array(head, lines)
    if first.startswith(b"{'"):
        return Kind("Python's own notation of dicts", "write it with json.dumps")
    if first == b"{" or (first.startswith(b"{") and _spans_lines(head)):
        return Kind("JSON that is spread over several lines", _ONE_LINE)
    return _kind_of_table_or_text([line.decode(errors="replace") for line in whole])


def _kind_of_array(head: bytes, lines: list[bytes]) -> Kind | None:
    """An array that is all of the file, however it is laid out; not one line among others."""
    is_line = _decodes(lines[0])
    if is_line and len(lines) > 1:
        return None
    return Kind("a JSON array", _LINES) if is_line or lines[0].strip() == b"[" or not _is_broken(head) else None


def _is_array_over_lines(first: bytes, head: bytes) -> bool:
    return first.strip() == b"[" and not _is_broken(head)


def _is_broken(head: bytes) -> bool:
    """Whether what begins here can't be JSON whatever follows, rather than being longer than what is known of it."""
    try:
        json.JSONDecoder().raw_decode(head.decode(errors="ignore").lstrip())
    except json.JSONDecodeError as error:
        return error.pos < len(head.decode(errors="ignore").rstrip()) - 1 and "Unterminated" not in error.msg
    except RecursionError:
        return True
    return False


def _spans_lines(head: bytes) -> bool:
    """Whether the first value of JSON ends on a later line."""
    text = head.decode(errors="ignore").lstrip()
    try:
        _, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return False
    return "\n" in text[:end].strip()


def _kind_of_table_or_text(lines: list[str]) -> Kind | None:
    begins_like_json = any(line.lstrip()[0] in "{[" for line in lines)
    if len(lines) >= 2 and not begins_like_json:
        for delimiter, name in _DELIMITERS.items():
            widths = {len(row) for row in csv.reader(lines[:20], delimiter=delimiter)}
            if len(widths) == 1 and widths != {1}:
                suffix = "tsv" if name == "TSV" else "csv"
                return Kind(f"a table ({name})", f"call it .{suffix}, or add --format {suffix}")
    if len(lines) >= MIN_LINES and not begins_like_json and not any(line.lstrip()[0] == '"' for line in lines):
        return Kind("plain text", "for one prompt per line, add --format text or call it .txt")
    return None


def _is_readable(start: bytes) -> bool:
    try:
        return start.decode().replace("\r", "").replace("\n", "").replace("\t", "").isprintable()
    except UnicodeDecodeError as error:
        return error.start > len(start) - 4 and _is_readable(start[: error.start])  # a character that was cut


def _is_object(line: bytes) -> bool:
    try:
        return type(msgspec.json.decode(line)) is dict
    except (ValueError, RecursionError):
        return False


def _decodes(line: bytes) -> bool:
    try:
        msgspec.json.decode(line)
    except (ValueError, RecursionError):
        return False
    return True
