"""Parquet and Arrow through pyarrow, which is imported when a file asks for it: it comes with ``mlxq[tables]``.

Rows are Python's values; which columns there are and what they hold is pyarrow's to say. Knows nothing of what columns
mean.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxq.errors import ConfigError
from mlxq.formats.delimited import refuse_twice
from mlxq.formats.names import Format
from mlxq.formats.records import Record

if TYPE_CHECKING:
    import pyarrow as pa

READ_ROWS = 64
"""Rows that are Python's values at a time: a prompt may have a megabyte."""
GROUP_ROWS = 10_000
"""Rows of a row group that is written, and of the memory that it takes."""
ARROW_MAGIC = b"ARROW1"


class ArrowReader:
    """A table of pyarrow's that is open.

    Raises:
        OSError: the file can't be read as what it should be, or two columns share a name.
        ConfigError: pyarrow is not installed.
    """

    def __init__(self, path: Path | str, table_format: Format) -> None:
        self._pa = pyarrow_for(table_format)
        self._path = str(path)
        self._is_parquet = table_format == "parquet"
        with _damage():
            self.schema = self._read_schema()
        self.columns = tuple(self.schema.names)
        refuse_twice(self.columns)

    def rows(self) -> Iterator[Record]:
        """All rows, `READ_ROWS` at a time."""
        number = 0
        with _damage():
            for batch in self._batches():
                for start in range(0, batch.num_rows, READ_ROWS):
                    for row in batch.slice(start, READ_ROWS).to_pylist():
                        number += 1
                        yield Record(number, row)

    def num_rows(self) -> int | None:
        """As the file's own summary has it; `None` where there is none."""
        if not self._is_parquet:
            return None
        with _damage(), self._parquet() as file:
            count: int = file.metadata.num_rows
        return count

    def _parquet(self) -> Any:
        from pyarrow import parquet

        return parquet.ParquetFile(self._path)

    def _read_schema(self) -> pa.Schema:
        if self._is_parquet:
            with self._parquet() as file:
                return file.schema_arrow
        with self._pa.memory_map(self._path) as source, _opened(source) as reader:
            return reader.schema

    def _batches(self) -> Iterator[Any]:
        if self._is_parquet:
            with self._parquet() as file:
                yield from file.iter_batches(batch_size=READ_ROWS)
            return
        with self._pa.memory_map(self._path) as source, _opened(source) as reader:
            if hasattr(reader, "num_record_batches"):
                yield from (reader.get_batch(index) for index in range(reader.num_record_batches))
            else:
                yield from reader


def _opened(source: Any) -> Any:
    """Arrow's files begin with a mark, its streams don't; data sets of Hugging Face are streams."""
    import pyarrow as pa

    is_file = source.read(len(ARROW_MAGIC)) == ARROW_MAGIC
    source.seek(0)
    return pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source)


def write_table(
    out: Any,
    rows: Iterable[Mapping[str, Any]],
    schema: pa.Schema,
    *,
    table_format: Format,
    group_rows: int = GROUP_ROWS,
) -> None:
    """Write rows as Parquet or as an Arrow file, a row group at a time.

    Raises:
        OSError: a value doesn't fit its column.
    """
    import pyarrow as pa

    with _damage(), _writer(out, schema, table_format) as writer:
        rows = iter(rows)
        while group := list(islice(rows, group_rows)):
            arrays = [pa.array([row.get(field.name) for row in group], type=field.type) for field in schema]
            writer.write_batch(pa.record_batch(arrays, schema=schema))


def _writer(out: Any, schema: pa.Schema, table_format: Format) -> Any:
    import pyarrow as pa

    if table_format == "parquet":
        from pyarrow import parquet

        return parquet.ParquetWriter(out, schema, compression="zstd")
    return pa.ipc.new_file(out, schema)


def schema_of(columns: Mapping[str, str], kept: Sequence[Any]) -> pa.Schema:
    """The schema of a table that is written: columns of ours by Arrow's names of types, and fields that are kept."""
    import pyarrow as pa

    ours = [pa.field(name, pa.type_for_alias(alias)) for name, alias in columns.items()]
    return pa.schema([*ours, *kept])


def can_write(field: pa.Field, value: Any, table_format: Format) -> bool:
    """Whether pyarrow makes a column of this type out of Python's values, of which this is one, and writes it. It reads
    types of which it can't."""
    import pyarrow as pa

    schema = pa.schema([field.with_nullable(True)])
    try:
        with _writer(io.BytesIO(), schema, table_format) as writer:
            writer.write_batch(pa.record_batch([pa.array([value], type=field.type)], schema=schema))
    except (pa.ArrowException, ValueError, TypeError):
        return False
    return True


def pyarrow_for(table_format: Format) -> Any:
    """The package.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import pyarrow as pa
        import pyarrow.ipc
    except ModuleNotFoundError as error:
        name = "Parquet" if table_format == "parquet" else "Arrow"
        raise ConfigError(f'{name} files need pyarrow: install "mlxq[tables]"') from error
    return pa


@contextlib.contextmanager
def _damage() -> Iterator[None]:
    """pyarrow's errors, those of what is read and written, as `OSError`s of one line."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, ValueError, OverflowError) as error:
        if isinstance(error, OSError):
            raise
        raise OSError(str(error).partition("\n")[0]) from error
