"""`mlxq bench` measures, a worker takes what it has proposed and says so, and `mlxq top` shows it at work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from redis import Redis
from tests.support.batch_files import demo_examples, requests, write_lines
from tests.support.processes import MLXQ, run, running
from tests.support.waiting import wait_until

from mlxq.queue.overview import overview

pytestmark = pytest.mark.slow


def test_a_worker_without_a_width_takes_what_bench_has_proposed_and_top_shows_it(
    connection: Redis, redis_url: str, tmp_path: Path
) -> None:
    # given
    cache = {"MLXQ_CACHE_DIR": str(tmp_path / "cache")}
    picture = tmp_path / "bench.png"
    options = ("--max-width", "4", "--steps", "2", "--prompt-tokens", "16", "--json", "--png", str(picture))
    measured = run(*MLXQ, "bench", "--model", "demo", *options, **cache)
    assert measured.returncode == 0, measured.stderr
    assert picture.read_bytes().startswith(b"\x89PNG")
    found = json.loads(measured.stdout)
    width = found["proposal"]["max_num_seqs"]
    write_lines(tmp_path / "in.jsonl", requests(demo_examples(40)))
    added = run(*MLXQ, "enqueue", "-i", "in.jsonl", "--batch-id", "b1", cwd=tmp_path, MLXQ_URL=redis_url)

    # when
    with running(*MLXQ, "worker", "--model", "demo", MLXQ_URL=redis_url, **cache) as worker:
        wait_until(lambda: any(queue.workers for queue in overview(connection, "mlxq").queues), "the worker")
        wait_until(lambda: connection.llen("rq:queue:mlxq") == 0, "its first claims")
        top = run(*MLXQ, "top", "--once", "--interval", "0.2", MLXQ_URL=redis_url, COLUMNS="140")
        worker.terminate()
        log, _ = worker.communicate()

    # then
    assert [each["width"] for each in found["widths"]] == [1, 2, 4][: len(found["widths"])]
    assert all(each["tokens_per_s"] > 0 and each["memory_bytes"] > 0 for each in found["widths"])
    assert f"No width was given: {width} rows at once" in log
    assert f"queues mlxq, up to {width} rows" in log
    assert added.returncode == top.returncode == 0, top.stderr
    row = next(line.split() for line in top.stdout.splitlines() if "mlxq-demo" in line)
    assert row[2:5] == ["mlxq-demo", str(width), row[4]]
    assert "stopped by" in top.stdout
