"""`mlxq worker` as its user sees it: two processes, of which either may be killed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from typing import Any

import pytest
from redis import Redis
from rq.worker import Worker
from tests.support.batch_files import demo_examples, requests, text_of
from tests.support.processes import MLXQ, ended, run, running
from tests.support.redis_at import redis_at
from tests.support.redis_fixture import MortalRedis, user_with_rights
from tests.support.waiting import wait_until

from mlxq.queue.batch import Batch
from mlxq.queue.client import Client
from mlxq.queue.counts import BatchCounts
from mlxq.requests.openai import parse_object
from mlxq_worker.processes import is_alive

EXAMPLES = demo_examples(24)
WORKER = (*MLXQ, "worker", "--model", "demo", "--max-num-seqs", "4")
SAYS_ITS_MODULES = (
    "import atexit, json, sys; atexit.register(lambda: print(json.dumps(list(sys.modules))));"
    "from mlxq.cli import main; main()"
)

Recycled = tuple[subprocess.CompletedProcess[str], BatchCounts]

pytestmark = pytest.mark.slow


def enqueue(connection: Redis) -> Batch:
    lines = [parse_object(line, default_custom_id="none") for line in requests(EXAMPLES)]
    return Client(connection).submit(lines)


def working_pid(connection: Redis, but: int = 0) -> int:
    """The process id of the worker that Redis knows, once it is not `but`."""
    found: set[int] = set()

    def look() -> bool:
        workers: list[Any] = Worker.all(connection=connection, serializer="json")
        found.update(worker.pid for worker in workers if worker.pid != but)
        return bool(found)

    wait_until(look, "a worker")
    return found.pop()


def test_a_worker_whose_process_is_killed_goes_on_at_once_and_every_answer_is_right(
    connection: Redis, redis_url: str
) -> None:
    batch = enqueue(connection)

    with running(*WORKER, MLXQ_URL=redis_url, MLXQ_LEASE_S="90") as supervisor:
        first = working_pid(connection)
        wait_until(lambda: batch.counts().num_ended > 5, "the first answers")
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: batch.counts().num_ended == len(EXAMPLES), "all answers")
        supervisor.terminate()
        output = ended(supervisor)

    answers = {answer.custom_id: answer.line for answer in batch.as_completed()}
    right = [name for name, example in EXAMPLES.items() if text_of(answers[name]) == example.expected_text]
    assert len(right) >= 0.95 * len(EXAMPLES)
    assert supervisor.returncode == 0
    assert first != supervisor.pid
    assert "A worker ended with SIGKILL and is started again" in output
    assert "jobs in hand: " in output


def test_a_supervisor_that_is_killed_takes_its_worker_along(connection: Redis, redis_url: str) -> None:
    with running(*WORKER, MLXQ_URL=redis_url) as supervisor:
        pid = working_pid(connection)
        supervisor.kill()
        wait_until(lambda: not is_alive(pid), "the worker to end itself")


def test_a_model_that_is_not_there_is_one_sentence_and_not_tried_again(redis_url: str) -> None:
    done = run(*MLXQ, "worker", "--model", "./no-such-model", MLXQ_URL=redis_url)

    assert (done.returncode, done.stderr.splitlines()[-1]) == (2, "Error: there is no directory ./no-such-model")
    assert done.stderr.count("Error: ") == 1


def test_a_memory_limit_that_the_model_alone_exceeds_is_one_sentence(redis_url: str) -> None:
    done = run(*MLXQ, "worker", "--model", "demo", "--memory-limit", "1MB", MLXQ_URL=redis_url)

    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("Error: the weights of mlxq-demo take 4 MiB, ")
    assert "raise --memory-limit (MLXQ_MEMORY_LIMIT)" in done.stderr


def test_a_redis_that_is_not_there_is_one_sentence_and_the_code_that_asks_for_a_restart() -> None:
    done = run(*MLXQ, "worker", "--model", "demo", MLXQ_URL="redis://localhost:1")

    assert (done.returncode, done.stderr.count("Error: ")) == (3, 1)
    assert "Error: Redis at localhost:1/0 can't be reached" in done.stderr


def test_a_login_that_redis_refuses_is_one_sentence_and_not_tried_again(connection: Redis, redis_url: str) -> None:
    connection.acl_setuser("guest", enabled=True, passwords=["+right"])

    done = run(*MLXQ, "worker", "--model", "demo", MLXQ_URL=redis_url.replace("unix://", "unix://guest:wrong@"))

    connection.acl_deluser("guest")
    assert (done.returncode, done.stderr.count("Error: ")) == (2, 1)
    assert "refuses the login" in done.stderr


def test_a_worker_with_the_rights_of_a_producer_is_told_those_that_it_lacks_and_not_tried_again(
    mortal_redis: MortalRedis,
) -> None:
    url = user_with_rights(mortal_redis.url, "producer")

    done = run(*MLXQ, "worker", "--model", "demo", MLXQ_URL=url)

    assert (done.returncode, done.stderr.count("Error: ")) == (2, 1)
    assert "may not run HINCRBYFLOAT, HSTRLEN, LPOP, PERSIST, ZRANGEBYSCORE, SUBSCRIBE: ACL SETUSER" in done.stderr
    assert "mlxq deploy acl --role worker" in done.stderr.splitlines()[-1]


@pytest.fixture(scope="module")
def recycled(redis_server_url: str) -> Recycled:
    """A worker that recycles itself until all is answered; it says which modules its supervisor has imported."""
    with redis_at(redis_server_url) as connection:
        connection.flushall()
        batch = enqueue(connection)
        command = (sys.executable, "-c", SAYS_ITS_MODULES, *WORKER[3:], "--burst", "--max-jobs", "8")
        return run(*command, MLXQ_URL=redis_server_url), batch.counts()


def test_a_worker_that_recycles_itself_goes_on_in_a_fresh_process(recycled: Recycled) -> None:
    done, counts = recycled

    names = re.findall(r"Worker (\w+): model", done.stderr)
    assert counts.num_finished == len(EXAMPLES)
    assert done.returncode == 0, done.stderr
    assert 2 <= len(set(names)) == len(names) <= 3
    assert "is started again" not in done.stderr


def test_the_supervising_process_never_imports_mlx(recycled: Recycled) -> None:
    done, _ = recycled

    loaded = {name.split(".")[0] for name in json.loads(done.stdout)}
    assert done.returncode == 0, done.stderr
    assert "mlxq_worker" in loaded
    assert loaded.isdisjoint({"mlx", "mlx_lm", "numpy", "transformers", "tokenizers"})
