"""Files of results, with what crashes, full disks and second runs do to them."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.result_files import file_size_limit, ids_in, output_line, request_file, written
from tests.support.waiting import DEADLINE_S

from mlxq.errors import InputFileError
from mlxq.files.output.done import load_done
from mlxq.files.output.result_file import ResultWriter
from mlxq.files.output.rewriting import order_file
from mlxq.files.paths import refuse_same_file


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
    opening = f"import mlxq.files.output.result_file as f; w = f.ResultWriter({str(path)!r})"
    code = f"{opening}; print('open', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"open\n"
        with pytest.raises(InputFileError, match="in use"):
            ResultWriter(path)

        # when it is killed
        holder.send_signal(signal.SIGKILL)
        holder.wait(timeout=DEADLINE_S)

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


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_who_can_read_a_result_file_is_up_to_the_umask_and_stays_so(tmp_path: Path, umask: int, mode: int) -> None:
    path, before = tmp_path / "out.jsonl", os.umask(umask)
    try:
        written(path, "b", "a")
        order_file(path, ["a", "b"])
    finally:
        os.umask(before)

    assert path.stat().st_mode & 0o777 == mode
    assert ids_in(path) == ["a", "b"]
