"""Writes a table in any format, packed or not, as its name says.

Rows are looked at twice: a format with types has to know them before the first row. Knows nothing of what columns mean.
"""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO, cast

import msgspec

from mlxq.errors import ConfigError
from mlxq.formats import arrow, delimited
from mlxq.formats.names import ARROW_FORMATS, Format, Named
from mlxq.formats.packing import GZIP_LEVEL, ZSTD_LEVEL, Packing
from mlxq.formats.text import as_json, cell_text, text_of

Rows = Callable[[], Iterable[Mapping[str, Any]]]
"""The rows, from the first on, as often as they are asked for."""


def check_name(name: Named) -> None:
    """Look whether a table can be written under this name.

    Raises:
        ConfigError: no format goes with it, or what it needs is not installed.
    """
    if name.format is None or name.format == "text":
        raise ConfigError("a table of answers is called .jsonl, .csv, .tsv, .parquet or .arrow")
    if name.format in ARROW_FORMATS:
        if name.packing:
            raise ConfigError("Parquet and Arrow files are packed inside: leave .gz or .zst out of the name")
        arrow.pyarrow_for(name.format)


def write_table(
    out: BinaryIO, name: Named, types: Mapping[str, str], kept: Sequence[str], rows: Rows, fields: Mapping[str, Any]
) -> None:
    """Write rows as a table.

    Args:
        types: the columns whose types are known, by Arrow's names.
        kept: the columns behind them; their types are those of `fields`, or what their values are where there is none,
            or none that pyarrow can write.
        fields: pyarrow's description of columns, where there is one.

    Raises:
        OSError: a value doesn't fit its column, or the disk is full.
    """
    columns = [*types, *kept]
    if name.format is not None and name.format in ARROW_FORMATS:
        known = _writable([fields[column] for column in kept if column in fields], name.format, rows)
        found = _types_of([column for column in kept if column not in {field.name for field in known}], rows)
        schema = arrow.schema_of({**types, **found}, known)
        fitted = ({**row, **{column: _as(found[column], row.get(column)) for column in found}} for row in rows())
        arrow.write_table(out, fitted, _in_order(schema, columns), table_format=name.format)
        return
    with _packing(out, name.packing) as packed:
        if name.format == "jsonl":
            packed.writelines(_json_line(row, columns) for row in rows())
        else:
            delimited.write_rows(packed, columns, rows(), delimiter="\t" if name.format == "tsv" else ",")


def _writable(fields: Sequence[Any], table_format: Format, rows: Rows) -> list[Any]:
    """Those of the columns that pyarrow can write, judged by the first value of each."""
    wanted, first = {field.name for field in fields}, dict[str, Any]()
    for row in rows() if fields else ():
        first |= {column: value for column in wanted - first.keys() if (value := row.get(column)) is not None}
        if first.keys() == wanted:
            break
    return [field for field in fields if arrow.can_write(field, first.get(field.name), table_format)]


def _json_line(row: Mapping[str, Any], columns: Sequence[str]) -> bytes:
    return msgspec.json.encode({column: as_json(row.get(column), of_bytes=text_of) for column in columns}) + b"\n"


def _types_of(columns: Sequence[str], rows: Rows) -> dict[str, str]:
    """Arrow's type for all values of each column; text for those that are of several kinds."""
    kinds: dict[str, set[type]] = {column: set() for column in columns}
    if columns:
        for row in rows():
            for column, seen in kinds.items():
                seen.add(type(row.get(column)))
    return {column: _type_for(seen - {type(None)}) for column, seen in kinds.items()}


def _type_for(kinds: set[type]) -> str:
    if kinds == {bool}:
        return "bool"
    if kinds == {int}:
        return "int64"
    return "double" if kinds and kinds <= {int, float} else "string"


def _as(alias: str, value: Any) -> Any:
    if value is None:
        return None
    return cell_text(value) if alias == "string" else value


def _in_order(schema: Any, columns: Sequence[str]) -> Any:
    import pyarrow as pa

    return pa.schema([schema.field(column) for column in columns])


@contextmanager
def _packing(out: BinaryIO, packing: Packing | None) -> Iterator[BinaryIO]:
    if packing is None:
        yield out
    elif packing == "gzip":
        with gzip.GzipFile(filename="", mode="wb", compresslevel=GZIP_LEVEL, fileobj=out, mtime=0) as packed:
            yield cast(BinaryIO, packed)
    else:
        import zstandard

        packer = zstandard.ZstdCompressor(level=ZSTD_LEVEL, write_checksum=True)
        with packer.stream_writer(out, closefd=False) as zstd, io.BufferedWriter(cast(io.RawIOBase, zstd)) as buffered:
            yield buffered
