"""`mlxq serve` as a process that is killed again and again, and with a worker of its own."""

from __future__ import annotations

import random
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from openai import OpenAI
from tests.support.fake_worker import FakeWorker
from tests.support.processes import MLXQ, environment, run
from tests.support.served import ENDED, begun, chat_line, ended, ids_of, lines_of, openai_client
from tests.support.waiting import DEADLINE_S

KEYS = {"alice": "sk-alice-0123456789", "bob": "sk-bob-0123456789"}
NUM_KILLS = 5
NUM_BATCHES = 3
"""Of each key."""
NUM_LINES = 120


@contextmanager
def served(data: Path, *options: str, **variables: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The URL of a service, once it says so, and its process; killed in the end if it still runs."""
    command = (*MLXQ, "serve", "--port", "0", "--data", str(data), *options)
    process = subprocess.Popen(command, env=environment(**variables), stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        said = []
        for line in process.stderr:
            said.append(line)
            if found := re.search(r"Serving (http://\S+)/v1 from", line):
                yield found[1], process
                break
        else:
            raise AssertionError("".join(said))
    finally:
        process.kill()
        process.communicate(timeout=DEADLINE_S)


def test_a_service_that_is_killed_again_and_again_answers_every_line_once(redis_url: str, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("".join(f"{name} {key}\n" for name, key in KEYS.items()))
    keys.chmod(0o600)
    options = ("--url", redis_url, "--api-keys", str(keys), "--batch-lease", "1", "--max-inflight", "50")
    batch_ids: dict[str, list[str]] = {name: [] for name in KEYS}
    rng = random.Random(0)
    with FakeWorker(redis_url) as worker:
        for _ in range(NUM_KILLS):
            with served(tmp_path / "data", *options) as (url, process):
                for name, key in KEYS.items():
                    if len(batch_ids[name]) < NUM_BATCHES:
                        lines = [chat_line(f"{name}-{i}", temperature=None) for i in range(NUM_LINES)]
                        batch_ids[name].append(begun(openai_client(url, key), lines).id)
                time.sleep(rng.uniform(0, 0.7))  # what is tried is a kill at any moment, whatever it finds
                process.kill()
        with served(tmp_path / "data", *options) as (url, process):
            clients = {name: openai_client(url, key) for name, key in KEYS.items()}
            for name, client in clients.items():
                for batch_id in batch_ids[name]:
                    done = ended(client, batch_id)
                    assert (done.status, done.error_file_id) == ("completed", None)
                    assert ids_of(client, done.output_file_id) == sorted(f"{name}-{i}" for i in range(NUM_LINES))
                assert {batch.id for batch in client.batches.list()} == set(batch_ids[name])
            process.send_signal(signal.SIGTERM)
            assert process.wait(DEADLINE_S) == 0

    assert len(worker.custom_ids) >= 2 * NUM_BATCHES * NUM_LINES
    assert list((tmp_path / "data" / "batches").iterdir()) == []


def test_one_command_is_a_whole_service_and_goes_on_after_a_kill(tmp_path: Path) -> None:
    prompts = {f"r{i}": f"Count from {i} to {i + 3}:" for i in range(1, 41)}
    lines = [
        {"custom_id": name, "url": "/v1/completions", "body": {"prompt": text, "temperature": 0}}
        for name, text in prompts.items()
    ]
    options = ("--with-worker", "--model", "demo", "--max-num-seqs", "4")
    with served(tmp_path / "data", *options) as (url, process):
        client = openai_client(url)
        batch_id = begun(client, lines, endpoint="/v1/completions").id
        while progress_of(client, batch_id) == 0:
            time.sleep(0.02)
        process.kill()
    with served(tmp_path / "data", *options) as (url, process):
        client = openai_client(url)
        done = ended(client, batch_id)
        texts = {
            line["custom_id"]: line["response"]["body"]["choices"][0]["text"]
            for line in lines_of(client, done.output_file_id)
        }
        assert done.status == "completed"
        assert texts == {f"r{i}": f" {i} {i + 1} {i + 2} {i + 3}" for i in range(1, 41)}
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE_S) == 0


def progress_of(client: OpenAI, batch_id: str) -> int:
    """How many answers there are."""
    batch = client.batches.retrieve(batch_id)
    assert batch.status not in ENDED - {"completed"}
    assert batch.request_counts is not None
    return batch.request_counts.completed


def test_a_service_that_others_can_reach_wants_keys(tmp_path: Path) -> None:
    done = run(*MLXQ, "serve", "--host", "0.0.0.0", "--data", str(tmp_path))

    assert done.returncode == 2
    assert "others can reach 0.0.0.0: give --api-keys, or --no-auth" in done.stderr


def test_what_is_for_a_worker_is_refused_without_one(tmp_path: Path) -> None:
    done = run(*MLXQ, "serve", "--model", "demo", "--data", str(tmp_path))

    assert done.returncode == 2
    assert "--model is for a worker: give --with-worker, too" in done.stderr


def test_a_redis_that_is_not_there_is_said_at_once(tmp_path: Path) -> None:
    done = run(*MLXQ, "serve", "--url", f"unix://{tmp_path}/nothing", "--data", str(tmp_path))

    assert done.returncode == 3
    assert "can't be reached" in done.stderr
