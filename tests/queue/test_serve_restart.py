"""`mlxq serve` comes and goes: a batch goes on where it was, one process at a time works on it, none is forgotten."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from redis import Redis
from tests.support.fake_worker import FakeWorker, echo
from tests.support.redis_fixture import MortalRedis
from tests.support.served import begun, chat_line, ended, ids_of, openai_client, service
from tests.support.waiting import DEADLINE_S, wait_until

from mlxq import keys
from mlxq.contract import Request
from mlxq.errors import ConfigError, FileInUse, InputFileError
from mlxq.files.bulk import LeftToOthers
from mlxq.queue.client import Client
from mlxq.serve.store.database import Database
from mlxq.serve.store.disk import DataDirectory
from mlxq.serve.store.records import BatchRecord
from mlxq.serve.work import dispatcher
from mlxq.serve.work.batch_run import BatchRun, Rules
from mlxq.serve.work.dispatcher import Dispatcher
from mlxq.serve.work.leases import BatchLeases

LINES = [chat_line(f"r{i}") for i in range(40)]
ALL = sorted(f"r{i}" for i in range(40))


def batch_record(number: int, owner: str, created_at: int = 0) -> BatchRecord:
    input_id, output_id, error_id = (f"file-{number:016x}{i:016x}" for i in range(3))
    return BatchRecord(
        id=f"batch_{number:032x}",
        owner=owner,
        endpoint="/v1/chat/completions",
        input_file_id=input_id,
        input_name="in.jsonl",
        completion_window="24h",
        created_at=created_at,
        expires_at=created_at + 24 * 3600,
        output_id=output_id,
        error_id=error_id,
    )


def answers_until(limit: int, more: threading.Event) -> Callable[[Request, str], dict[str, Any]]:
    """A worker that stops after some answers until it may go on."""
    answered: list[str] = []

    def answer(request: Request, job_id: str) -> dict[str, Any]:
        if len(answered) == limit:
            more.wait(DEADLINE_S)
        answered.append(job_id)
        return echo(request, job_id)

    return answer


def test_a_batch_goes_on_after_a_restart_and_asks_nothing_twice(redis_url: str, tmp_path: Path) -> None:
    more = threading.Event()
    with FakeWorker(redis_url, answers_until(10, more)) as worker:
        with service(redis_url, tmp_path) as url:
            client = openai_client(url)
            batch_id = begun(client, LINES).id
            wait_until(lambda: len(worker.custom_ids) == 11, "some answers")
        more.set()
        with service(redis_url, tmp_path) as url:
            client = openai_client(url)
            done = ended(client, batch_id)
            answered = ids_of(client, done.output_file_id)

    assert (done.status, answered) == ("completed", ALL)
    assert sorted(worker.custom_ids) == ALL


def test_of_two_services_one_works_on_a_batch_and_both_tell_of_it(redis_url: str, tmp_path: Path) -> None:
    with service(redis_url, tmp_path) as one, service(redis_url, tmp_path) as other, FakeWorker(redis_url) as worker:
        batches = [begun(openai_client(url), LINES).id for url in (one, other, one)]
        for batch_id in batches:
            for url in (other, one):
                client = openai_client(url)
                done = ended(client, batch_id)
                assert (done.status, ids_of(client, done.output_file_id)) == ("completed", ALL)

    assert sorted(worker.custom_ids) == sorted(ALL * 3)


def test_a_service_takes_over_what_another_has_left(redis_url: str, tmp_path: Path) -> None:
    with service(redis_url, tmp_path) as one:
        batch_id = begun(openai_client(one), LINES).id
        wait_until(lambda: Client(redis_url).queue_length() == 40, "the lines to be queued")
        with service(redis_url, tmp_path) as other:
            pass
        with FakeWorker(redis_url), service(redis_url, tmp_path) as other:
            assert ended(openai_client(other), batch_id).status == "completed"


def test_services_of_different_redis_do_not_share_a_directory(redis_url: str, tmp_path: Path) -> None:
    with (
        service(redis_url, tmp_path, alone=True),
        pytest.raises(ConfigError, match="share a Redis"),
        service(redis_url, tmp_path),
    ):
        pass
    with (
        service(redis_url, tmp_path),
        pytest.raises(ConfigError, match="share a Redis"),
        service(redis_url, tmp_path, alone=True),
    ):
        pass


def test_an_address_that_is_taken_is_a_wrong_option(redis_url: str, tmp_path: Path) -> None:
    with service(redis_url, tmp_path) as url:
        port = int(url.rpartition(":")[2])
        with pytest.raises(ConfigError, match="can't listen on"), service(redis_url, tmp_path, port=port):
            pass


def test_a_redis_that_goes_away_is_waited_for_and_clients_hear_nothing_of_it(
    mortal_redis: MortalRedis, tmp_path: Path
) -> None:
    with service(mortal_redis.url, tmp_path) as url:
        client = openai_client(url)
        running = begun(client, LINES).id
        wait_until(lambda: Client(mortal_redis.url).queue_length() == 40, "the lines to be queued")
        mortal_redis.kill()
        waiting = begun(client, LINES).id
        assert {batch.status for batch in client.batches.list()} <= {"validating", "in_progress"}
        mortal_redis.start()  # and all that was in it is lost
        with FakeWorker(mortal_redis.url):
            for batch_id in (running, waiting):
                done = ended(client, batch_id)
                assert (done.status, ids_of(client, done.output_file_id)) == ("completed", ALL)


def test_the_one_batch_of_a_key_does_not_wait_for_the_many_of_another(connection: Redis, tmp_path: Path) -> None:
    disk = DataDirectory(tmp_path)
    database = Database(disk.records)
    records = [batch_record(i, owner) for i, owner in enumerate(["alice", "alice", "alice", "bob", "carol"])]
    for record in records:
        database.add_batch(record)
    begun: list[str] = []
    may_end = threading.Event()

    def work(batch_id: str, is_ours: Callable[[], bool]) -> None:
        begun.append(batch_id)
        may_end.wait(DEADLINE_S)

    with Dispatcher(database, disk, BatchLeases(connection, 60), work, lease_s=60, max_running=3, tell=lambda _: None):
        wait_until(lambda: len(begun) == 3, "three batches to be taken up")
        may_end.set()

    assert sorted(begun[:3]) == [records[i].id for i in (0, 3, 4)]


def test_a_batch_that_something_is_in_the_way_of_is_tried_again(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, errors = BatchRun.run, iter([InputFileError("the disk is full"), FileInUse("x"), ZeroDivisionError("a bug")])

    def run_at_last(self: BatchRun) -> None:
        if error := next(errors, None):
            raise error
        run(self)

    monkeypatch.setattr(BatchRun, "run", run_at_last)
    monkeypatch.setattr(dispatcher, "FIRST_PAUSE_S", 0.01)
    with service(redis_url, tmp_path) as url, FakeWorker(redis_url):
        client = openai_client(url)
        assert ended(client, begun(client, LINES).id).status == "completed"
    assert next(errors, None) is None


# --- One batch, step by step ----------------------------------------------------------------------------------


class Scene:
    """A batch in its records, without any service: each `run` is one process's turn at it."""

    def __init__(self, redis_url: str, data: Path) -> None:
        self.client = Client(redis_url)
        self.disk = DataDirectory(data)
        self.database = Database(self.disk.records)
        self.now = time.time()
        record = batch_record(0, "", created_at=int(self.now))
        self.id = record.id
        self.disk.file(record.input_file_id).write_bytes(b"".join(map(_line, LINES)))
        assert self.disk.begin_batch(self.id, record.input_file_id)
        self.database.add_batch(record)

    def run(self, is_ours: Callable[[], bool] = lambda: True) -> BatchRecord:
        rules = Rules(max_inflight=10)
        BatchRun(
            self.id,
            self.database,
            self.disk,
            self.client,
            rules,
            is_ours=is_ours,
            tell=lambda _: None,
            clock=lambda: self.now,
        ).run()
        return self.record

    @property
    def record(self) -> BatchRecord:
        record = self.database.batch(self.id)
        assert record is not None
        return record

    def ids(self, file_id: str) -> list[str]:
        path = self.disk.file(file_id)
        lines = path.read_text().splitlines() if path.is_file() else []
        return [msgspec.json.decode(line)["custom_id"] for line in lines]

    def set(self, **attributes: Any) -> None:
        self.database.change_batch(self.id, lambda record: msgspec.structs.replace(record, **attributes))


def _line(line: dict[str, Any]) -> bytes:
    return msgspec.json.encode(line) + b"\n"


@pytest.fixture
def scene(redis_url: str, tmp_path: Path) -> Scene:
    return Scene(redis_url, tmp_path)


def test_a_turn_that_is_lost_at_any_moment_leaves_all_to_the_next(scene: Scene, redis_url: str) -> None:
    # given a process that is told at its nth question that the batch isn't its own any more, for every n
    with FakeWorker(redis_url) as worker:
        num_turns = 0
        while scene.record.status != "completed":
            num_turns += 1
            left = iter(range(num_turns))
            try:
                scene.run(lambda left=left: next(left, None) is not None)  # type: ignore[misc]
            except LeftToOthers:
                continue

    assert num_turns > 5
    assert sorted(scene.ids(scene.record.output_id)) == ALL
    assert sorted(worker.custom_ids) == ALL


def test_what_is_not_done_when_the_window_ends_expires_and_what_is_done_stays(scene: Scene, redis_url: str) -> None:
    more = threading.Event()
    with FakeWorker(redis_url, answers_until(7, more)) as worker:

        def later() -> bool:
            if len(worker.custom_ids) > 7 and scene.record.counts.completed == 7:
                scene.now = scene.record.expires_at
            return True

        record = scene.run(later)
        more.set()

    assert (record.status, record.expired_at) == ("expired", int(scene.now))
    assert (record.counts.total, record.counts.completed, record.counts.failed) == (40, 7, 33)
    assert sorted(scene.ids(record.output_id) + scene.ids(record.error_id)) == ALL
    assert b"batch_expired" in scene.disk.file(record.error_id).read_bytes()


def test_a_batch_that_is_cancelled_halfway_has_every_line_once(scene: Scene, redis_url: str) -> None:
    more = threading.Event()
    with FakeWorker(redis_url, answers_until(7, more)) as worker:

        def later() -> bool:
            if len(worker.custom_ids) > 7 and scene.record.counts.completed == 7:
                scene.set(status="cancelling", cancelling_at=1)
            return True

        record = scene.run(later)
        more.set()

    assert (record.status, record.counts.completed, record.counts.failed) == ("cancelled", 7, 33)
    assert sorted(scene.ids(record.output_id) + scene.ids(record.error_id)) == ALL


def test_a_batch_that_is_cancelled_in_the_queue_is_cancelled(scene: Scene, redis_url: str) -> None:
    with pytest.raises(LeftToOthers):
        scene.run(lambda: scene.client.queue_length() < 10)
    scene.client.batch(scene.id).cancel()

    record = scene.run()

    assert record.status == "cancelled"
    assert sorted(scene.ids(record.error_id)) == ALL


def test_a_batch_that_is_cancelled_before_it_was_looked_at_has_no_files(scene: Scene) -> None:
    scene.set(status="cancelling", cancelling_at=1)

    record = scene.run()

    assert (record.status, record.has_output, record.has_errors) == ("cancelled", False, False)


def test_two_that_both_believe_that_a_batch_is_theirs_do_not_work_on_it_together(scene: Scene, redis_url: str) -> None:
    refused = 0

    def while_the_other_tries() -> bool:
        nonlocal refused
        with pytest.raises(FileInUse):
            scene.run()
        refused += 1
        return True

    with FakeWorker(redis_url) as worker:
        record = scene.run(while_the_other_tries)
        again = scene.run(lambda: False)

    assert refused > 5
    assert (record.status, again) == ("completed", record)
    assert sorted(scene.ids(record.output_id)) == sorted(worker.custom_ids) == ALL


@pytest.mark.parametrize("num_moved", [0, 1, 2])
def test_a_kill_while_the_files_are_handed_over_loses_none(
    num_moved: int, scene: Scene, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hand_over, calls = DataDirectory.hand_over, iter(range(num_moved))

    def hand_over_some(self: DataDirectory, result: Path, file_id: str) -> int | None:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return hand_over(self, result, file_id)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with FakeWorker(redis_url), monkeypatch.context() as patch:
        patch.setattr(DataDirectory, "hand_over", hand_over_some)
        patch.setattr(Client, "batch", die)  # which comes next
        with pytest.raises(KeyboardInterrupt):
            scene.run()

    record = scene.run()

    assert (record.status, sorted(scene.ids(record.output_id))) == ("completed", ALL)


def test_lines_that_a_kill_has_doubled_are_there_once(scene: Scene, redis_url: str) -> None:
    more = threading.Event()
    with FakeWorker(redis_url, answers_until(20, more)) as worker:
        with pytest.raises(LeftToOthers):
            scene.run(lambda: len(worker.custom_ids) <= 20)
        more.set()
    output, errors = scene.disk.batch_output(scene.id), scene.disk.batch_errors(scene.id)
    lines = output.read_bytes().splitlines(keepends=True)
    output.write_bytes(b"".join([*lines, lines[0], lines[1], b'{"custom_id": "r3', b""]))
    errors.write_bytes(
        b'{"id": "x", "custom_id": "%s", "response": null, "error": {"code": "c", "message": "m"}}\n'
        % (msgspec.json.decode(lines[2])["custom_id"].encode())
    )
    scene.set(status="cancelling", cancelling_at=1)

    record = scene.run()

    assert sorted(scene.ids(record.output_id) + scene.ids(record.error_id)) == ALL
    assert record.counts.completed >= len(lines)


# --- Leases ---------------------------------------------------------------------------------------------------


def test_a_lease_is_held_by_one_until_it_is_released(connection: Redis) -> None:
    one, other = BatchLeases(connection, 60), BatchLeases(connection, 60)

    assert one.hold(["a", "b"]) == ["a", "b"]
    assert other.hold(["a", "b", "c"]) == ["c"]
    assert one.hold(["a", "b", "c"]) == ["a", "b"]
    other.release(["a", "b", "c"])
    assert other.hold(["a", "b", "c"]) == ["c"]
    one.release(["a"])
    assert other.hold(["a", "b"]) == ["a"]


def test_a_lease_runs_out_and_is_taken_again_by_who_renews_it_first(connection: Redis) -> None:
    one, other = BatchLeases(connection, 60), BatchLeases(connection, 60)
    one.hold(["a", "b"])
    assert 0 < int(connection.pttl(keys.serve_lease("a"))) <= 60_000
    connection.delete(keys.serve_lease("a"), keys.serve_lease("b"))

    assert other.hold(["a"]) == ["a"]
    assert one.hold(["a", "b"]) == ["b"]


def test_a_stranger_under_the_key_of_a_lease_makes_room(connection: Redis) -> None:
    connection.rpush(keys.serve_lease("a"), "something")

    assert BatchLeases(connection, 60).hold(["a"]) == ["a"]
    assert connection.exists(keys.moved(keys.serve_lease("a")))
