"""What jobs that are claimed ahead cost in leases: one beat over all that a worker holds, as it claims further ahead.

    python -m tests.bench.lease_work

A worker beats once a second, so milliseconds of one beat are thousandths of its I/O thread's time, and those of Redis
are thousandths of that server's. `redis_ms` is what Redis says that the script took. The last line is JSON.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any, cast

import click
from redis import Redis
from tests.bench import report
from tests.support.queued_jobs import submit

from mlxq_worker.jobs.claimed import ClaimedJob
from mlxq_worker.jobs.store import JobStore
from mlxq_worker.supervision.redis_server import private_redis


@click.command(help=__doc__)
@click.option("--width", type=click.IntRange(1), default=32, show_default=True)
@click.option("--claim-ahead", "multiples", multiple=True, type=click.IntRange(1), default=(1, 2, 4, 8, 16, 32))
@click.option("--beats", "num_beats", type=click.IntRange(1), default=200, show_default=True)
@report.json_option
def main(width: int, multiples: tuple[int, ...], num_beats: int, json_path: Path | None) -> None:
    with private_redis() as server, Redis.from_url(server.url) as connection:
        figures = [{"claim_ahead": each, **measure(connection, width * each, num_beats)} for each in multiples]
    for each in figures:
        click.echo(
            f"{each['held']:6,} jobs held: a beat takes {each['beat_ms']:.2f} ms, {each['redis_ms']:.2f} in Redis"
        )
    report.publish({"width": width, "beats": num_beats, "claimed_ahead": figures}, json_path)


def measure(connection: Redis, num_held: int, num_beats: int) -> dict[str, Any]:
    connection.flushall()
    submit(connection, *["hello"] * num_held)
    store = JobStore(connection, "w", ["mlxq"])
    claimed = store.claim(num_held, time.time()).jobs
    store.beat(claimed, time.time())
    connection.config_resetstat()
    beats_s = [_beat_s(store, claimed) for _ in range(num_beats)]
    scripts = cast("dict[str, Any]", connection.info("commandstats"))["cmdstat_evalsha"]
    return {
        "held": num_held,
        "beat_ms": round(1000 * statistics.median(beats_s), 3),
        "redis_ms": round(scripts["usec"] / scripts["calls"] / 1000, 3),
    }


def _beat_s(store: JobStore, claimed: list[ClaimedJob]) -> float:
    began = time.perf_counter()
    store.beat(claimed, time.time())
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
