"""Tables as spreadsheets, databases and data frames write them: how they are read, and which columns count."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet
from tests.support.result_files import request_file

from mlxq.errors import ConfigError, InputFileError
from mlxq.files.input import BadLine, count_requests, read_requests
from mlxq.requests.openai import ParsedLine
from mlxq.tables.columns import Columns
from mlxq.tables.template import PromptTemplate

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": 'Hallo, "du"\nda'}]


def read(path: Path, **options: Any) -> list[ParsedLine | BadLine]:
    named = {name: options.pop(name) for name in ("prompt", "messages", "id", "template", "keep") if name in options}
    return list(read_requests(path, columns=Columns(**named), **options))


def good(path: Path, **options: Any) -> list[ParsedLine]:
    items = read(path, **options)
    assert [item for item in items if isinstance(item, BadLine)] == []
    return [item for item in items if isinstance(item, ParsedLine)]


def prompts(path: Path, **options: Any) -> dict[str, Any]:
    return {item.request.custom_id: item.request.prompt for item in good(path, **options)}


# --- Of all formats -------------------------------------------------------------------------------------------

LONG = "x" * 10_000


def long_rows() -> dict[str, Callable[[Path], Path]]:
    frame = pd.DataFrame({"id": ["a"], "prompt": [LONG], "note": ["x"]})

    def to_parquet(folder: Path) -> Path:
        frame.to_parquet(folder / "in.parquet")
        return folder / "in.parquet"

    chat = json.dumps({"id": "a", "messages": [{"role": "user", "content": LONG}], "note": "x"})
    return {
        "CSV": lambda folder: request_file(folder, frame.to_csv(index=False), "in.csv"),
        "Parquet": to_parquet,
        "JSON lines": lambda folder: request_file(folder, f"{chat}\n", "in.jsonl"),
        "text": lambda folder: request_file(folder, f"{LONG}\n", "in.txt"),
    }


@pytest.mark.parametrize("kind", long_rows())
@pytest.mark.parametrize("options", [{"keep": ("note",)}, {"keep": ("note",), "id": "id"}], ids=["kept", "named"])
def test_how_long_a_request_is_is_known_whatever_it_was_read_from(
    kind: str, options: dict[str, Any], tmp_path: Path
) -> None:
    [line] = good(long_rows()[kind](tmp_path), **({} if kind == "text" else options))

    assert len(LONG) <= line.num_bytes < 1.1 * len(LONG)


# --- Text -----------------------------------------------------------------------------------------------------

CSV: dict[str, tuple[bytes, str]] = {
    "pandas": (pd.DataFrame({"id": [1, 2], "prompt": ['a, "b"\nc', "é"]}).to_csv(index=False).encode(), "in.csv"),
    "pandas with its index": (pd.DataFrame({"id": [1, 2], "prompt": ['a, "b"\nc', "é"]}).to_csv().encode(), "in.csv"),
    "Excel, UTF-8": (b'\xef\xbb\xbfid;prompt\r\n1;"a, ""b""\nc"\r\n2;\xc3\xa9\r\n', "in.csv"),
    "Excel with its first line": (b'sep=;\r\nid;prompt\r\n1;"a, ""b""\nc"\r\n2;\xc3\xa9\r\n', "in.csv"),
    "duckdb": (b'id,prompt\n1,"a, ""b""\nc"\n2,\xc3\xa9\n', "in.csv"),
    "everything in quotes (PostgreSQL, force_quote *)": (
        b'"id","prompt"\n"1","a, ""b""\nc"\n"2","\xc3\xa9"\n',
        "in.csv",
    ),
    "TSV": (b'id\tprompt\n1\t"a, ""b""\nc"\n2\t\xc3\xa9\n', "in.tsv"),
    "without a last newline, with blank lines": (b'id,prompt\n\n1,"a, ""b""\nc"\n\n2,\xc3\xa9', "in.CSV"),
    "bars": (b'id|prompt\n1|"a, ""b""\nc"\n2|\xc3\xa9\n', "in.csv"),
}


@pytest.mark.parametrize("whose", CSV)
def test_csv_is_read_as_others_write_it(whose: str, tmp_path: Path) -> None:
    content, name = CSV[whose]
    assert prompts(request_file(tmp_path, content, name)) == {"1": 'a, "b"\nc', "2": "é"}


def test_columns_that_are_fields_count_as_on_a_line_and_empty_cells_say_nothing(tmp_path: Path) -> None:
    table = 'id,prompt,max_tokens,temperature,stop,ignore_eos,user\na,x,5,0.5,"[""\\n"", ""b""]",True,17\nb,y,,,.,,\n'
    first, second = good(request_file(tmp_path, table, "in.csv"))
    assert first.payload["body"] == {
        "prompt": "x",
        "max_tokens": 5,
        "temperature": 0.5,
        "stop": ["\n", "b"],
        "ignore_eos": True,
        "user": "17",
    }
    assert second.payload["body"] == {"prompt": "y", "stop": "."}


def test_a_ragged_row_and_one_that_is_not_utf8_cost_themselves_and_name_their_lines(tmp_path: Path) -> None:
    table = b'id,prompt\na,"1\n2"\nb,2,3\nc\nd,\xff\ne,5\n'
    items = read(request_file(tmp_path, table, "in.csv"))
    assert [(item.line_number, item.error.code) for item in items if isinstance(item, BadLine)] == [
        (4, "ragged_row"),
        (5, "ragged_row"),
        (6, "invalid_encoding"),
    ]
    assert [item.request.prompt for item in items if isinstance(item, ParsedLine)] == ["1\n2", "5"]


def test_a_prompt_of_a_megabyte_is_read(tmp_path: Path) -> None:
    text = 'a"\n' * 350_000
    [item] = good(request_file(tmp_path, pd.DataFrame({"prompt": [text]}).to_csv(index=False), "in.csv"))
    assert item.request.prompt == text


# --- Parquet and Arrow ----------------------------------------------------------------------------------------

TABLE = pa.table({"id": [7, 8], "prompt": ["a\nb", "é"], "label": [None, "x"]})


def arrow_file(path: Path, table: pa.Table = TABLE) -> Path:
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)
    return path


def arrow_stream(path: Path, table: pa.Table = TABLE) -> Path:
    with pa.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table)
    return path


def parquet_file(path: Path, table: pa.Table = TABLE) -> Path:
    parquet.write_table(table, path)
    return path


WRITERS: dict[str, Callable[[Path], Path]] = {
    "pyarrow": lambda folder: parquet_file(folder / "in.parquet"),
    "pyarrow, called otherwise": lambda folder: parquet_file(folder / "in.jsonl"),
    "dictionaries and large strings": lambda folder: parquet_file(
        folder / "in.pq",
        TABLE.set_column(1, "prompt", pa.chunked_array([TABLE["prompt"].combine_chunks().dictionary_encode()])).cast(
            pa.schema({"id": pa.uint8(), "prompt": pa.dictionary(pa.int32(), pa.string()), "label": pa.large_string()})
        ),
    ),
    "Arrow's file (Feather)": lambda folder: arrow_file(folder / "in.feather"),
    "Arrow's stream (Hugging Face)": lambda folder: arrow_stream(folder / "in.arrow"),
}


@pytest.mark.parametrize("whose", WRITERS)
def test_parquet_and_arrow_are_read_as_others_write_them(whose: str, tmp_path: Path) -> None:
    assert prompts(WRITERS[whose](tmp_path), prompt="prompt") == {"7": "a\nb", "8": "é"}


def test_parquet_of_pandas_with_an_index_of_its_own_is_read(tmp_path: Path) -> None:
    frame = pd.DataFrame({"prompt": ["a", "b"], "max_tokens": [3.0, None]}, index=[5, 9])
    frame.to_parquet(tmp_path / "in.parquet")
    assert [item.payload["body"] for item in good(tmp_path / "in.parquet")] == [
        {"prompt": "a", "max_tokens": 3.0},
        {"prompt": "b"},
    ]


def test_conversations_are_lists_of_structs_or_json(tmp_path: Path) -> None:
    nested = pa.table({"id": ["a"], "chat": [CHAT]})
    frame = pd.DataFrame({"id": ["a"], "chat": [json.dumps(CHAT)]})
    paths = [
        parquet_file(tmp_path / "in.parquet", nested),
        parquet_file(tmp_path / "text.parquet", pa.Table.from_pandas(frame)),
        request_file(tmp_path, frame.to_csv(index=False), "in.csv"),
        request_file(tmp_path, json.dumps({"id": "a", "chat": CHAT}), "in.jsonl"),
    ]
    hashes = {item.request.content_hash for path in paths for item in good(path, messages="chat")}
    assert len(hashes) == 1


def test_the_rows_of_a_parquet_file_are_counted_without_reading_them(tmp_path: Path) -> None:
    path = parquet_file(tmp_path / "in.parquet")
    lines = request_file(tmp_path, "a\nb\n", "in.txt")
    assert (count_requests([path, lines]), count_requests([path, request_file(tmp_path, "a", "in.csv")])) == (4, None)


# --- Which columns count --------------------------------------------------------------------------------------


def test_named_columns_alone_count_also_on_lines_of_data(tmp_path: Path) -> None:
    line = '{"key": 1.0, "question": "Who?", "temperature": "cold", "prompt": "not this"}'
    [item] = good(request_file(tmp_path, line), prompt="question", id="key")
    assert (item.request.custom_id, item.payload["body"]) == ("1", {"prompt": "Who?"})


def test_a_system_message_goes_before_conversations_without_one(tmp_path: Path) -> None:
    table = pa.table({"chat": [CHAT, CHAT[1:]]})
    items = good(parquet_file(tmp_path / "in.parquet", table), messages="chat", system="Be kind.")
    firsts = [next(iter(item.request.messages or ())) for item in items]
    assert [message["content"] for message in firsts] == ["Be brief.", "Be kind."]
    [text] = good(request_file(tmp_path, "hi\n", "in.txt"), system="Be kind.")
    assert text.request.messages == ({"role": "system", "content": "Be kind."}, {"role": "user", "content": "hi"})
    [bad] = read(request_file(tmp_path, '{"prompt": "hi"}'), system="Be kind.")
    assert isinstance(bad, BadLine)


def test_a_template_makes_the_prompt_of_a_row(tmp_path: Path) -> None:
    source = "{{ text }} <{{ row['my label'] }}> {{ note }}{% if extra is defined %}!{% endif %}{{ [text] | tojson }}\n"
    table = request_file(tmp_path, 'text,my label,note\n"a & ""b""",x,\n', "in.csv")
    [item] = good(table, template=PromptTemplate(source), chat_text=True)
    assert item.request.messages == ({"role": "user", "content": 'a & "b" <x> ["a & \\"b\\""]'},)
    [null] = good(parquet_file(tmp_path / "in.parquet"), template=PromptTemplate("[{{ label }}]"), id="id")[:1]
    assert null.request.prompt == "[]"


def test_a_template_that_names_a_missing_column_names_it_with_its_line(tmp_path: Path) -> None:
    template = PromptTemplate("{{ text }}\n{{ txet }}\n")
    table = request_file(tmp_path, "text\na\n", "in.csv")
    with pytest.raises(InputFileError, match=r"line 2 of the template names the column txet, .*; it has text"):
        read(table, template=template)
    [bad] = read(request_file(tmp_path, '{"text": "a"}'), template=template)
    assert isinstance(bad, BadLine)
    assert bad.error.message == "line 2 of the template names the column txet, which this row doesn't have"


@pytest.mark.parametrize(
    "source",
    ["{{ ''.__class__.__mro__ }}", "{% for i in range(10 ** 9) %}{% endfor %}", "{{ row.clear() }}", "{{ 1 / 0 }}"],
)
def test_a_template_that_goes_too_far_costs_its_row(source: str, tmp_path: Path) -> None:
    [bad] = read(request_file(tmp_path, "text\na\n", "in.csv"), template=PromptTemplate(source))
    assert isinstance(bad, BadLine)
    assert bad.error.param == "template"


def test_what_is_no_template_is_named_with_its_line() -> None:
    with pytest.raises(ConfigError, match="line 2 of the template"):
        PromptTemplate("{{ a }}\n{% if %}")


# --- What is wrong with a whole table -------------------------------------------------------------------------

WRONG: dict[str, tuple[Callable[[Path], Path], dict[str, Any], str]] = {
    "no such column": (
        lambda f: parquet_file(f / "in.parquet"),
        {"prompt": "text"},
        "--prompt-column.*text.*it has id",
    ),
    "no such id": (lambda f: parquet_file(f / "in.parquet"), {"prompt": "prompt", "id": "key"}, "--id-column.*key"),
    "nothing to ask": (lambda f: request_file(f, "a,b\n1,2\n", "in.csv"), {}, "--prompt-column"),
    "a column of the user's": (
        lambda f: parquet_file(f / "in.parquet"),
        {},
        "the column label is no field of a request: .*--prompt-column prompt.*--keep label",
    ),
    "a name twice": (lambda f: request_file(f, "prompt,prompt\n1,2\n", "in.csv"), {}, "two columns.*'prompt'"),
    "nothing": (lambda f: request_file(f, "", "in.csv"), {}, "no first line"),
    "an open quote": (lambda f: request_file(f, 'prompt\na\n"b\nc\n', "in.csv"), {}, "line 3 is not CSV"),
    "lines of old Macs": (
        lambda f: request_file(f, b"id,prompt\r1,a\r2,b\r", "in.csv"),
        {},
        "a carriage return that no",
    ),
    "no Parquet": (lambda f: request_file(f, "prompt\na\n", "in.parquet"), {}, "can't read .*in.parquet: Parquet"),
    "Parquet cut off": (
        lambda f: request_file(f, parquet_file(f / "x.parquet").read_bytes()[:-9], "in.parquet"),
        {},
        "can't read .*in.parquet: ",
    ),
    "no Arrow": (lambda f: request_file(f, b"ARROW1\0\0" + bytes(50), "in.arrow"), {}, "can't read .*in.arrow: "),
    "a folder": (lambda f: f, {"input_format": "csv"}, "can't read .*: Is a directory"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_with_a_table_as_a_whole_is_one_sentence(case: str, tmp_path: Path) -> None:
    make, options, said = WRONG[case]
    with pytest.raises(InputFileError, match=said) as caught:
        read(make(tmp_path), **options)
    assert "\n" not in str(caught.value)


def test_ids_that_are_there_twice_cost_the_second_and_name_the_files(tmp_path: Path) -> None:
    first = request_file(tmp_path, "id,prompt\na,1\na,2\n", "in.csv")
    second = request_file(tmp_path, '{"id": "a", "prompt": "3"}', "more.jsonl")
    messages = [item.error.message for item in read_requests([first, second]) if isinstance(item, BadLine)]
    assert messages == [
        "line 3 of in.csv has the custom_id of line 2 of in.csv: every id must be used once",
        "line 1 of more.jsonl has the custom_id of line 2 of in.csv: every id must be used once",
    ]


def test_a_table_from_a_pipe_is_read_if_it_is_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"prompt\na\n")))
    [item] = list(read_requests("-", input_format="csv"))
    assert isinstance(item, ParsedLine)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"PAR1")))
    with pytest.raises(InputFileError, match="standard input is a pipe"):
        list(read_requests("-"))


def test_without_pyarrow_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = parquet_file(tmp_path / "in.parquet")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r'Parquet files need pyarrow: install "mlxq\[tables\]"'):
        read_requests(path)
