"""Requests read from files: formats, ids, and lines that can't be accepted."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import pytest
from tests.support.result_files import request_file, written

from mlxq.errors import ConfigError, InputFileError
from mlxq.files.input import BadLine, read_requests
from mlxq.requests.openai import ParsedLine
from mlxq.results import result_lines


def good(items: list[ParsedLine | BadLine]) -> list[ParsedLine]:
    return [item for item in items if isinstance(item, ParsedLine)]


def bad(items: list[ParsedLine | BadLine]) -> list[BadLine]:
    return [item for item in items if isinstance(item, BadLine)]


def ids(path: Path) -> list[str]:
    return [item.request.custom_id for item in good(list(read_requests(path)))]


def test_requests_are_read_with_their_ids_or_ids_from_their_content(tmp_path: Path) -> None:
    path = request_file(tmp_path, '{"prompt": "a"}\n\n  \n{"custom_id": "x", "prompt": "b"}\n{"prompt": "c"}')
    items = good(list(read_requests(path)))
    assert [(item.request.custom_id, item.request.prompt) for item in items] == [
        (f"row-{items[0].request.content_hash[:16]}", "a"),
        ("x", "b"),
        (f"row-{items[2].request.content_hash[:16]}", "c"),
    ]


def test_a_line_that_is_put_on_top_changes_the_ids_of_no_other(tmp_path: Path) -> None:
    before = ids(request_file(tmp_path, "a\nb\nc\n", "in.txt"))
    assert ids(request_file(tmp_path, "new\na\nb\nc\n", "in.txt"))[1:] == before


def test_requests_for_the_same_are_told_apart_by_their_order(tmp_path: Path) -> None:
    first, *others = ids(request_file(tmp_path, '{"prompt": "a"}\n{"prompt": "a", "temperature": 1}\n' * 2))
    assert others == [f"{first}-{number}" for number in (2, 3, 4)]


def test_a_byte_order_mark_and_crlf_are_accepted(tmp_path: Path) -> None:
    content = b'\xef\xbb\xbf{"prompt": "a"}\r\n\r\n{"prompt": "b"}\r\n'
    items = list(read_requests(request_file(tmp_path, content)))
    assert [item.request.prompt for item in good(items)] == ["a", "b"]
    assert bad(items) == []


def test_text_files_hold_one_prompt_per_line(tmp_path: Path) -> None:
    path = request_file(tmp_path, b"\xef\xbb\xbf  first \r\n\r\n{third}\n", "in.TXT")
    items = good(list(read_requests(path, defaults={"max_tokens": 3})))
    assert [item.request.prompt for item in items] == ["  first ", "{third}"]
    assert {item.request.sampling.max_tokens for item in items} == {3}


def test_the_format_and_chat_can_be_forced(tmp_path: Path) -> None:
    path = request_file(tmp_path, "hello\n")
    [item] = good(list(read_requests(path, input_format="text", chat_text=True)))
    assert item.request.messages == ({"role": "user", "content": "hello"},)


def test_standard_input_is_read_as_json_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"prompt": "a"}\n')))
    [item] = good(list(read_requests("-")))
    assert item.request.prompt == "a"


def test_a_bad_line_costs_only_itself_and_keeps_its_id(tmp_path: Path) -> None:
    content = b'{"custom_id": "a", "stream": true, "prompt": "x"}\n{oops\n{"prompt": "\xff"}\n{"prompt": "ok"}\n'
    items = list(read_requests(request_file(tmp_path, content)))
    assert [(item.line_number, item.custom_id, item.error.code) for item in bad(items)] == [
        (1, "a", "unsupported_field"),
        (2, "line-2", "invalid_json"),
        (3, "line-3", "invalid_json"),
    ]
    assert [item.request.prompt for item in good(items)] == ["ok"]


def test_a_bad_line_has_an_answer(tmp_path: Path) -> None:
    [item] = bad(list(read_requests(request_file(tmp_path, '{"custom_id": "a", "stream": true, "prompt": "x"}'))))
    line = result_lines.failure_line(item.failure())
    assert (line["custom_id"], line["response"]["status_code"]) == ("a", 400)


def test_text_that_is_not_utf8_is_a_bad_line(tmp_path: Path) -> None:
    [item] = bad(list(read_requests(request_file(tmp_path, b"\xff\n", "in.txt"))))
    assert (item.custom_id, item.error.code) == ("line-1", "invalid_encoding")


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("name", ["in.jsonl", "in.txt"])
def test_a_utf16_file_is_refused_as_a_whole(tmp_path: Path, encoding: str, name: str) -> None:
    path = request_file(tmp_path, '\ufeff{"prompt": "a"}\n{"prompt": "b"}\n'.encode(encoding), name)
    with pytest.raises(InputFileError, match="save it as UTF-8"):
        list(read_requests(path))


def test_a_second_use_of_an_id_is_refused_and_names_both_lines(tmp_path: Path) -> None:
    # given an id used twice, also by a line that is bad
    lines = ['{"id": "a", "prompt": "x"}', '{"prompt": "y"}', '{"id": "a", "prompt": "z"}', '{"id": "a"}']

    # when
    items = list(read_requests(request_file(tmp_path, "\n".join(lines))))

    # then
    assert len(good(items)) == 2
    assert [(item.custom_id, item.error.code) for item in bad(items)] == [("a", "duplicate_custom_id")] * 2
    assert bad(items)[0].error.message == "line 3 has the custom_id of line 1: every id must be used once"


@pytest.mark.parametrize("nameless", ["{oops", '{"promt": "x"}'])
def test_a_bad_line_without_an_id_takes_the_id_of_no_other(nameless: str, tmp_path: Path) -> None:
    lines = [nameless, '{"id": "line-1", "prompt": "x"}', '{"id": "line-4", "prompt": "y"}', nameless]
    items = list(read_requests(request_file(tmp_path, "\n".join(lines))))
    assert [item.request.custom_id for item in good(items)] == ["line-1", "line-4"]
    assert [(item.custom_id, item.owns_id) for item in bad(items)] == [("line-1", False), ("line-4+", False)]


def test_a_line_without_an_id_makes_way_for_an_earlier_one_with_its_name(tmp_path: Path) -> None:
    [made_up] = ids(request_file(tmp_path, "z", "in.txt"))
    lines = [f'{{"id": "{made_up}", "prompt": "x"}}', f'{{"id": "{made_up}-2", "prompt": "y"}}', '{"prompt": "z"}']
    assert ids(request_file(tmp_path, "\n".join(lines))) == [made_up, f"{made_up}-2", f"{made_up}-3"]


@pytest.mark.parametrize("name", ["in.jsonl", "in.txt"])
def test_an_endless_line_is_refused_and_the_next_one_is_read(name: str, tmp_path: Path) -> None:
    # given a line several times as long as the limit
    content = '{"prompt": "' + "x" * 500 + '"}\n{"prompt": "ok"}\n'

    # when
    items = list(read_requests(request_file(tmp_path, content, name), max_line_bytes=100))

    # then
    assert [(item.line_number, item.error.code) for item in bad(items)] == [(1, "line_too_long")]
    assert len(good(items)) == 1


def test_a_line_of_exactly_the_limit_is_read(tmp_path: Path) -> None:
    line = b'{"prompt": "aaaa"}'
    content = b"\xef\xbb\xbf" + line + b"\r\n" + line[:-2] + b'a"}'
    items = list(read_requests(request_file(tmp_path, content), max_line_bytes=len(line)))
    assert [type(item) for item in items] == [ParsedLine, BadLine]


def test_reading_is_lazy(tmp_path: Path) -> None:
    fifo = tmp_path / "in.jsonl"
    os.mkfifo(fifo)
    descriptor = os.open(fifo, os.O_RDWR)
    os.write(descriptor, b'{"prompt": "a"}\n')
    items = read_requests(fifo)
    assert isinstance(next(items), ParsedLine)
    os.close(descriptor)
    assert list(items) == []


def test_unknown_fields_are_dropped_when_allowed(tmp_path: Path) -> None:
    path = request_file(tmp_path, '{"prompt": "a", "answer": 7}')
    assert len(bad(list(read_requests(path)))) == 1
    assert len(good(list(read_requests(path, allow_unknown=True)))) == 1


@pytest.mark.parametrize("name", ["missing.jsonl", "."])
def test_a_file_that_can_not_be_read_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match=f"can't read {tmp_path}"):
        next(read_requests(tmp_path / name))


def test_a_bad_default_is_reported_once_for_all_and_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="top_p"):
        read_requests(tmp_path / "missing.jsonl", defaults={"top_p": 7})


@pytest.mark.parametrize("name", ["out.jsonl", "out.txt"])
def test_a_file_of_answers_is_refused_as_input_at_once(name: str, tmp_path: Path) -> None:
    path = written(tmp_path / name, "a", "b")
    with pytest.raises(InputFileError, match="are -i and -o swapped"):
        read_requests(path)
