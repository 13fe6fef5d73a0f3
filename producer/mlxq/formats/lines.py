"""Files of lines: one JSON object or one prompt on each, in UTF-8.

Knows nothing of what a line says.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import BinaryIO

from mlxq.formats.records import Record

BOM = b"\xef\xbb\xbf"


def read_lines(stream: io.BufferedReader, max_bytes: int) -> Iterator[Record]:
    """Every line, also blank ones. Of a line that is longer than `max_bytes` comes no more than tells that it is."""
    read_limit = max_bytes + len(BOM) + len(b"\r\n")
    for number, line in enumerate(_bounded(stream, read_limit), start=1):
        yield Record(number, (line.removeprefix(BOM) if number == 1 else line).rstrip(b"\r\n"))


def _bounded(stream: BinaryIO, read_limit: int) -> Iterator[bytes]:
    """Lines, cut off at the read limit: one endless line must not fill the memory."""
    while line := stream.readline(read_limit):
        yield line
        while len(line) == read_limit and not line.endswith(b"\n"):
            line = stream.readline(read_limit)
