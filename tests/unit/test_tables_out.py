"""Answers as tables: which columns, in which formats, in which order, and that what goes along comes out unchanged."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from tests.support.fake_worker import echo
from tests.support.result_files import file_size_limit

from mlxq.errors import ConfigError, InputFileError
from mlxq.files.input import BadLine, arrow_fields, read_requests
from mlxq.files.output.answer_table import AnswerTable, InputRow, answers_path, input_row
from mlxq.files.output.result_file import ResultWriter
from mlxq.requests.openai import ParsedLine
from mlxq.storage.spool import Spool
from mlxq.tables.columns import Columns
from mlxq.tables.flat import FlatShape

Cells = dict[str, list[Any]]


def write_csv(path: Path, cells: Cells) -> None:
    pd.DataFrame(cells, dtype=object).to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")


def write_jsonl(path: Path, cells: Cells) -> None:
    rows = [dict(zip(cells, row, strict=True)) for row in zip(*cells.values(), strict=True)]
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes({".gz": gzip.compress, ".zst": zstandard.compress}.get(path.suffix, bytes)(data))


def write_parquet(path: Path, cells: Cells) -> None:
    parquet.write_table(pa.table(cells), path)


def write_arrow(path: Path, cells: Cells) -> None:
    table = pa.table(cells)
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)


def read_csv(path: Path) -> Cells:
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    lines = io.StringIO(data.decode(), newline="")
    header, *rows = csv.reader(lines, delimiter="\t" if path.suffix == ".tsv" else ",", strict=True)
    return {name: [row[index] for row in rows] for index, name in enumerate(header)}


def read_jsonl(path: Path) -> Cells:
    data = path.read_bytes()
    if path.suffix == ".zst":
        data = zstandard.ZstdDecompressor().stream_reader(data).read()
    rows = [json.loads(line) for line in data.splitlines()]
    return {name: [row[name] for row in rows] for name in rows[0]}


def read_arrow(path: Path) -> Cells:
    with pa.ipc.open_file(path) as reader:
        cells: Cells = reader.read_all().to_pydict()
    return cells


INPUTS: dict[str, Callable[[Path, Cells], None]] = {
    "in.csv": write_csv,
    "in.tsv": write_csv,
    "in.jsonl": write_jsonl,
    "in.jsonl.gz": write_jsonl,
    "in.jsonl.zst": write_jsonl,
    "in.parquet": write_parquet,
    "in.arrow": write_arrow,
}
OUTPUTS: dict[str, Callable[[Path], Cells]] = {
    "out.csv": read_csv,
    "out.tsv": read_csv,
    "out.csv.gz": read_csv,
    "out.jsonl": read_jsonl,
    "out.jsonl.zst": read_jsonl,
    "out.parquet": lambda path: parquet.read_table(path).to_pydict(),
    "out.arrow": read_arrow,
}


def run(input_file: Path, *outputs: Path, keep: tuple[str, ...] = (), fields: str | None = None, **named: Any) -> None:
    """What `mlxq run` does for each of the outputs, with answers that repeat their prompts, and no queue."""
    folder = input_file.parent
    rows, answers, errors = Spool[InputRow](folder), folder / "out.answers.jsonl", folder / "out.errors.jsonl"
    answers.unlink(missing_ok=True)
    with ResultWriter(answers) as writer:
        for line in read_requests(input_file, columns=Columns(keep=keep, **named)):
            rows.append(input_row(line))
            if isinstance(line, ParsedLine):
                writer.append(echo(line.request, "job"))
    for output in outputs:
        assert answers_path(output) == answers
        table = AnswerTable(output, FlatShape.read(fields, keep), arrow_fields(input_file, None, keep))
        table.check()
        table.write(rows, answers, errors)


# No "\r" and no NUL: what a text file makes of them is up to whoever reads it.
texts = st.text(st.characters(exclude_characters="\r\x00", exclude_categories=["Cs"]), max_size=20)


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(
        st.tuples(st.integers(-(2**53), 2**53), texts, st.none() | texts),
        min_size=1,
        max_size=20,
        unique_by=lambda row: row[0],
    )
)
def test_every_pair_of_formats_keeps_texts_ids_and_columns(
    rows: list[tuple[int, str, str | None]], tmp_path: Path
) -> None:
    cells = {"key": [row[0] for row in rows], "ask": ["p" + row[1] for row in rows], "note": [row[2] for row in rows]}
    for source, write in INPUTS.items():
        if cells["note"] == [None] * len(rows) and write in (write_parquet, write_arrow):
            continue  # a column of no type
        # given
        write(tmp_path / source, cells)

        # when
        outputs = [tmp_path / target for target in OUTPUTS]
        run(tmp_path / source, *outputs, keep=("note",), fields="custom_id,text", prompt="ask", id="key")

        # then
        for output, read in zip(outputs, OUTPUTS.values(), strict=True):
            found = read(output)
            assert list(found) == ["custom_id", "text", "note"]
            assert found["custom_id"] == [str(key) for key in cells["key"]]
            assert found["text"] == cells["ask"]
            has_nulls = INPUTS[source] is not write_csv and read is not read_csv
            assert found["note"] == [note if has_nulls else note or "" for note in cells["note"]]


def test_a_megabyte_of_text_goes_through_every_format(tmp_path: Path) -> None:
    text = 'é,"\n\t;' * 150_000
    targets = ("out.tsv", "out.jsonl.zst", "out.parquet")
    for source in ("in.csv", "in.jsonl", "in.parquet"):
        INPUTS[source](tmp_path / source, {"prompt": [text], "note": [text]})
        run(tmp_path / source, *(tmp_path / target for target in targets), keep=("note",), prompt="prompt")
        for target in targets:
            found = OUTPUTS[target](tmp_path / target)
            assert (found["text"], found["note"]) == ([text], [text])


def test_columns_of_parquet_keep_their_types(tmp_path: Path) -> None:
    table = pa.table(
        {
            "prompt": ["a", "b"],
            "day": [date(2026, 1, 2), None],
            "at": pa.array([datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC), None], pa.timestamp("us", "UTC")),
            "price": [Decimal("1.50"), None],
            "raw": [b"\xff\x00", None],
            "tags": [["x", None], None],
            "kind": pa.array(["k", "k"]).dictionary_encode(),
            "small": pa.array([1, None], pa.int8()),
        }
    )
    parquet.write_table(table, tmp_path / "in.parquet")
    keep = tuple(table.column_names[1:])
    run(tmp_path / "in.parquet", tmp_path / "out.parquet", keep=keep, prompt="prompt")
    found = parquet.read_table(tmp_path / "out.parquet").select(keep)
    assert found.to_pydict() == table.select(keep).to_pydict()
    assert found.schema.remove_metadata() == parquet.read_schema(tmp_path / "in.parquet").remove(0).remove_metadata()


UNWRITABLE: dict[str, tuple[pa.Array, list[Any]]] = {
    "categories of polars": (
        pa.DictionaryArray.from_arrays(pa.array([None, 0], pa.uint32()), pa.array(["a"], pa.string_view())),
        [None, "a"],
    ),
    "booleans in bytes": (pa.ExtensionArray.from_storage(pa.bool8(), pa.array([None, 1], pa.int8())), [None, True]),
    "values of several types": (
        pa.UnionArray.from_sparse(pa.array([0, 1], pa.int8()), [pa.array([1, 2]), pa.array(["x", "y"])]),
        ["1", "y"],
    ),
}


@pytest.mark.parametrize("target", ["out.parquet", "out.arrow"])
@pytest.mark.parametrize("case", UNWRITABLE)
def test_columns_that_pyarrow_only_reads_are_written_as_what_they_hold(case: str, target: str, tmp_path: Path) -> None:
    column, held = UNWRITABLE[case]
    write_arrow(tmp_path / "in.arrow", {"prompt": ["a", "b"], "kept": column})
    run(tmp_path / "in.arrow", tmp_path / target, keep=("kept",), prompt="prompt")
    assert OUTPUTS[target](tmp_path / target)["kept"] == held


@pytest.mark.parametrize("target", ["out.csv", "out.jsonl"])
def test_bytes_are_text_where_a_format_has_text_only(target: str, tmp_path: Path) -> None:
    write_parquet(tmp_path / "in.parquet", {"prompt": ["a", "b"], "raw": ["café".encode(), b"\xff\x00"]})
    run(tmp_path / "in.parquet", tmp_path / target, keep=("raw",), prompt="prompt")
    assert OUTPUTS[target](tmp_path / target)["raw"] == ["café", "/wA="]


def test_the_columns_that_most_need_are_there_by_default_and_have_types(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in.jsonl", {"id": ["a"], "prompt": ["hello"]})
    run(tmp_path / "in.jsonl", tmp_path / "out.parquet")
    table = parquet.read_table(tmp_path / "out.parquet")
    assert table.to_pylist() == [
        {
            "custom_id": "a",
            "text": "hello",
            "finish_reason": "stop",
            "stop_type": "eos_token",
            "stop_token": "<end>",
            "prompt_tokens": 5,
            "completion_tokens": 3,
            "seed": 1,
            "error": None,
        }
    ]
    assert {str(table.schema.field(name).type) for name in ("error", "seed")} == {"string", "int64"}


def test_rows_are_those_of_the_input_in_its_order_with_their_errors(tmp_path: Path) -> None:
    # given a second use of an id and a bad row, and failures and answers in the files
    lines = ['{"id": "b", "prompt": "x"}', '{"id": "b", "prompt": "y"}', "{oops", '{"id": "a", "prompt": "z"}']
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    rows = Spool[InputRow](tmp_path)
    items = list(read_requests(tmp_path / "in.jsonl"))
    for item in items:
        rows.append(input_row(item))
    with ResultWriter(tmp_path / "out.answers.jsonl") as writer:
        for custom_id, text in [("a", "old"), ("stranger", "x"), ("a", "new")]:
            [line] = read_requests(write_one(tmp_path, custom_id, text))
            assert isinstance(line, ParsedLine)
            writer.append(echo(line.request, "job"))
    with ResultWriter(tmp_path / "out.errors.jsonl") as writer:
        writer.append({"custom_id": "b", "response": None, "error": {"code": "worker_crashed", "message": "It died."}})

    # when
    table = AnswerTable(tmp_path / "out.csv", FlatShape.read("custom_id,text,error"))
    table.write(rows, tmp_path / "out.answers.jsonl", tmp_path / "out.errors.jsonl")

    # then
    assert [isinstance(item, BadLine) for item in items] == [False, True, True, False]
    found = read_csv(tmp_path / "out.csv")
    assert (found["custom_id"], found["text"]) == (["b", "b", "line-3", "a"], ["", "", "", "new"])
    assert [error.partition(":")[0] for error in found["error"]] == [
        *("worker_crashed", "duplicate_custom_id", "invalid_json", "")
    ]


def write_one(folder: Path, custom_id: str, prompt: str) -> Path:
    path = folder / "one.jsonl"
    path.write_text(json.dumps({"id": custom_id, "prompt": prompt}))
    return path


def test_each_of_several_choices_has_a_row() -> None:
    choices = [
        {"index": 0, "text": "x", "stop_details": {"type": "stop_string", "string": "\n"}, "stop_reason": 7, "seed": 3},
        {
            "index": 1,
            "message": {"content": None, "reasoning_content": "hm", "tool_calls": [{"function": {"name": "f"}}]},
            "error": {"code": "oom", "message": "No."},
        },
    ]
    line = {"custom_id": "a", "response": {"status_code": 200, "body": {"choices": choices, "model": "m"}}}
    shape = FlatShape.read("index,said=text,stop_reason,stop_string,reasoning_content,tool_calls,seed,model,error")
    assert [list(row.values()) for row in shape.rows(line, {})] == [
        [0, "x", "7", "\n", None, None, 3, "m", None],
        [1, None, None, None, "hm", '[{"name": "f"}]', None, "m", "oom: No."],
    ]


WRONG: dict[str, tuple[str | None, tuple[str, ...], str]] = {
    "an unknown field": ("custom_id,texts", (), "there is no field 'texts'; there are custom_id, index, text"),
    "a column twice": ("text", ("text",), "two columns 'text'.*answer=text"),
    "a field twice": ("text,text", (), "two columns 'text'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_columns_that_can_not_be_are_named(case: str) -> None:
    fields, kept, said = WRONG[case]
    with pytest.raises(ConfigError, match=said):
        FlatShape.read(fields, kept)


@pytest.mark.parametrize(("name", "said"), [("out.parquet.gz", "packed inside"), ("out.xlsx", "a table of answers is")])
def test_names_of_no_format_are_refused(name: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        AnswerTable(tmp_path / name, FlatShape.read(None)).check()


def test_a_table_of_somebody_else_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    path.write_text("a,b\n")
    with pytest.raises(ConfigError, match=r"out\.csv is there already, and out\.answers\.jsonl is not"):
        AnswerTable(path, FlatShape.read(None)).check()


def test_a_full_disk_leaves_the_old_table(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in.jsonl", {"id": ["a", "b"], "prompt": ["x" * 3000] * 2})
    run(tmp_path / "in.jsonl", tmp_path / "out.csv")
    before = (tmp_path / "out.csv").read_bytes()
    answers = tmp_path / "out.answers.jsonl"
    rows = Spool[InputRow](tmp_path)
    rows.append(InputRow("a", {"note": "y" * 100_000}))
    table = AnswerTable(tmp_path / "out.csv", FlatShape.read(None, ("note",)))
    with file_size_limit(50_000), pytest.raises(InputFileError, match=r"can't write .*out\.csv"):
        table.write(rows, answers, tmp_path / "none")
    assert (tmp_path / "out.csv").read_bytes() == before
