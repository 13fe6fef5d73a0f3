"""Runs into packed files and tables, killed and started again: each id once, and nothing finished is asked twice."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from pyarrow import parquet
from tests.support.fake_worker import FakeWorker, echo
from tests.support.file_runs import Files, go_on, prompt
from tests.support.waiting import DEADLINE_S, wait_until

from mlxq.contract import Request
from mlxq.files.bulk import process
from mlxq.files.input import read_requests
from mlxq.files.output.answer_table import AnswerTable
from mlxq.files.output.stored import read_lines
from mlxq.queue.client import Client
from mlxq.tables.columns import Columns
from mlxq.tables.flat import FlatShape

NUM_REQUESTS = 100
KILLED = """
import sys
from pathlib import Path
from mlxq.files.bulk import process
from mlxq.queue.client import Client
from mlxq.files.input import read_requests
url, given, output, errors = sys.argv[1:]
process(Client(url), read_requests(given), Path(output), Path(errors), on_turn=lambda tally: True)
"""


@pytest.mark.parametrize("name", ["out.jsonl.gz", "out.jsonl.zst"])
def test_a_killed_run_into_a_packed_file_loses_nothing_and_a_rerun_doubles_nothing(
    name: str, redis_url: str, tmp_path: Path
) -> None:
    # given a run that is killed with half of its answers written or on their way, and a torn block behind them
    files = Files(tmp_path)
    files.write_numbered(NUM_REQUESTS)
    output = tmp_path / name
    is_killed, halfway = Event(), iter(range(NUM_REQUESTS // 2))

    def answer(request: Request, job_id: str) -> dict[str, Any]:
        if next(halfway, None) is None:
            is_killed.wait(DEADLINE_S)
        return echo(request, job_id)

    with FakeWorker(redis_url, answer) as first:
        arguments = [redis_url, str(files.input), str(output), str(files.errors)]
        with subprocess.Popen([sys.executable, "-c", KILLED, *arguments]) as doomed:
            wait_until(lambda: output.exists() and output.stat().st_size > 0, "the first block")
            doomed.kill()
        is_killed.set()
    whole = output.read_bytes()
    output.write_bytes(whole + whole[: len(whole) // 2])

    # when
    with FakeWorker(redis_url) as second:
        summary = process(Client(redis_url), read_requests(files.input), output, files.errors, on_turn=go_on)

    # then
    ids = [f"r{i}" for i in range(NUM_REQUESTS)]
    assert sorted(line["custom_id"] for line in read_lines(output)) == sorted(ids)
    assert sorted(first.custom_ids + second.custom_ids) == sorted(ids)
    assert summary.skipped >= len(first.custom_ids)  # more if a request was still there for the second worker


def test_a_table_comes_with_the_run_that_ends_and_has_the_rows_of_all_runs(redis_url: str, tmp_path: Path) -> None:
    # given a run that was interrupted, without taking a column along
    files = Files(tmp_path)
    files.write_input(*({**prompt(f"r{i}"), "label": i * 10} for i in range(6)), {"id": "bad", "top_p": 7, "label": 1})
    output, answers = tmp_path / "out.parquet", tmp_path / "out.answers.jsonl"
    table = AnswerTable(output, FlatShape.read("custom_id,text,error", ("label",)))

    def lines() -> Any:
        return read_requests(files.input, columns=Columns(keep=("label",)))

    with FakeWorker(redis_url):
        first = process(
            Client(redis_url),
            lines(),
            answers,
            files.errors,
            max_inflight=2,
            table=table,
            on_turn=lambda tally: tally.succeeded < 2,
        )
        assert first.interrupted
        assert not output.exists()

        # when
        process(Client(redis_url), lines(), answers, files.errors, table=table, on_turn=go_on)

    # then
    found = parquet.read_table(output).to_pydict()
    assert found["custom_id"] == [*(f"r{i}" for i in range(6)), "bad"]
    assert found["label"] == [*range(0, 60, 10), 1]
    assert found["text"] == ["Say hello"] * 6 + [None]
    assert [error is None for error in found["error"]] == [True] * 6 + [False]
