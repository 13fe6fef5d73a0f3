"""What one worker process takes of the machine's memory, early and late: 20,000 short requests with the demo model.

    python -m tests.bench.memory

Exit code 1 if it takes over 10% more after all of them than after the first 2,000. The last line is JSON. The other
leak that there may be, in the caches of recurrent models, is tests/engine/test_leaks.py's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from mlxq.queue.client import Client
from mlxq.requests.openai import text_request
from mlxq_worker.commands.worker_options import worker_command
from mlxq_worker.supervision.redis_server import private_redis

CHUNK = 500
MAX_TOKENS = 2
MAX_GROWTH = 1.10
DEADLINE_S = 3600.0


@click.command(help=__doc__)
@click.option("--first", type=click.IntRange(1), default=2_000, show_default=True)
@click.option("--requests", "total", type=click.IntRange(1), default=20_000, show_default=True)
def main(first: int, total: int) -> None:
    with private_redis() as redis:
        early, late = resident_after([first, total], worker_command("mlxq", model="demo"), {"MLXQ_URL": redis.url})
    print(f"resident after {first:,} requests: {early / 2**20:.1f} MiB, after {total:,}: {late / 2**20:.1f} MiB")
    print(json.dumps({"requests": [first, total], "resident_bytes": [early, late], "growth": late / early}))
    sys.exit(late > MAX_GROWTH * early)


def resident_after(counts: Sequence[int], command: Sequence[str], variables: Mapping[str, str]) -> list[int]:
    """Have a worker process, without a supervisor, answer short requests; its resident bytes whenever it has answered
    so many of them (rising)."""
    client, num_done, resident = Client(variables["MLXQ_URL"]), 0, []
    worker = subprocess.Popen(command, env={**os.environ, **variables, "MLXQ_PARENT_PID": str(os.getpid())})
    try:
        for count in counts:
            while num_done < count:
                size = min(CHUNK, count - num_done)
                _answer(client, num_done, size, worker)
                num_done += size
            resident.append(resident_bytes(worker.pid))
    finally:
        worker.terminate()
        worker.wait()
        client.close()
    return resident


def _answer(client: Client, start: int, size: int, worker: subprocess.Popen[bytes]) -> None:
    defaults = {"max_tokens": MAX_TOKENS, "temperature": 0}
    names = (f"r{index}" for index in range(start, start + size))
    batch = client.submit([text_request(f"count {name}", custom_id=name, defaults=defaults) for name in names])
    deadline = time.monotonic() + DEADLINE_S
    while batch.counts().num_finished < size:
        if worker.poll() is not None or time.monotonic() > deadline:
            raise click.ClickException(f"the worker stopped answering, its exit code is {worker.returncode}")
        time.sleep(0.05)


def resident_bytes(pid: int) -> int:
    """What another process takes of the machine's memory right now."""
    if sys.platform == "linux":
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return int(subprocess.check_output(["ps", "-o", "rss=", "-p", str(pid)])) * 1024


if __name__ == "__main__":
    main()
