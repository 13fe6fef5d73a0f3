"""Files of requests and files of results, with what crashes, full disks and second runs do to them."""

from __future__ import annotations

import fcntl
import io
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mlxq.errors import ConfigError, InputFileError
from mlxq.files.input import BadLine, read_requests
from mlxq.files.paths import count_lines, refuse_same_file
from mlxq.files.result_file import ResultWriter, load_done, order_file
from mlxq.requests import openai
from mlxq.requests.openai import ParsedLine
from mlxq.results import result_lines


def request_file(path: Path, content: bytes | str, name: str = "in.jsonl") -> Path:
    file = path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def good(items: list[ParsedLine | BadLine]) -> list[ParsedLine]:
    return [item for item in items if isinstance(item, ParsedLine)]


def bad(items: list[ParsedLine | BadLine]) -> list[BadLine]:
    return [item for item in items if isinstance(item, BadLine)]


def output_line(custom_id: str, content_hash: str = "h", **more: Any) -> dict[str, Any]:
    body = {"choices": [], "mlxq": {"content_hash": content_hash}, **more}
    return {"id": "x", "custom_id": custom_id, "response": {"status_code": 200, "body": body}, "error": None}


def written(path: Path, *custom_ids: str) -> Path:
    with ResultWriter(path) as writer:
        for custom_id in custom_ids:
            writer.append(output_line(custom_id))
    return path


def ids_in(path: Path) -> list[str]:
    return [json.loads(line)["custom_id"] for line in path.read_text().splitlines()]


# --- Requests in ----------------------------------------------------------------------------------------------


def test_requests_are_read_with_ids_from_line_numbers(tmp_path: Path) -> None:
    path = request_file(tmp_path, '{"prompt": "a"}\n\n  \n{"custom_id": "x", "prompt": "b"}\n{"prompt": "c"}')
    items = good(list(read_requests(path)))
    assert [(item.request.custom_id, item.request.prompt) for item in items] == [
        ("line-1", "a"),
        ("x", "b"),
        ("line-5", "c"),
    ]


def test_a_byte_order_mark_and_crlf_are_accepted(tmp_path: Path) -> None:
    content = b'\xef\xbb\xbf{"prompt": "a"}\r\n\r\n{"prompt": "b"}\r\n'
    items = list(read_requests(request_file(tmp_path, content)))
    assert [item.request.prompt for item in good(items)] == ["a", "b"]
    assert bad(items) == []


def test_text_files_hold_one_prompt_per_line(tmp_path: Path) -> None:
    path = request_file(tmp_path, b"\xef\xbb\xbf  first \r\n\r\n{third}\n", "in.TXT")
    items = good(list(read_requests(path, defaults={"max_tokens": 3})))
    assert [(item.request.custom_id, item.request.prompt) for item in items] == [
        ("line-1", "  first "),
        ("line-3", "{third}"),
    ]
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
    assert [item.request.custom_id for item in good(items)] == ["line-4"]


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
    # given an id used twice, and one that a nameless line got first
    lines = ['{"id": "a", "prompt": "x"}', '{"prompt": "y"}', '{"id": "a", "prompt": "z"}', '{"id": "line-2"}']

    # when
    items = list(read_requests(request_file(tmp_path, "\n".join(lines))))

    # then
    assert len(good(items)) == 2
    assert [(item.custom_id, item.error.code) for item in bad(items)] == [
        ("a", "duplicate_custom_id"),
        ("line-2", "duplicate_custom_id"),
    ]
    assert bad(items)[0].error.message == "line 3 has the custom_id of line 1: every id must be used once"
    assert bad(items)[1].error.message == (
        "line 4 has the custom_id of line 2: every id must be used once, and a line without one, as line 2 may be, is"
        " called by its number"
    )


@pytest.mark.parametrize("nameless", ["{oops", '{"promt": "x"}'])
def test_a_bad_line_without_an_id_takes_the_id_of_no_other(nameless: str, tmp_path: Path) -> None:
    lines = [nameless, '{"id": "line-1", "prompt": "x"}', '{"id": "line-4", "prompt": "y"}', nameless]
    items = list(read_requests(request_file(tmp_path, "\n".join(lines))))
    assert [item.request.custom_id for item in good(items)] == ["line-1", "line-4"]
    assert [(item.custom_id, item.owns_id) for item in bad(items)] == [("line-1", False), ("line-4+", False)]


def test_a_line_without_an_id_makes_way_for_an_earlier_one_with_its_name(tmp_path: Path) -> None:
    lines = ['{"id": "line-3", "prompt": "x"}', '{"id": "line-3+", "prompt": "y"}', '{"prompt": "z"}']
    items = list(read_requests(request_file(tmp_path, "\n".join(lines))))
    assert [item.request.custom_id for item in good(items)] == ["line-3", "line-3+", "line-3++"]


@pytest.mark.parametrize("name", ["in.jsonl", "in.txt"])
def test_an_endless_line_is_refused_and_the_next_one_is_read(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given small limits and a line several times as long
    monkeypatch.setattr(openai, "MAX_LINE_BYTES", 100)
    monkeypatch.setattr(result_file, "_READ_LIMIT", 105)
    content = '{"prompt": "' + "x" * 500 + '"}\n{"prompt": "ok"}\n'

    # when
    items = list(read_requests(request_file(tmp_path, content, name)))

    # then
    assert [(item.line_number, item.error.code) for item in bad(items)] == [(1, "line_too_long")]
    assert [item.request.custom_id for item in good(items)] == ["line-2"]


def test_a_line_of_exactly_the_limit_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = b'{"prompt": "aaaa"}'
    monkeypatch.setattr(openai, "MAX_LINE_BYTES", len(line))
    monkeypatch.setattr(result_file, "_READ_LIMIT", len(line) + 5)
    content = b"\xef\xbb\xbf" + line + b"\r\n" + line[:-2] + b'a"}'
    items = list(read_requests(request_file(tmp_path, content)))
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


@pytest.mark.parametrize(("content", "count"), [("", 0), ("a", 1), ("a\n", 1), ("a\n\nb", 3)])
def test_lines_are_counted_with_or_without_a_last_newline(content: str, count: int, tmp_path: Path) -> None:
    assert count_lines(request_file(tmp_path, content)) == count


@pytest.mark.parametrize("path", ["/dev/null", "-"])
def test_what_is_no_regular_file_has_no_line_count(path: str) -> None:
    assert count_lines(path) is None


def test_counting_the_lines_of_a_missing_file_names_it(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match=r"missing\.jsonl: No such file"):
        count_lines(tmp_path / "missing.jsonl")


# --- Results out ----------------------------------------------------------------------------------------------


def hashes(path: Path) -> dict[str, str]:
    return {custom_id: done.content_hash for custom_id, done in load_done(path).items()}


def test_results_are_appended_and_seen_at_once(tmp_path: Path) -> None:
    path = written(tmp_path / "out.jsonl", "a")
    with ResultWriter(path) as writer:
        writer.append(output_line("b"))
        assert ids_in(path) == ["a", "b"]


def test_answered_requests_are_loaded_with_their_hashes(tmp_path: Path) -> None:
    # given a file with an answer, a newer answer for the same id, a rejection and a crash
    path = tmp_path / "out.jsonl"
    rejected = {"id": "x", "custom_id": "r", "response": {"status_code": 400, "body": {}}, "error": None}
    crashed = {"id": "x", "custom_id": "c", "response": None, "error": {"code": "worker_crashed"}}
    with ResultWriter(path) as writer:
        for line in (output_line("a", "old"), rejected, crashed, output_line("b", "hb"), output_line("a", "new")):
            writer.append(line)

    # then only what was answered counts, with its newest hash
    assert hashes(path) == {"a": "new", "b": "hb"}


def test_a_missing_result_file_is_empty(tmp_path: Path) -> None:
    assert hashes(tmp_path / "out.jsonl") == {}


@pytest.mark.parametrize("cut", [1, 2, 40, -2])
def test_a_line_that_a_crash_cut_off_is_not_done_and_is_removed(cut: int, tmp_path: Path) -> None:
    # given a file whose last line was cut off
    path = written(tmp_path / "out.jsonl", "a")
    torn = json.dumps(output_line("b", text="x" * 200_000))[:cut]
    with path.open("a") as file:
        file.write(torn)

    # when it is loaded and opened again
    done = hashes(path)
    written(path, "b")

    # then nothing of the torn line is left
    assert done == {"a": "h"}
    assert ids_in(path) == ["a", "b"]


def test_a_last_line_that_lacks_only_its_newline_is_done_and_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text(json.dumps(output_line("a")))
    assert hashes(path) == {"a": "h"}
    assert ids_in(written(path, "b")) == ["a", "b"]


def test_a_first_line_that_was_cut_off_leaves_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text('{"id": "batch')
    assert ids_in(written(path)) == []


def test_a_file_of_something_else_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "novel.txt"
    path.write_text("once upon a time")
    with pytest.raises(InputFileError, match="not a file of output lines"):
        ResultWriter(path)
    assert path.read_text() == "once upon a time"


@pytest.mark.parametrize(
    "content", ['{"custom_id": "a", "prompt": "x"}', '{"custom_id": "a"}\n{"custom_id": "b", "pro', "notes\n"]
)
def test_a_file_of_requests_or_notes_is_left_alone(content: str, tmp_path: Path) -> None:
    path = request_file(tmp_path, content)
    with pytest.raises(InputFileError, match=r"not an output line|not a file of output lines"):
        ResultWriter(path)
    assert path.read_text() == content


@pytest.mark.parametrize("name", ["out.jsonl", "out.txt"])
def test_a_file_of_answers_is_refused_as_input_at_once(name: str, tmp_path: Path) -> None:
    path = written(tmp_path / name, "a", "b")
    with pytest.raises(InputFileError, match="are -i and -o swapped"):
        read_requests(path)


@pytest.mark.parametrize(
    "corrupt", ["{oops", "[]", '{"custom_id": 7}', '{"custom_id": "a", "prompt": "x"}', "", "[" * 100_000]
)
def test_a_corrupt_line_in_the_middle_is_named(corrupt: str, tmp_path: Path) -> None:
    path = written(tmp_path / "out.jsonl", "a")
    path.write_text(path.read_text() + corrupt + "\n" + path.read_text())
    with pytest.raises(InputFileError, match=r"line 2 of .*out\.jsonl"):
        load_done(path)


Synced = list[tuple[int, int]]
"""(inode, size) of what was forced to the disk, in order."""


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> Synced:
    seen: Synced = []
    fsync = os.fsync

    def note(fd: int) -> None:
        seen.append((os.fstat(fd).st_ino, os.fstat(fd).st_size))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", note)
    return seen


def test_a_sync_forces_all_that_was_written_and_the_name_of_the_file_to_the_disk(
    tmp_path: Path, synced: Synced
) -> None:
    path = tmp_path / "out.jsonl"
    with ResultWriter(path) as writer:
        writer.append(output_line("a"))
        writer.sync()
        forced = dict(synced)

        assert forced.keys() == {path.stat().st_ino, tmp_path.stat().st_ino}
        assert forced[path.stat().st_ino] == path.stat().st_size > 0


def test_closing_syncs_what_was_written_last(tmp_path: Path, synced: Synced) -> None:
    path = written(tmp_path / "out.jsonl", "a")
    assert (path.stat().st_ino, path.stat().st_size) in synced


def test_a_new_order_is_on_the_disk_before_it_takes_the_old_ones_place(tmp_path: Path, synced: Synced) -> None:
    path = written(tmp_path / "out.jsonl", "b", "a")
    synced.clear()
    order_file(path, ["a", "b"])
    assert [inode for inode, _ in synced] == [path.stat().st_ino, tmp_path.stat().st_ino]
    assert synced[0][1] == path.stat().st_size


@pytest.mark.parametrize("knows", [True, False])
def test_where_there_is_a_fuller_sync_it_is_used_unless_the_file_system_refuses_it(
    tmp_path: Path, synced: Synced, monkeypatch: pytest.MonkeyPatch, knows: bool
) -> None:
    asked = []

    def full_sync(fd: int, command: int) -> None:
        asked.append((os.fstat(fd).st_ino, command))
        if not knows:
            raise OSError("not supported")

    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", full_sync)
    path = written(tmp_path / "out.jsonl", "a")

    assert (path.stat().st_ino, 51) in asked
    assert bool(synced) is not knows


def test_a_second_writer_is_refused_until_the_first_closes(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with ResultWriter(path) as writer:
        writer.append(output_line("a"))
        with pytest.raises(InputFileError, match="in use by another run"):
            ResultWriter(path)
        with pytest.raises(InputFileError, match="in use by another run"):
            order_file(path, [])
    assert ids_in(written(path, "b")) == ["a", "b"]


def test_the_lock_goes_with_a_killed_process(tmp_path: Path) -> None:
    # given a process that holds the file
    path = tmp_path / "out.jsonl"
    code = f"import mlxq.files.result_file as f; w = f.ResultWriter({str(path)!r}); print('open', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"open\n"
        with pytest.raises(InputFileError, match="in use"):
            ResultWriter(path)

        # when it is killed
        holder.send_signal(signal.SIGKILL)
        holder.wait(timeout=10)

    # then the file is free
    assert ids_in(written(path, "a")) == ["a"]


def test_a_file_replaced_while_it_was_opened_is_not_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # given another run that puts a new file in place just before the lock is taken
    path = written(tmp_path / "out.jsonl", "a")
    lock = fcntl.flock

    def replace_then_lock(descriptor: int, operation: int) -> None:
        written_elsewhere = request_file(tmp_path, path.read_bytes(), "new")
        written_elsewhere.replace(path)
        lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", replace_then_lock)

    # then
    with pytest.raises(InputFileError, match="try again"):
        ResultWriter(path)


@contextmanager
def file_size_limit(size_bytes: int) -> Iterator[None]:
    """Makes writes beyond a size fail, after writing what fits, as a full disk does."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def test_a_line_that_no_longer_fits_leaves_nothing_behind(tmp_path: Path) -> None:
    # given a disk with room for one line and a half
    path = written(tmp_path / "out.jsonl", "a")
    line_bytes = path.stat().st_size

    # when a second and a third one are written
    with ResultWriter(path) as writer, file_size_limit(line_bytes * 3 // 2):
        for _ in range(2):
            with pytest.raises(InputFileError, match=r"can't write .*out\.jsonl"):
                writer.append(output_line("b"))

    # then the file holds whole lines only, and takes more when there is room again
    assert path.stat().st_size == line_bytes
    assert ids_in(written(path, "c")) == ["a", "c"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_device_is_an_error_that_names_it() -> None:
    with (
        ResultWriter("/dev/full") as writer,
        pytest.raises(InputFileError, match="can't write /dev/full: No space left"),
    ):
        writer.append(output_line("a"))


def test_two_runs_may_share_the_null_device() -> None:
    with ResultWriter("/dev/null") as first, ResultWriter("/dev/null") as second:
        first.append(output_line("a"))
        second.append(output_line("b"))
    refuse_same_file({"--output": "/dev/null", "--error-file": "/dev/null"})


def test_a_directory_is_no_result_file(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match="can't open"):
        ResultWriter(tmp_path)


def test_two_names_of_one_file_are_refused(tmp_path: Path) -> None:
    # given a file, a link to it, and a file that doesn't exist yet
    path = request_file(tmp_path, "")
    link = tmp_path / "link"
    link.symlink_to(path)
    new = tmp_path / "new"

    # then
    for pair in [(path, path), (path, link), (new, tmp_path / "x" / ".." / "new")]:
        with pytest.raises(ConfigError, match="--input and --output are the same file"):
            refuse_same_file({"--input": pair[0], "--output": pair[1]})
    refuse_same_file({"--input": path, "--output": new, "--error-file": tmp_path / "errors"})
    refuse_same_file({"--input": "-", "--output": "-"})


# --- Order ----------------------------------------------------------------------------------------------------


def test_lines_are_put_in_the_order_of_the_ids(tmp_path: Path) -> None:
    path = written(tmp_path / "out.jsonl", "c", "stranger", "a", "b")
    path.chmod(0o640)
    order_file(path, iter(["a", "not-run", "b", "c"]))
    assert ids_in(path) == ["a", "b", "c", "stranger"]
    assert path.stat().st_mode & 0o777 == 0o640
    assert list(tmp_path.iterdir()) == [path]


def test_of_several_lines_for_one_id_the_last_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with ResultWriter(path) as writer:
        for custom_id, content_hash in [("a", "old"), ("b", "h"), ("a", "new")]:
            writer.append(output_line(custom_id, content_hash))
    order_file(path, ["b", "a"])
    assert ids_in(path) == ["b", "a"]
    assert hashes(path) == {"b": "h", "a": "new"}


def test_lines_may_be_left_out(tmp_path: Path) -> None:
    path = written(tmp_path / "out.jsonl", "c", "b", "a")
    order_file(path, ["a", "b"], without={"b", "c"})
    assert ids_in(path) == ["a"]


def test_a_link_stays_a_link_when_its_file_is_ordered(tmp_path: Path) -> None:
    path = written(tmp_path / "out.jsonl", "b", "a")
    link = tmp_path / "link"
    link.symlink_to(path)
    order_file(link, ["a", "b"])
    assert link.is_symlink()
    assert ids_in(path) == ["a", "b"]


def test_a_cut_off_line_is_dropped_and_a_missing_newline_added(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text(json.dumps(output_line("b")) + "\n" + json.dumps(output_line("a")))
    order_file(path, ["a", "b"])
    with path.open("a") as file:
        file.write('{"id": "to')
    order_file(path, ["b", "a"])
    assert ids_in(path) == ["b", "a"]


def test_a_failed_reordering_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = written(tmp_path / "out.jsonl", "b", "a")
    before = path.read_bytes()
    with file_size_limit(len(before) // 2), pytest.raises(InputFileError, match="can't reorder"):
        order_file(path, ["a", "b"])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_ordering_does_not_create_a_file(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match="can't open"):
        order_file(tmp_path / "out.jsonl", [])
    assert list(tmp_path.iterdir()) == []
