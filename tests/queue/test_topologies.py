"""More than one Redis: through Sentinel everything goes on after a failover; a cluster is refused in a sentence."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from threading import Thread

import pytest
from click.testing import CliRunner
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from tests.support.fake_engine import FakeWorker
from tests.support.fake_worker import FakeWorker as EchoWorker
from tests.support.processes import MLXQ, run
from tests.support.queued_jobs import submit
from tests.support.redis_at import redis_on
from tests.support.topologies import Watched, cluster, watched_by_sentinel
from tests.support.waiting import DEADLINE_S, wait_until

from mlxq.aio.client import AsyncClient
from mlxq.cli import main
from mlxq.errors import ConfigError, QueueError, QueueUnavailable
from mlxq.queue.client import Client
from mlxq.queue.connect import connect
from mlxq.requests.openai import text_request
from mlxq_worker.config import WorkerConfig

PROMPTS = ["hello"] * 20


@pytest.fixture
def watched(redis_program: str, tmp_path: Path) -> Iterator[Watched]:
    with watched_by_sentinel(redis_program, tmp_path) as topology:
        yield topology


def test_workers_and_clients_follow_sentinel_to_a_new_primary(watched: Watched) -> None:
    with connect(watched.url) as for_worker, connect(watched.url) as for_client:
        # given
        config = WorkerConfig(model="fake", url=watched.url)
        worker = FakeWorker(["mlxq"], connection=for_worker, serializer="json", config=config)
        thread = Thread(target=worker.work, daemon=True)
        thread.start()
        before = submit(for_client, *PROMPTS)
        assert before.wait(DEADLINE_S).num_finished == len(PROMPTS)
        with redis_on(watched.primary_port) as primary:
            assert primary.wait(1, int(DEADLINE_S * 1000)) == 1, "what was acknowledged is on the replica"

        # when
        watched.primary.kill()
        with redis_on(watched.replica_port) as replica:
            wait_until(lambda: replica.info("replication")["role"] == "master", "the failover")
            wait_until(lambda: leads_to(for_client, watched.replica_port), "Sentinel to say so")
            after = submit(for_client, *PROMPTS)
            counts = after.wait(DEADLINE_S)

            # then
            assert counts.num_finished == len(PROMPTS)
            assert replica.exists(f"mlxq:batch:{after.id}")
        for _ in range(2):
            worker.request_stop(15, None)
        thread.join(DEADLINE_S)
        assert before.counts().num_finished == len(PROMPTS)


def test_a_client_in_an_event_loop_follows_sentinel_to_a_new_primary(watched: Watched) -> None:
    async def main() -> None:
        async with AsyncClient(watched.url) as client:
            # given
            before = await client.submit(PROMPTS)
            with redis_on(watched.primary_port) as primary:
                assert primary.wait(1, int(DEADLINE_S * 1000)) == 1, "what was acknowledged is on the replica"

            # when
            watched.primary.kill()
            with redis_on(watched.replica_port) as replica:
                await asyncio.to_thread(
                    wait_until, lambda: replica.info("replication")["role"] == "master", "the failover"
                )
            await until_it_leads_to(client, watched.replica_port)
            after = await client.submit(PROMPTS)

            # then
            with EchoWorker(f"redis://127.0.0.1:{watched.replica_port}"):
                counts = [await batch.wait(DEADLINE_S) for batch in (before, after)]
            assert [count.num_finished for count in counts] == [len(PROMPTS)] * 2
            assert [answer.text async for answer in after.as_completed()] == PROMPTS

    asyncio.run(main())


async def until_it_leads_to(client: AsyncClient, port: int) -> None:
    """Until Sentinel names this port; until then commands fail as they do with a client that blocks."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        with suppress(QueueUnavailable):
            await client.batch_ids()
            if client.redis.connection_pool.master_address[1] == port:
                return
        await asyncio.sleep(0.05)
    raise AssertionError("Sentinel names another")


def test_a_client_in_an_event_loop_names_a_service_that_no_sentinel_knows(watched: Watched) -> None:
    async def main() -> None:
        async with AsyncClient(watched.url.replace("mlxq-test", "other")) as client:
            with pytest.raises(QueueUnavailable, match=r"Redis at Sentinel's other/0 can't be reached: no Sentinel"):
                await client.batch_ids()

    asyncio.run(main())


def leads_to(connection: Redis, port: int) -> bool:
    try:
        return bool(connection.connection_pool.get_master_address()[1] == port)
    except RedisConnectionError:  # not yet
        return False


def test_commands_take_a_url_of_sentinel(watched: Watched) -> None:
    shown = run(*MLXQ, "enqueue", "--prompt", "hello", "--batch-id", "b", MLXQ_URL=watched.url)
    listed = run(*MLXQ, "status", MLXQ_URL=watched.url)

    assert (shown.returncode, shown.stdout) == (0, "b\n"), shown.stderr
    assert "queue mlxq: 1 waiting" in listed.stdout, listed.stderr


def test_a_service_that_no_sentinel_knows_is_named(watched: Watched) -> None:
    url = watched.url.replace("mlxq-test", "other")

    done = CliRunner().invoke(main, ["status", "--url", url])

    assert done.exit_code != 0
    assert "Redis at Sentinel's other/0 can't be reached" in done.stderr


@pytest.fixture
def cluster_url(redis_program: str, tmp_path: Path) -> Iterator[str]:
    with cluster(redis_program, tmp_path) as url:
        yield url


@pytest.mark.parametrize(
    "command",
    [
        ("status",),
        ("status", "--json"),
        ("enqueue", "--prompt", "hello"),
        ("collect", "b", "-o", "out.jsonl"),
        ("cancel", "b"),
        ("run", "-i", "in.txt", "-o", "out.jsonl"),
    ],
)
def test_a_cluster_is_refused_in_one_sentence_by_every_command(
    cluster_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in.txt").write_text("hello\n")

    done = CliRunner().invoke(main, [*command, "--url", cluster_url])

    assert done.exit_code == 2
    assert done.stderr.count("is a Redis Cluster, which keeps a part of the keys on each node") == 1
    assert not Path("out.jsonl").exists()


def test_a_cluster_is_refused_by_workers(cluster_url: str) -> None:
    with connect(cluster_url) as redis:
        worker = FakeWorker(["mlxq"], connection=redis, serializer="json", config=WorkerConfig(model="fake"))
        with pytest.raises(ConfigError, match="is a Redis Cluster"):
            worker.work(burst=True)
        assert redis.dbsize() == 0


def test_a_program_that_meets_a_cluster_hears_the_same(cluster_url: str) -> None:
    with pytest.raises(QueueError, match="is a Redis Cluster"):
        Client(cluster_url).submit([text_request("hello", custom_id="a")])
