"""Packed result files: written in blocks, cut off at any byte, opened again, put in order."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.result_files import file_size_limit, output_line, request_file, written

from mlxq.errors import InputFileError
from mlxq.files.output.done import load_done
from mlxq.files.output.result_file import ResultWriter
from mlxq.files.output.rewriting import order_file
from mlxq.files.output.sink import default_error_file
from mlxq.files.output.stored import read_lines
from mlxq.formats.packing import packed

NAMES = ["out.jsonl.gz", "out.jsonl.zst"]


def ids_in(path: Path) -> list[str]:
    return [line["custom_id"] for line in read_lines(path)]


def in_blocks(path: Path, *custom_ids: str) -> Path:
    """A file with a block for each line."""
    with ResultWriter(path) as writer:
        for custom_id in custom_ids:
            writer.append(output_line(custom_id))
            writer.sync()
    return path


@pytest.mark.parametrize("name", NAMES)
def test_wherever_a_crash_cuts_the_file_off_whole_blocks_are_kept_and_the_rest_is_written_again(
    name: str, tmp_path: Path
) -> None:
    # given
    path = in_blocks(tmp_path / name, "a", "b")
    kept = path.stat().st_size
    whole = in_blocks(path, "c").read_bytes()

    for size in range(kept, len(whole)):
        # when
        path.write_bytes(whole[:size])
        with ResultWriter(path) as writer:
            known = dict(load_done(path).items()).keys()
            writer.append(output_line("d"))

        # then
        assert known == {"a", "b"}
        assert ids_in(path) == ["a", "b", "d"]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_synced_yet_is_one_block_and_it_is_there_after_closing(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    with ResultWriter(path) as writer:
        writer.append(output_line("a"))
        assert path.stat().st_size == 0
        writer.sync()
        synced = path.stat().st_size
        writer.append(output_line("b", more="x" * 2**20))  # as much as a block may have
        assert path.stat().st_size > synced
    assert ids_in(path) == ["a", "b"]


def test_other_programs_can_unpack_it(tmp_path: Path) -> None:
    path = in_blocks(tmp_path / "out.jsonl.gz", "a", "b")
    lines = gzip.decompress(path.read_bytes()).splitlines()
    assert [json.loads(line)["custom_id"] for line in lines] == ["a", "b"]


@pytest.mark.parametrize("name", NAMES)
def test_it_is_put_in_order_and_stays_packed(name: str, tmp_path: Path) -> None:
    path = in_blocks(tmp_path / name, "c", "a", "stranger", "b", "a")
    head = path.read_bytes()[:4]
    order_file(path, ["a", "b", "c"], without={"b"})
    assert ids_in(path) == ["a", "c", "stranger"]
    assert path.read_bytes()[:4] == head


def test_the_content_counts_and_not_the_name(tmp_path: Path) -> None:
    plain = written(tmp_path / "plain.gz.jsonl", "a").rename(tmp_path / "out.jsonl.gz")
    assert ids_in(written(plain, "b")) == ["a", "b"]
    assert plain.read_bytes().startswith(b"{")


def test_a_file_that_was_packed_by_hand_and_has_no_last_newline_is_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl.gz"
    path.write_bytes(packed(json.dumps(output_line("a")).encode(), "gzip"))
    assert ids_in(written(path, "b")) == ["a", "b"]


@pytest.mark.parametrize("name", NAMES)
def test_packed_requests_are_left_alone(name: str, tmp_path: Path) -> None:
    content = packed(b'{"custom_id": "a", "prompt": "x"}\n', "gzip")
    path = request_file(tmp_path, content, name)
    with pytest.raises(InputFileError, match=r"line 1 of .* is not an output line"):
        ResultWriter(path)
    assert path.read_bytes() == content


def test_a_full_disk_leaves_whole_blocks(tmp_path: Path) -> None:
    path = in_blocks(tmp_path / "out.jsonl.gz", "a")
    whole = path.read_bytes()
    with ResultWriter(path) as writer:
        writer.append(output_line("b"))
        with file_size_limit(len(whole) + 10), pytest.raises(InputFileError, match="can't write"):
            writer.sync()
        assert path.read_bytes() == whole
        writer.sync()  # there is room again
    assert ids_in(path) == ["a", "b"]


def test_a_killed_process_leaves_what_it_had_synced(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl.zst"
    code = f"""
import os, signal
from tests.support.result_files import output_line
from mlxq.files.output.result_file import ResultWriter
writer = ResultWriter({str(path)!r})
writer.append(output_line("a"))
writer.sync()
writer.append(output_line("b"))
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code], check=False)
    assert ids_in(written(path, "c")) == ["a", "c"]


@pytest.mark.parametrize(
    ("output", "errors"),
    [("out.jsonl", "out.errors.jsonl"), ("a/out.jsonl.gz", "a/out.errors.jsonl"), ("out", "out.errors.jsonl")],
)
def test_failures_go_beside_the_answers_unpacked(output: str, errors: str) -> None:
    assert default_error_file(Path(output)) == Path(errors)
