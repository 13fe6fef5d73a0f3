"""What `mlxq serve` holds in memory while a large file is uploaded and downloaded.

    python -m tests.bench.upload

The peak is that of the service's process, as Linux tells it (VmHWM). Needs curl. The last line is JSON.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
import time
from pathlib import Path

import click
from tests.bench import report
from tests.support.processes import MLXQ, environment

from mlxq_worker.supervision.redis_server import private_redis

PROMPT_CHARS = 10_000


@click.command(help=__doc__)
@click.option("--megabytes", type=click.IntRange(1), default=1000, show_default=True)
@report.json_option
def main(megabytes: int, json_path: Path | None) -> None:
    with tempfile.TemporaryDirectory() as name, private_redis() as redis:
        folder = Path(name)
        file = folder / "in.jsonl"
        write_file(file, megabytes * 10**6)
        command = [*MLXQ, "serve", "--port", "0", "--data", str(folder / "data"), "--url", redis.url]
        with subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True) as service:
            try:
                figures = measure(service, file)
            finally:
                service.kill()
    report.publish({"megabytes": megabytes, **figures}, json_path)


def write_file(path: Path, num_bytes: int) -> None:
    with path.open("w", encoding="utf-8") as file:
        number = 0
        while file.tell() < num_bytes:
            body = {"prompt": "x" * PROMPT_CHARS}
            line = {"custom_id": f"{number:08}", "method": "POST", "url": "/v1/completions", "body": body}
            file.write(f"{json.dumps(line)}\n")
            number += 1


def measure(service: subprocess.Popen[str], file: Path) -> dict[str, float]:
    url = url_of(service)
    idle_mb = peak_mb(service.pid)
    began = time.monotonic()
    upload = ["curl", "-sf", "-F", "purpose=batch", "-F", f"file=@{file}", f"{url}/v1/files"]
    file_id = json.loads(subprocess.run(upload, capture_output=True, check=True).stdout)["id"]
    uploaded = time.monotonic()
    copy = file.with_suffix(".copy")
    subprocess.run(["curl", "-sf", "-o", str(copy), f"{url}/v1/files/{file_id}/content"], check=True)
    downloaded = time.monotonic()
    subprocess.run(["cmp", str(copy), str(file)], check=True)
    return {
        "idle_mb": idle_mb,
        "peak_mb": peak_mb(service.pid),
        "upload_s": round(uploaded - began, 1),
        "download_s": round(downloaded - uploaded, 1),
    }


def url_of(service: subprocess.Popen[str]) -> str:
    assert service.stderr is not None
    for line in service.stderr:
        if found := re.search(r"Serving (http://\S+)/v1 from", line):
            return found[1]
    raise RuntimeError("the service has ended")


def peak_mb(pid: int) -> float:
    """The most memory that a process has held so far."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(encoding="utf-8"))
    assert found is not None
    return round(int(found[1]) / 1000, 1)


if __name__ == "__main__":
    main()
