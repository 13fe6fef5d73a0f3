"""File in, file out: every input line is one output line, whatever fails, stops or is run again."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from tests.support.fake_worker import FakeWorker, echo, refuse
from tests.support.file_runs import Files, go_on, prompt, run
from tests.support.redis_at import redis_at
from tests.support.redis_fixture import MortalRedis
from tests.support.waiting import DEADLINE_S, wait_until

from mlxq import keys
from mlxq.contract import Request
from mlxq.errors import InputFileError, ModelError, QueueUnavailable
from mlxq.files.bulk import process
from mlxq.files.collection import collect
from mlxq.files.input import BadLine, read_requests
from mlxq.files.output.error_file import ErrorFile
from mlxq.files.output.result_file import ResultWriter
from mlxq.files.output.sink import Sink
from mlxq.files.tally import StopTextCount, Summary, Tally
from mlxq.queue.answers import Collector, EndedJob
from mlxq.queue.client import Client
from mlxq.requests.openai import ParsedLine, parse_line
from mlxq.results.answer import Answer


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def test_every_line_is_answered_or_refused_in_one_of_two_files(redis_url: str, files: Files) -> None:
    files.write_input(prompt("a"), "not json", prompt("b"), prompt("a"), {"custom_id": "c", "promt": "?"})
    with FakeWorker(redis_url):
        summary = run(redis_url, files)
    assert sorted(files.answers()) == ["a", "b"]
    assert sorted(files.failures()) == ["a", "c", "line-2"]
    assert (summary.total, summary.succeeded, summary.failed) == (5, 2, 3)
    assert dict(summary.error_codes) == {"invalid_json": 1, "duplicate_custom_id": 1, "unknown_field": 1}


def test_a_broken_line_costs_no_answer_that_goes_by_its_made_up_id(redis_url: str, files: Files) -> None:
    files.write_input("not json", prompt("line-1"), prompt("line-4"), "not json")
    with FakeWorker(redis_url):
        first = run(redis_url, files, ordered=True)
        again = run(redis_url, files)
    assert files.answers() == ["line-1", "line-4"]
    assert files.failures() == ["line-1", "line-4+"]
    assert (first.succeeded, first.failed, again.skipped, again.unasked) == (2, 2, 2, 0)


def test_the_summary_tells_stops_and_tokens(redis_url: str, files: Files) -> None:
    files.write_numbered(4)
    with FakeWorker(redis_url):
        summary = run(redis_url, files)
    assert summary.stops == (StopTextCount("eos_token", "<end>", 4),)
    assert (summary.prompt_tokens, summary.completion_tokens) == (20, 12)
    assert summary.seconds > 0


def test_failed_jobs_go_to_the_error_file_alone(redis_url: str, files: Files) -> None:
    files.write_numbered(2)
    with FakeWorker(redis_url, refuse):
        summary = run(redis_url, files)
    assert (files.answers(), sorted(files.failures())) == ([], ["r0", "r1"])
    assert summary.error_codes == (("prompt_too_long", 2),)


def test_without_failures_there_is_no_error_file(redis_url: str, files: Files) -> None:
    files.write_numbered(1)
    files.errors.write_text(failure_line("r0"))
    with FakeWorker(redis_url):
        run(redis_url, files)
    assert not files.errors.exists()


def failure_line(custom_id: str) -> str:
    line = {"custom_id": custom_id, "response": None, "error": {"code": "x"}}
    return json.dumps(line, separators=(",", ":")) + "\n"


def test_old_failures_stay_until_their_requests_have_another_outcome(redis_url: str, files: Files) -> None:
    # given failures of this input and of another one
    files.write_input(prompt("a"), prompt("b"), "not json")
    files.errors.write_text("".join(map(failure_line, ["a", "other", "a", "b"])))

    # when a run can't start, and when it can
    with pytest.raises(ModelError):
        run(redis_url, files, on_turn=fail_to_start)
    kept = files.failures()

    def fail_b(request: Request, job_id: str) -> dict[str, Any]:
        return (refuse if request.custom_id == "b" else echo)(request, job_id)

    with FakeWorker(redis_url, fail_b):
        summary = run(redis_url, files)

    # then
    assert kept == ["a", "other", "a", "b"]
    assert files.answers() == ["a"]
    assert sorted(files.failures()) == ["b", "line-3", "other"]
    assert summary.unasked_failures == 1


def fail_to_start(tally: Tally) -> bool:
    raise ModelError("there is no such model")


def test_a_run_that_fails_again_and_again_tells_of_a_bad_line_once(redis_url: str, files: Files) -> None:
    files.write_input("not json", prompt("a"))

    def fail_once_it_has_begun(tally: Tally) -> bool:
        return not tally.num_inflight or fail_to_start(tally)

    for _ in range(3):
        with pytest.raises(ModelError):
            run(redis_url, files, on_turn=fail_once_it_has_begun)
    assert files.failures() == ["line-1"]


def test_a_killed_run_leaves_its_failures_behind_the_old_ones(tmp_path: Path) -> None:
    # given a run that is killed before it closes its files
    path = tmp_path / "errors.jsonl"
    path.write_text(failure_line("a") + failure_line("other"))
    killed = (
        "import json, os, pathlib, sys; from mlxq.files.output.error_file import ErrorFile;"
        " ErrorFile(pathlib.Path(sys.argv[1]), keep=True).append(json.loads(sys.argv[2])); os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", killed, str(path), failure_line("a")], check=True)
    left = path.read_text()

    # when the next one settles the request
    with ErrorFile(path, keep=True) as errors:
        errors.settle("a")

    # then
    assert left == failure_line("a") + failure_line("other") + failure_line("a")
    assert path.read_text() == failure_line("other")


def test_without_resume_old_failures_go(redis_url: str, files: Files) -> None:
    files.write_numbered(1)
    files.errors.write_text(failure_line("other"))
    with FakeWorker(redis_url):
        run(redis_url, files, resume=False)
    assert not files.errors.exists()


def test_the_window_bounds_what_is_in_the_queue(redis_url: str, files: Files) -> None:
    files.write_numbered(200)
    seen: list[int] = []
    read = 0

    def counted(lines: Iterable[ParsedLine | BadLine]) -> Iterator[ParsedLine | BadLine]:
        nonlocal read
        for line in lines:
            read += 1
            yield line

    def watch(tally: Tally) -> bool:
        seen.append(tally.num_inflight)
        assert read <= tally.num_done + 20 + 20 + 1  # in the window, read ahead, and in the reader's hand
        return True

    with FakeWorker(redis_url):
        lines = counted(read_requests(files.input))
        process(Client(redis_url), lines, files.output, files.errors, max_inflight=20, on_turn=watch)
    assert 0 < max(seen) <= 20
    assert len(files.answers()) == 200


def test_the_window_bounds_the_bytes_in_the_queue(redis_url: str, files: Files) -> None:
    files.write_input(*(prompt(f"r{i}", "x" * 10_000) for i in range(60)))
    seen: list[int] = []

    def watch(tally: Tally) -> bool:
        seen.append(tally.num_inflight)
        return True

    with FakeWorker(redis_url):
        run(redis_url, files, max_inflight=50, max_inflight_bytes=100_000, on_turn=watch)

    assert 0 < max(seen) <= 20  # as many as fill the window, and those that were read ahead
    assert len(files.answers()) == 60


def test_redis_is_empty_of_jobs_afterwards(connection: Redis, redis_url: str, files: Files) -> None:
    files.write_numbered(20)
    with FakeWorker(redis_url):
        run(redis_url, files)
    [batch_id] = Client(redis_url).batch_ids()
    left = {key.decode() for key in connection.scan_iter("*")}
    assert left == {keys.BATCHES, keys.batch(batch_id), keys.batch_events(batch_id), "rq:queues"}
    assert connection.xlen(keys.batch_events(batch_id)) == 0
    assert Client(redis_url).batch(batch_id).counts().is_done


def test_a_rerun_skips_what_is_answered_and_tries_failures_again(redis_url: str, files: Files) -> None:
    def fail_r1(request: Request, job_id: str) -> dict[str, Any]:
        return (refuse if request.custom_id == "r1" else echo)(request, job_id)

    files.write_numbered(3)
    with FakeWorker(redis_url, fail_r1):
        run(redis_url, files)
    assert files.failures() == ["r1"]

    with FakeWorker(redis_url) as worker:
        summary = run(redis_url, files)

    assert worker.custom_ids == ["r1"]
    assert (summary.skipped, summary.succeeded, summary.failed) == (2, 1, 0)
    assert sorted(files.answers()) == ["r0", "r1", "r2"]
    assert files.failures() == []


def test_a_changed_request_is_answered_again_in_place_of_the_old_line(redis_url: str, files: Files) -> None:
    files.write_input(prompt("a"), prompt("b"))
    with FakeWorker(redis_url):
        run(redis_url, files)
        files.write_input(prompt("a", "Say goodbye"), prompt("b"))
        summary = run(redis_url, files)
    assert (summary.skipped, summary.succeeded) == (1, 1)
    assert sorted(files.answers()) == ["a", "b"]
    assert "Say goodbye" in files.output.read_text()


@pytest.mark.parametrize("line", [prompt("a", "Say goodbye"), {"custom_id": "a", "promt": "?"}])
def test_a_changed_request_that_now_fails_leaves_the_output(
    redis_url: str,
    files: Files,
    line: dict[str, Any],
) -> None:
    files.write_input(prompt("a"), prompt("b"))
    with FakeWorker(redis_url):
        run(redis_url, files)
    files.write_input(line, prompt("b"))
    with FakeWorker(redis_url, refuse):
        run(redis_url, files)
    assert (files.answers(), files.failures()) == (["b"], ["a"])


def test_two_lines_for_one_id_left_by_a_killed_run_become_one(redis_url: str, files: Files) -> None:
    files.write_input(prompt("a"))
    with FakeWorker(redis_url):
        run(redis_url, files)
    files.output.write_text(files.output.read_text() * 2)
    run(redis_url, files)
    assert files.answers() == ["a"]


def test_without_resume_everything_runs_again(redis_url: str, files: Files) -> None:
    files.write_numbered(2)
    with FakeWorker(redis_url) as worker:
        run(redis_url, files)
        summary = run(redis_url, files, resume=False)
    assert len(worker.custom_ids) == 4
    assert (summary.skipped, summary.succeeded) == (0, 2)
    assert sorted(files.answers()) == ["r0", "r1"]


def test_ordered_output_is_in_the_order_of_the_input(redis_url: str, files: Files) -> None:
    files.write_numbered(30)
    queue = f"rq:queue:{keys.DEFAULT_QUEUE}"
    reversed_once = False

    def reverse_queue(tally: Tally) -> bool:
        nonlocal reversed_once
        with redis_at(redis_url) as redis:
            if not reversed_once and redis.llen(queue) == 30:
                redis.lpush(queue, *redis.lpop(queue, 30))  # pushed one by one at the front: the last comes first
                reversed_once = True
                worker.__enter__()
        return True

    worker = FakeWorker(redis_url)
    run(redis_url, files, ordered=True, on_turn=reverse_queue)
    worker.__exit__(None, None, None)
    assert worker.custom_ids == [f"r{i}" for i in reversed(range(30))]
    assert files.answers() == [f"r{i}" for i in range(30)]


def test_a_stopped_run_keeps_what_has_ended_and_a_rerun_does_the_rest(redis_url: str, files: Files) -> None:
    files.write_numbered(50)
    stopped = threading.Event()

    def stall(request: Request, job_id: str) -> dict[str, Any]:
        if request.custom_id == "r20":
            stopped.wait(DEADLINE_S)
        return echo(request, job_id)

    with FakeWorker(redis_url, stall):
        first = run(redis_url, files, on_turn=lambda tally: tally.succeeded < 5)
        stopped.set()
        kept = len(files.answers())
    assert first.interrupted
    assert 5 <= kept == first.succeeded < 50
    assert files.failures() == []
    assert Client(redis_url).queue_length() == 0

    with FakeWorker(redis_url):
        second = run(redis_url, files)
    assert (second.skipped, second.succeeded, second.interrupted) == (kept, 50 - kept, False)
    assert sorted(files.answers()) == sorted(f"r{i}" for i in range(50))


KILLED = """
import sys
from pathlib import Path
from mlxq.files.bulk import process
from mlxq.queue.client import Client
from mlxq.files.input import read_requests
url, given, output, errors = sys.argv[1:]
process(Client(url), read_requests(given), Path(output), Path(errors), on_turn=lambda tally: True)
"""


def test_a_killed_run_loses_nothing_and_a_rerun_doubles_nothing(redis_url: str, files: Files) -> None:
    files.write_numbered(100)
    arguments = [redis_url, str(files.input), str(files.output), str(files.errors)]

    is_killed, halfway = Event(), iter(range(50))

    def answer(request: Request, job_id: str) -> dict[str, Any]:
        if next(halfway, None) is None:
            is_killed.wait(DEADLINE_S)
        return echo(request, job_id)

    with FakeWorker(redis_url, answer) as first:
        doomed = subprocess.Popen([sys.executable, "-c", KILLED, *arguments])
        wait_until(lambda: len(files.answers()) >= 5, "the first answers")
        doomed.kill()
        doomed.wait()
        is_killed.set()
    kept = len(files.answers())
    assert 5 <= kept < 100

    second = FakeWorker(redis_url)
    summary = run_before(second, redis_url, files)
    assert (summary.skipped, summary.succeeded) == (len(first.custom_ids), 100 - len(first.custom_ids))
    assert sorted(files.answers()) == sorted(f"r{i}" for i in range(100))
    assert sorted(first.custom_ids + second.custom_ids) == sorted(files.answers())
    assert Client(redis_url).queue_length() == 0


def run_before(worker: FakeWorker, url: str, files: Files, **options: Any) -> Summary:
    """A run whose worker comes only when the queue holds nothing of earlier runs any more."""
    with ExitStack() as stack:

        def start_once(tally: Tally) -> bool:
            if tally.num_inflight and not started:
                started.append(stack.enter_context(worker))
            return True

        started: list[FakeWorker] = []
        return run(url, files, on_turn=start_once, **options)


def leave_behind(url: str, files: Files, *, num_answered: int = 0) -> None:
    """What a run leaves that is killed with all its requests in the queue; some are answered after its death."""
    with redis_at(url) as redis:

        def die_once_all_is_queued(tally: Tally) -> bool:
            if tally.num_inflight:
                raise KeyboardInterrupt
            return True

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("mlxq.files.bulk._Bulk.__exit__", lambda *_: None)  # kill -9 leaves it no time for that
            with pytest.raises(KeyboardInterrupt):
                run(url, files, on_turn=die_once_all_is_queued)
        assert redis.llen(f"rq:queue:{keys.DEFAULT_QUEUE}") > num_answered
        ended = threading.Event()

        def stop_in_time(request: Request, job_id: str) -> dict[str, Any]:
            if len(worker.custom_ids) == num_answered:
                worker.stop()
                ended.set()
            return echo(request, job_id)

        worker = FakeWorker(url, stop_in_time)
        if num_answered:
            with worker:
                assert ended.wait(DEADLINE_S)


def test_answers_that_came_after_a_run_was_killed_are_taken_over(redis_url: str, files: Files) -> None:
    files.write_numbered(10)
    leave_behind(redis_url, files, num_answered=4)

    worker = FakeWorker(redis_url)
    summary = run_before(worker, redis_url, files)

    assert (summary.skipped, summary.succeeded, summary.failed) == (4, 6, 0)
    assert sorted(worker.custom_ids) == [f"r{i}" for i in range(4, 10)]
    assert sorted(files.answers()) == [f"r{i}" for i in range(10)]


def test_a_killed_run_leaves_nothing_that_workers_run_for_nothing(redis_url: str, files: Files) -> None:
    files.write_numbered(10)
    leave_behind(redis_url, files)
    files.write_input(prompt("r0", "Say goodbye"), prompt("r1"))

    worker = FakeWorker(redis_url)
    summary = run_before(worker, redis_url, files)

    assert sorted(worker.custom_ids) == ["r0", "r1"]
    assert summary.succeeded == 2
    assert "Say goodbye" in files.output.read_text()


def test_an_answer_to_what_a_killed_run_asked_is_replaced_when_the_request_has_changed(
    redis_url: str, files: Files
) -> None:
    files.write_numbered(2)
    leave_behind(redis_url, files, num_answered=1)
    files.write_input(prompt("r0", "Say goodbye"), prompt("r1"))

    summary = run_before(FakeWorker(redis_url), redis_url, files)

    assert (summary.skipped, summary.succeeded) == (0, 2)
    assert sorted(files.answers()) == ["r0", "r1"]
    assert "Say goodbye" in files.output.read_text()


@pytest.mark.parametrize("resume", [True, False], ids=["the output is removed", "no resume"])
def test_old_answers_are_not_taken_over_when_all_is_to_run_again(redis_url: str, files: Files, resume: bool) -> None:
    files.write_numbered(10)
    leave_behind(redis_url, files, num_answered=4)
    if resume:
        files.output.unlink()

    worker = FakeWorker(redis_url)
    run_before(worker, redis_url, files, resume=resume)

    assert sorted(worker.custom_ids) == [f"r{i}" for i in range(10)]


def test_runs_into_other_files_keep_their_batches(redis_url: str, files: Files, tmp_path: Path) -> None:
    files.write_numbered(10)
    leave_behind(redis_url, files)
    (tmp_path / "other").mkdir()
    other = Files(tmp_path / "other")
    other.write_input(prompt("a"))

    with FakeWorker(redis_url) as worker:
        run(redis_url, other)

    assert worker.custom_ids == [*(f"r{i}" for i in range(10)), "a"]
    assert other.answers() == ["a"]


def test_runs_that_share_a_device_as_their_output_keep_their_batches(redis_url: str, files: Files) -> None:
    files.write_numbered(10)
    files.output = Path("/dev/null")
    leave_behind(redis_url, files)

    with FakeWorker(redis_url) as worker:
        run(redis_url, files)

    assert len(worker.custom_ids) == 20


def test_a_full_disk_ends_what_is_queued_and_a_rerun_takes_over_what_was_answered(
    redis_url: str, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.write_numbered(50)
    append, stopped = ResultWriter.append, threading.Event()

    def fill_up(self: ResultWriter, line: dict[str, Any]) -> None:
        if len(files.answers()) == 5:
            raise InputFileError("No space left on device")
        append(self, line)

    def stall(request: Request, job_id: str) -> dict[str, Any]:
        if request.custom_id == "r20":
            stopped.wait(DEADLINE_S)
        return echo(request, job_id)

    monkeypatch.setattr(ResultWriter, "append", fill_up)
    with FakeWorker(redis_url, stall) as first:
        with pytest.raises(InputFileError, match="No space"):
            run(redis_url, files)
        stopped.set()
    assert (len(files.answers()), Client(redis_url).queue_length()) == (5, 0)

    monkeypatch.setattr(ResultWriter, "append", append)
    second = FakeWorker(redis_url)
    summary = run_before(second, redis_url, files)
    assert (summary.skipped, summary.failed) == (len(first.custom_ids), 0)
    assert sorted(first.custom_ids + second.custom_ids) == sorted(files.answers())
    assert len(files.answers()) == 50


def test_what_on_turn_raises_ends_the_run_after_collecting(redis_url: str, files: Files) -> None:
    def fail_later(tally: Tally) -> bool:
        if tally.succeeded >= 3:
            raise RuntimeError("the worker died")
        return True

    files.write_numbered(3)
    with FakeWorker(redis_url), pytest.raises(RuntimeError, match="the worker died"):
        run(redis_url, files, on_turn=fail_later)
    assert len(files.answers()) == 3


def test_answers_are_on_the_disk_before_their_jobs_are_deleted(
    connection: Redis,
    redis_url: str,
    files: Files,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    order: list[str] = []
    monkeypatch.setattr("mlxq.files.output.sink.Sink.sync", lambda self: order.append("sync"))
    monkeypatch.setattr("mlxq.queue.answers.Collector.forget", lambda self, answers: order.append("forget"))
    files.write_numbered(1)
    with FakeWorker(redis_url):
        run(redis_url, files)
    assert order == ["sync", "forget"]


def test_answers_and_failures_are_forced_to_the_disk_together(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    with Sink(files.output, files.errors) as sink:
        monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_ino))
        sink.sync()
        inodes = [file.stat().st_ino for file in (files.output, files.errors)]
        assert [inode for inode in synced if inode in inodes] == inodes


def test_two_runs_do_not_share_an_output_file(redis_url: str, files: Files) -> None:
    files.write_numbered(1)
    with Sink(files.output, files.errors), pytest.raises(InputFileError, match="another run"):
        run(redis_url, files)


def test_a_lost_redis_ends_the_run_with_its_address(files: Files) -> None:
    files.write_numbered(1)
    with pytest.raises(QueueUnavailable, match="localhost:1"):
        run("redis://localhost:1", files)


# --- Redis goes away ------------------------------------------------------------------------------------------


def impatient(url: str) -> Client:
    """A client that leaves trying again to mlxq."""
    return Client(redis_at(url, retry=Retry(NoBackoff(), 0)))


class Outage:
    """Kills Redis in the turn in which `num_done` requests are answered, and starts it again, with a worker, once
    the run has said that it is away."""

    def __init__(self, redis: MortalRedis, num_done: int, *, saves: bool) -> None:
        self.told: list[str] = []
        self.second_worker = FakeWorker(redis.url)
        self._redis = redis
        self._num_done = num_done
        self._saves = saves
        self._worker = FakeWorker(redis.url)
        self._is_over = False

    def on_turn(self, tally: Tally) -> bool:
        if not self._is_over and tally.num_done >= self._num_done:
            self._is_over = True
            self._worker.__exit__(None, None, None)
            if self._saves:
                self._redis.save()
            self._redis.kill()
        return True

    def tell(self, sentence: str) -> None:
        self.told.append(sentence)
        if len(self.told) == 1:
            self._redis.start()
            self.second_worker.__enter__()

    def __enter__(self) -> Outage:
        self._worker.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.second_worker.__exit__(None, None, None)


@pytest.mark.parametrize("saves", [True, False], ids=["with its data", "empty"])
def test_a_run_waits_for_redis_and_asks_again_for_what_it_lost(
    mortal_redis: MortalRedis, files: Files, saves: bool
) -> None:
    files.write_numbered(60)
    lines = read_requests(files.input)

    with Outage(mortal_redis, num_done=20, saves=saves) as outage:
        summary = process(
            impatient(mortal_redis.url),
            lines,
            files.output,
            files.errors,
            on_turn=outage.on_turn,
            max_inflight=20,
            tell=outage.tell,
        )

    assert (summary.succeeded, summary.failed, summary.interrupted) == (60, 0, False)
    assert sorted(files.answers()) == sorted(f"r{i}" for i in range(60))
    away, *lost, back = outage.told
    assert away.startswith(f"Redis at {mortal_redis.url} can't be reached: ")
    assert back == "Redis answers again."
    if not saves:
        assert re.fullmatch(r"Redis came back without \d+ of the requests; they are in the queue again\.", lost[0])


def test_following_a_batch_waits_for_redis(mortal_redis: MortalRedis, files: Files) -> None:
    files.write_numbered(40)
    lines = [line for line in read_requests(files.input) if isinstance(line, ParsedLine)]
    batch = impatient(mortal_redis.url).submit(lines)

    with Outage(mortal_redis, num_done=5, saves=True) as outage:
        summary = collect(
            batch,
            files.output,
            files.errors,
            on_turn=outage.on_turn,
            follow=True,
            ordered=True,
            tell=outage.tell,
        )

    assert (summary.succeeded, summary.interrupted) == (40, False)
    assert files.answers() == [f"r{i}" for i in range(40)]
    assert len(outage.told) == 2


def test_answers_that_could_not_be_fetched_come_with_the_next_turn(
    redis_url: str, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch, failures = Collector.fetch, [QueueUnavailable("gone for a moment")]

    def fail_once(self: Collector, ended: Sequence[EndedJob]) -> Iterator[Answer]:
        if failures:
            raise failures.pop()
        return fetch(self, ended)

    monkeypatch.setattr(Collector, "fetch", fail_once)
    files.write_numbered(3)
    with FakeWorker(redis_url):
        summary = run(redis_url, files, tell=lambda sentence: None)

    assert (summary.succeeded, failures) == (3, [])


def test_collecting_takes_what_has_ended_so_far(redis_url: str, files: Files) -> None:
    batch = Client(redis_url).submit([parse_line('{"prompt": "Say hello"}', default_custom_id="a")], sealed=False)
    with FakeWorker(redis_url):
        wait_until(lambda: batch.counts().num_ended == 1, "the answer")
    summary = collect(batch, files.output, files.errors, on_turn=go_on)
    assert (files.answers(), summary.interrupted) == (["a"], True)

    batch.seal()
    again = collect(batch, files.output, files.errors, on_turn=go_on)
    assert (files.answers(), again.skipped, again.interrupted) == (["a"], 1, False)


def test_following_a_batch_ends_when_it_is_done(redis_url: str, files: Files) -> None:
    files.write_numbered(20)
    lines = [line for line in read_requests(files.input) if isinstance(line, ParsedLine)]
    batch = Client(redis_url).submit(lines)
    with FakeWorker(redis_url):
        summary = collect(batch, files.output, files.errors, on_turn=go_on, follow=True, ordered=True)
    assert files.answers() == [f"r{i}" for i in range(20)]
    assert (summary.succeeded, summary.interrupted) == (20, False)
    assert batch.counts().total == 20


def test_collecting_may_delete_what_is_on_the_disk_and_goes_on_from_there(redis_url: str, files: Files) -> None:
    # given a batch that is enqueued through a window, of which one half is collected and the other follows
    files.write_numbered(20)
    lines = [line for line in read_requests(files.input) if isinstance(line, ParsedLine)]
    client, connection = Client(redis_url), redis_at(redis_url)
    batch = client.submit(lines[:10], "b", sealed=False)
    with FakeWorker(redis_url):
        wait_until(lambda: batch.counts().num_ended == 10, "ten answers")
        half = collect(batch, files.output, files.errors, on_turn=go_on, delete=True)
        num_kept = len(connection.keys("rq:job:*"))
        client.submit(lines, "b", max_inflight=5)  # the same file once more adds what was deleted, too
        whole = collect(batch, files.output, files.errors, on_turn=go_on, follow=True, delete=True)

    # then each answer is in the file once, and in Redis no longer
    assert (half.succeeded, half.interrupted, num_kept) == (10, True, 0)
    assert (whole.succeeded, whole.skipped, whole.interrupted) == (10, 10, False)
    assert sorted(files.answers()) == sorted(f"r{i}" for i in range(20))
    assert connection.keys("rq:job:*") + connection.keys("rq:results:*") == []


def test_answers_of_an_earlier_input_are_kept_and_counted_apart(redis_url: str, files: Files) -> None:
    files.write_input(prompt("old-1"), prompt("old-2"), prompt("both"), prompt("changes"))
    with FakeWorker(redis_url):
        first = run(redis_url, files)
        files.write_input(prompt("both"), prompt("changes", "Say it again"), prompt("new"))
        second = run(redis_url, files)
        stopped = run(redis_url, files, on_turn=lambda _: False)
    assert (first.unasked, second.unasked, second.total, stopped.unasked) == (0, 2, 3, 0)
    assert sorted(files.answers()) == ["both", "changes", "new", "old-1", "old-2"]
