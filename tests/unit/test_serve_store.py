"""What `mlxq serve` keeps on its disk: records that change in one step, names that are ids, and what is swept away."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import msgspec
import pytest

from mlxq.errors import ConfigError, InputFileError
from mlxq.serve.store.database import Database
from mlxq.serve.store.disk import ABANDONED_S, DataDirectory
from mlxq.serve.store.records import BatchRecord, Counts, FileRecord, new_batch_id, new_file_id


@pytest.fixture
def disk(tmp_path: Path) -> DataDirectory:
    return DataDirectory(tmp_path / "data")


@pytest.fixture
def database(disk: DataDirectory) -> Database:
    return Database(disk.records)


def file_record(owner: str = "alice", expires_at: int | None = None) -> FileRecord:
    return FileRecord(
        id=new_file_id(),
        owner=owner,
        purpose="batch",
        filename="a.jsonl",
        num_bytes=2,
        created_at=1,
        expires_at=expires_at,
    )


def batch_record(owner: str = "alice") -> BatchRecord:
    return BatchRecord(
        id=new_batch_id(),
        owner=owner,
        endpoint="/v1/completions",
        input_file_id=new_file_id(),
        input_name="a.jsonl",
        completion_window="24h",
        created_at=1,
        expires_at=2,
        output_id=new_file_id(),
        error_id=new_file_id(),
    )


def test_records_are_there_after_a_restart(disk: DataDirectory, database: Database) -> None:
    file, batch = file_record(), batch_record()
    database.add_file(file)
    database.add_batch(batch)
    database.close()

    again = Database(disk.records)
    assert again.file(file.id, "alice") == file
    assert again.batch(batch.id, "alice") == batch
    assert again.open_batches() == {batch.id: "alice"}


def test_a_record_of_another_key_is_none(database: Database) -> None:
    file, batch = file_record(), batch_record()
    database.add_file(file)
    database.add_batch(batch)

    assert database.file(file.id, "bob") is None
    assert database.batch(batch.id, "bob") is None
    assert not database.remove_file(file.id, "bob")
    assert database.files("bob", limit=5).records == ()
    assert database.num_open_batches("bob") == 0


def test_pages_hold_so_many_and_say_whether_more_follow(database: Database) -> None:
    files = [file_record() for _ in range(5)]
    for file in files:
        database.add_file(file)
        database.add_file(file_record("bob"))

    first = database.files("alice", limit=2)
    rest = database.files("alice", limit=3, after=first.records[-1].id)
    upwards = database.files("alice", limit=2, after=files[1].id, order="asc")
    assert [*first.records, *rest.records] == files[::-1]
    assert (first.has_more, rest.has_more, upwards.has_more) == (True, False, True)
    assert list(upwards.records) == files[2:4]


def test_changes_from_many_threads_and_connections_are_all_made(disk: DataDirectory, database: Database) -> None:
    batch = batch_record()
    database.add_batch(batch)
    others = [database, Database(disk.records)]

    def add_one(record: BatchRecord) -> BatchRecord:
        counts = Counts(completed=record.counts.completed + 1)
        return msgspec.structs.replace(record, counts=counts)

    def add_some(database: Database) -> None:
        for _ in range(20):
            database.change_batch(batch.id, add_one)

    threads = [threading.Thread(target=add_some, args=(others[i % 2],)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    changed = database.batch(batch.id)
    assert changed is not None
    assert changed.counts.completed == 80


def test_a_change_that_fails_changes_nothing(database: Database) -> None:
    batch = batch_record()
    database.add_batch(batch)
    known = file_record()
    database.add_file(known)

    with pytest.raises(InputFileError):
        database.change_batch(batch.id, lambda record: msgspec.structs.replace(record, status="completed"), (known,))
    with pytest.raises(KeyError):
        database.change_batch(new_batch_id(), lambda record: record)

    assert database.batch(batch.id) == batch
    assert database.open_batches() == {batch.id: "alice"}


def test_a_batch_that_has_ended_is_open_no_more(database: Database) -> None:
    batch = batch_record()
    database.add_batch(batch)

    database.change_batch(batch.id, lambda record: msgspec.structs.replace(record, status="failed"))

    assert database.open_batches() == {}
    assert database.num_open_batches("alice") == 0


def test_files_go_when_their_time_is_over(database: Database) -> None:
    old, young, lasting = file_record(expires_at=10), file_record(expires_at=20), file_record()
    for file in (old, young, lasting):
        database.add_file(file)

    assert database.remove_expired(10) == [old.id]
    assert set(database.files("alice", limit=9).records) == {young, lasting}


def test_a_file_of_records_that_is_something_else_is_an_error_of_ours(disk: DataDirectory) -> None:
    disk.records.write_text("something else, and long enough to be seen as such" * 100)

    with pytest.raises(InputFileError, match="can't use"):
        Database(disk.records)


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "file-", "file-" + "g" * 32, "file-" + "0" * 33, "/etc"])
def test_nothing_but_an_id_becomes_a_name(name: str, disk: DataDirectory) -> None:
    for use in (disk.file, disk.batch_input, disk.batch_output, disk.batch_errors, disk.end_batch, disk.remove_file):
        with pytest.raises(ValueError, match="no id"):
            use(name)


def test_all_is_this_users_alone(disk: DataDirectory, database: Database) -> None:
    os.close(disk.lock(alone=True))
    modes = {path.name: path.stat().st_mode & 0o077 for path in (disk.path, *disk.path.iterdir())}

    assert {"data", "records.sqlite3", "files", "uploads", "batches", "lock"} <= set(modes)
    assert set(modes.values()) == {0}


def test_a_directory_has_one_user_that_wants_to_be_alone_or_several_that_do_not(disk: DataDirectory) -> None:
    fds = [disk.lock(alone=False), disk.lock(alone=False)]
    with pytest.raises(ConfigError, match="another mlxq serve"):
        disk.lock(alone=True)
    for fd in fds:
        os.close(fd)
    os.close(disk.lock(alone=True))


def test_a_batch_without_its_file_does_not_begin(disk: DataDirectory) -> None:
    batch_id = new_batch_id()

    assert not disk.begin_batch(batch_id, new_file_id())
    assert not disk.batch_input(batch_id).parent.exists()


def test_an_empty_result_is_no_file_and_handing_over_may_be_repeated(disk: DataDirectory, tmp_path: Path) -> None:
    full, empty = tmp_path / "full", tmp_path / "empty"
    full.write_bytes(b"line\n")
    empty.touch()
    ids = new_file_id(), new_file_id()

    assert [disk.hand_over(full, ids[0]), disk.hand_over(full, ids[0])] == [5, 5]
    assert [disk.hand_over(empty, ids[1]), disk.hand_over(empty, ids[1])] == [None, None]


def test_what_kills_have_left_is_swept_once_it_is_old(disk: DataDirectory) -> None:
    known, unknown, batch_id = new_file_id(), new_file_id(), new_batch_id()
    for path in (disk.file(known), disk.file(unknown), upload := disk.new_upload()):
        path.touch()
    disk.begin_batch(batch_id, known)
    now = time.time()

    disk.sweep({known}.__contains__, set().__contains__, now)
    assert disk.file(unknown).exists()
    assert upload.exists()

    disk.sweep({known}.__contains__, set().__contains__, now + 2 * ABANDONED_S)
    assert [path.name for path in (disk.path / "files").iterdir()] == [known]
    assert not upload.exists()
    assert not disk.batch_input(batch_id).exists()


def test_what_a_batch_needed_is_swept_as_soon_as_it_has_ended(database: Database, disk: DataDirectory) -> None:
    file_id, running, ended = new_file_id(), batch_record(), batch_record()
    disk.file(file_id).touch()
    for record in (running, ended):
        disk.begin_batch(record.id, file_id)
        database.add_batch(record)
    database.change_batch(ended.id, lambda before: msgspec.structs.replace(before, status="completed"))

    disk.sweep(database.known_ids().__contains__, database.has_ended)

    assert [path.name for path in (disk.path / "batches").iterdir()] == [running.id]
