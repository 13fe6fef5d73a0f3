"""Files that are no files of requests, as other programs write them: one error that says what they seem to be."""

from __future__ import annotations

import bz2
import csv
import io
import json
import lzma
import pickle
import sqlite3
import sys
import zipfile
from pathlib import Path

import pytest
from tests.support.result_files import request_file

from mlxq.errors import InputFileError
from mlxq.files.input import BadLine, read_requests
from mlxq.requests.openai import ParsedLine
from mlxq.tables.columns import Columns

REQUESTS = [{"custom_id": f"r{i}", "prompt": f"Say, hello; {i}", "max_tokens": 5} for i in range(40)]
JSONL = "".join(json.dumps(request) + "\n" for request in REQUESTS)
BATCH = [{"custom_id": "r", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": []}}] * 3


def zipped(name: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, JSONL)
    return buffer.getvalue()


def table(delimiter: str) -> bytes:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(REQUESTS[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(REQUESTS)
    return buffer.getvalue().encode()


def database(directory: Path) -> bytes:
    path = directory / "db"
    with sqlite3.connect(path) as connection:
        connection.execute("create table requests (prompt text)")
    connection.close()
    return path.read_bytes()


WHOLE_FILES: dict[str, tuple[bytes, str]] = {
    "bzip2": (bz2.compress(JSONL.encode()), "bzip2"),
    "xz": (lzma.compress(JSONL.encode()), "xz"),
    "zip": (zipped("in.jsonl"), "zip"),
    "Excel": (zipped("xl/workbook.xml"), "xlsx"),
    "Feather of pandas before 2020": (b"FEA1" + bytes(range(200)), "Feather"),
    "pickle": (pickle.dumps(REQUESTS), "pickle"),
    "UTF-16": (JSONL.encode("utf-16"), "UTF-16.*save it as UTF-8"),
    "UTF-16 without a mark": (JSONL.encode("utf-16-le"), "UTF-16"),
    "a program": (b"\x7fELF\x02\x01\x01" + bytes(9) + b'a "quoted" word' + bytes(range(200)), "binary data"),
    "UTF-32": (JSONL.encode("utf-32"), "UTF-32"),
    "CSV": (table(","), r"table \(CSV\).*call it \.csv, or add --format csv"),
    "CSV with a mark, from Excel": (b"\xef\xbb\xbf" + table(";"), "CSV with semicolons"),
    "TSV": (table("\t"), "TSV"),
    "json.dump": (json.dumps(REQUESTS).encode(), r"a JSON array.*jq -c '\.\[\]'"),
    "to_json of pandas, larger than what is looked at": (json.dumps(REQUESTS * 100).encode(), "a JSON array"),
    "json.dump with indent": (json.dumps(BATCH, indent=2).encode(), "a JSON array"),
    "an array with a line for each element": (
        b"[" + b",\n".join(json.dumps(each).encode() for each in REQUESTS) + b"]",
        "a JSON array",
    ),
    "DuckDB's array, whose last line is an object": (
        b"[\n\t" + b",\n\t".join(json.dumps(each).encode() for each in REQUESTS) + b"\n]\n",
        "a JSON array",
    ),
    "an array of one": (b'[\n{"prompt": "a"}\n]\n', "a JSON array"),
    "jq without -c": (
        b"".join(json.dumps(each, indent=2).encode() + b"\n" for each in BATCH),
        "several lines.*jq -c .",
    ),
    "one pretty request": (json.dumps(BATCH[0], indent=4).encode(), "several lines"),
    "a web page": (b"<!DOCTYPE html>\n<html><head><title>404</title></head></html>", "HTML"),
    "XML": (b"<?xml version='1.0'?>\n<requests/>", "XML"),
    "an error of S3": (b"<Error><Code>AccessDenied</Code></Error>", "XML"),
    "Python's print": ("\n".join(map(str, REQUESTS)).encode(), "json.dumps"),
    "prompts": (b"What is a cat?\nWhat is a dog?\nWhy\n", "plain text.*--format text"),
    "YAML": (b"- custom_id: a\n  prompt: x\n- custom_id: b\n  prompt: y\n", "plain text"),
}


@pytest.mark.parametrize("kind", WHOLE_FILES)
def test_a_file_of_another_kind_is_one_error_that_says_what_it_is(kind: str, tmp_path: Path) -> None:
    content, said = WHOLE_FILES[kind]
    path = request_file(tmp_path, content)
    with pytest.raises(InputFileError, match=f"^{path} is .*{said}"):
        read_requests(path)


NO_TABLES = ["bzip2", "xz", "zip", "Excel", "pickle", "UTF-16", "UTF-16 without a mark", "UTF-32", "a program"]


@pytest.mark.parametrize("name", ["in.csv", "in.tsv"])
@pytest.mark.parametrize("kind", NO_TABLES)
def test_a_table_in_name_only_is_one_error_that_says_what_it_is(kind: str, name: str, tmp_path: Path) -> None:
    content, said = WHOLE_FILES[kind]
    path = request_file(tmp_path, content, name)
    with pytest.raises(InputFileError, match=f"^{path} is .*{said}"):
        list(read_requests(path))


@pytest.mark.parametrize("start", ["ORC", "%PDF", "Obj", "BZh", "7z"])
def test_a_table_may_begin_with_any_text(start: str, tmp_path: Path) -> None:
    path = request_file(tmp_path, f"{start},prompt\n1,a\n".encode(), "in.csv")
    [item] = read_requests(path, columns=Columns(prompt="prompt"))
    assert isinstance(item, ParsedLine)


def test_a_database_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match="SQLite"):
        read_requests(request_file(tmp_path, database(tmp_path)))


@pytest.mark.parametrize("kind", ["bzip2", "CSV", "json.dump", "prompts"])
def test_standard_input_of_another_kind_is_one_error_too(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    content, said = WHOLE_FILES[kind]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    with pytest.raises(InputFileError, match=f"^standard input is .*{said.partition('.*')[0]}"):
        list(read_requests("-"))


WITH_BAD_LINES: dict[str, tuple[bytes, int]] = {
    "a good line behind two of text": (b'some text\nmore, text\nand, more\n{"prompt": "x"}\n', 3),
    "an array among lines": (b'["x"]\n{"prompt": "x"}\n', 1),
    "a broken line alone": (b'{"prompt": "x"\n', 1),
    "broken lines with commas": (b'{"prompt": "x", "a"\n{"prompt": "y", "b"\n{"prompt": "z", "c"\n', 3),
    "one line of text": (b"hello\n", 1),
    "two strings": (b'"a"\n"b"\n"c"\n', 3),
    "numbers": (b"1\n2\n", 2),
}


@pytest.mark.parametrize("case", WITH_BAD_LINES)
def test_bad_lines_in_a_file_of_requests_cost_only_themselves(case: str, tmp_path: Path) -> None:
    content, num_bad = WITH_BAD_LINES[case]
    items = list(read_requests(request_file(tmp_path, content)))
    assert [type(item) for item in items].count(BadLine) == num_bad


@pytest.mark.parametrize(
    "text", ["ORC armies", "%PDF is what?", "BZh", "a,b\nc,d\ne,f", "[1]\n[2]", "<html> means?", "PAR1é"]
)
def test_prompts_may_begin_as_they_like(text: str, tmp_path: Path) -> None:
    items = list(read_requests(request_file(tmp_path, text, "in.txt")))
    assert [item.request.prompt for item in items if isinstance(item, ParsedLine)] == text.split("\n")


@pytest.mark.parametrize("kind", ["bzip2", "zip", "Excel", "Feather of pandas before 2020", "UTF-16", "xz"])
def test_prompts_that_are_no_text_are_one_error(kind: str, tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match=" is "):
        read_requests(request_file(tmp_path, WHOLE_FILES[kind][0], "in.txt"))


def test_a_closed_standard_input_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(InputFileError, match="standard input is closed"):
        list(read_requests("-"))
