"""`AsyncClient` over a real Redis: the same batches as `Client`'s, a loop that is never blocked, and tasks that can be
cancelled anywhere."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest
from redis.asyncio import Redis as AsyncRedis
from tests.support.fake_worker import FakeWorker
from tests.support.redis_at import redis_at
from tests.support.waiting import DEADLINE_S

from mlxq import Answer, AsyncBatch, AsyncClient, BatchNotFound, Client, ConfigError, QueueUnavailable, RequestError
from mlxq.keys import CHUNK


def numbered(count: int) -> Iterator[dict[str, Any]]:
    return ({"custom_id": f"r{i}", "prompt": f"prompt {i}"} for i in range(count))


def in_loop(url: str, script: Callable[[AsyncClient], Awaitable[None]], **options: Any) -> None:
    """Run a script with a client, and find that nothing of it is left: no task, no thread that still runs."""

    async def main() -> None:
        async with AsyncClient(url, **options) as client:
            await asyncio.wait_for(script(client), DEADLINE_S)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    before = {thread.name for thread in threading.enumerate() if thread.name.startswith("mlxq")}
    asyncio.run(main(), debug=False)
    for thread in threading.enumerate():
        if thread.name.startswith("mlxq") and thread.name not in before:
            thread.join(DEADLINE_S)
            assert not thread.is_alive()


def test_a_batch_is_submitted_counted_waited_for_and_read(redis_url: str) -> None:
    async def script(client: AsyncClient) -> None:
        batch = await client.submit(numbered(3), "b")
        assert (batch.id, batch.queue, repr(batch)) == ("b", "mlxq", "AsyncBatch('b', queue='mlxq')")
        assert await client.queue_length() == 3
        assert await batch.answer("r1") is None
        with FakeWorker(redis_url):
            assert (await batch.wait(DEADLINE_S)).is_done
            assert await client.num_workers() == 0  # which the played one does not say that it is
        assert {answer.custom_id: answer.text async for answer in batch} == {f"r{i}": f"prompt {i}" for i in range(3)}
        answer = await batch.answer("r1")
        assert answer is not None
        assert answer.text == "prompt 1"
        assert (await batch.answers(["r0", "r2", "nobody"])).keys() == {"r0", "r2"}
        assert await client.batch_ids() == ["b"]
        assert (await (await client.batch("b")).counts()).num_ended == 3
        assert (await client.batch_of(batch.job_id("r1"))).id == "b"
        assert await batch.rate() > 0
        await batch.delete()
        with pytest.raises(BatchNotFound):
            await client.batch("b")

    in_loop(redis_url, script)
    with redis_at(redis_url) as redis:
        assert redis.keys("mlxq:batch*") == []


def test_both_clients_see_the_same_batch(redis_url: str) -> None:
    async def script(client: AsyncClient) -> None:
        batch = await client.submit([{"prompt": "one", "custom_id": "1"}], "b", sealed=False)
        with FakeWorker(redis_url), Client(redis_url) as other:
            await asyncio.to_thread(other.submit, [{"prompt": "two", "custom_id": "2"}], "b")
            assert sorted([answer.text or "" async for answer in batch.as_completed(DEADLINE_S)]) == ["one", "two"]

    in_loop(redis_url, script)


def test_requests_come_from_asynchronous_iterables_too_with_back_pressure(redis_url: str) -> None:
    read = 0

    async def produced() -> AsyncIterator[dict[str, Any]]:
        nonlocal read
        for line in numbered(60):
            await asyncio.sleep(0)
            read += 1
            yield line

    async def script(client: AsyncClient) -> None:
        submitting = asyncio.ensure_future(client.submit(produced(), "b", max_inflight=10))
        while await client.queue_length() < 10:
            await asyncio.sleep(0.01)
        assert read <= 20
        assert not submitting.done()
        with FakeWorker(redis_url):
            batch = await submitting
            assert len([answer async for answer in batch.as_completed(DEADLINE_S, forget=True)]) == 60

    in_loop(redis_url, script)


def test_a_run_has_no_more_in_redis_than_its_window_and_leaves_nothing(redis_url: str) -> None:
    lengths = []

    async def script(client: AsyncClient) -> None:
        with FakeWorker(redis_url):
            answered = set()
            async for answer in client.run(numbered(100), max_inflight=12):
                answered.add(answer.custom_id)
                lengths.append(await client.queue_length())
        assert len(answered) == 100

    in_loop(redis_url, script)
    assert max(lengths) <= 12
    with redis_at(redis_url) as redis:
        assert redis.keys("mlxq:batch*") == redis.keys("rq:job:*") == []


def test_many_tasks_share_a_client(redis_url: str) -> None:
    async def one(client: AsyncClient, number: int) -> int:
        batch = await client.submit(numbered(5), f"b{number}")
        return len([answer async for answer in batch.as_completed(DEADLINE_S)])

    async def script(client: AsyncClient) -> None:
        with FakeWorker(redis_url):
            assert await asyncio.gather(*(one(client, number) for number in range(20))) == [5] * 20

    in_loop(redis_url, script)


def test_the_loop_goes_on_while_requests_are_read_and_answers_waited_for(redis_url: str) -> None:
    reading, may_read = threading.Event(), threading.Event()

    def slow() -> Iterator[dict[str, Any]]:
        reading.set()
        assert may_read.wait(DEADLINE_S)  # blocks its thread until the loop lets it go on
        yield from numbered(2 * CHUNK)

    async def script(client: AsyncClient) -> None:
        submitting = asyncio.ensure_future(client.submit(slow(), "b"))
        while not reading.is_set():
            await asyncio.sleep(0)
        may_read.set()
        batch = await submitting
        waiting = asyncio.ensure_future(batch.wait(DEADLINE_S))
        with FakeWorker(redis_url):
            assert (await waiting).total == 2 * CHUNK

    in_loop(redis_url, script)


async def cancelled(task: asyncio.Future[Any]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_a_task_that_is_cancelled_while_it_waits_leaves_a_client_that_works(redis_url: str) -> None:
    async def read(batch: AsyncBatch, seen: list[Answer]) -> None:
        async for answer in batch.as_completed(forget=True):
            seen.append(answer)

    async def script(client: AsyncClient) -> None:
        batch = await client.submit(numbered(2), "b", sealed=False)
        seen: list[Answer] = []
        waiting = [asyncio.ensure_future(batch.wait()), asyncio.ensure_future(read(batch, seen))]
        with FakeWorker(redis_url):
            while len(seen) < 2:
                await asyncio.sleep(0.01)
        for task in waiting:
            await cancelled(task)
        await batch.seal()
        assert (await batch.wait(DEADLINE_S)).num_ended == 2
        assert [answer async for answer in batch.as_completed(DEADLINE_S)] == []  # both were forgotten on the way out

    in_loop(redis_url, script)


def test_a_reader_that_is_cancelled_twice_closes_when_its_thread_has_come_to_its_end(redis_url: str) -> None:
    async def script(client: AsyncClient) -> None:
        batch = await client.submit(numbered(1), "b", sealed=False)
        answers = batch.as_completed()
        reading = asyncio.ensure_future(anext(answers))
        await asyncio.sleep(0.1)
        reading.cancel()
        await asyncio.sleep(0)
        await cancelled(reading)
        assert [answer async for answer in answers] == []

    in_loop(redis_url, script)


def test_a_submit_that_is_cancelled_is_completed_by_another(redis_url: str) -> None:
    async def endless() -> AsyncIterator[dict[str, Any]]:
        for line in numbered(CHUNK):
            yield line
        await asyncio.Event().wait()

    async def script(client: AsyncClient) -> None:
        submitting = asyncio.ensure_future(client.submit(endless(), "b"))
        while await client.queue_length() < CHUNK:
            await asyncio.sleep(0.01)
        await cancelled(submitting)
        batch = await client.submit(numbered(CHUNK + 5), "b")
        assert (await batch.counts()).total == CHUNK + 5

    in_loop(redis_url, script)


@pytest.mark.parametrize("steps", range(0, 60, 4))
def test_a_submit_may_be_cancelled_at_any_moment(redis_url: str, steps: int) -> None:
    async def script(client: AsyncClient) -> None:
        submitting = asyncio.ensure_future(client.submit(numbered(20), "b"))
        for _ in range(steps):
            await asyncio.sleep(0)
        submitting.cancel()
        await asyncio.wait([submitting])
        batch = await client.submit(numbered(20), "b")
        with FakeWorker(redis_url):
            assert len([answer async for answer in batch.as_completed(DEADLINE_S)]) == 20

    in_loop(redis_url, script)


def test_a_run_that_is_broken_off_cancels_the_rest(redis_url: str) -> None:
    async def script(client: AsyncClient) -> None:
        answers = client.run(numbered(100), max_inflight=8)
        with FakeWorker(redis_url):
            assert (await anext(answers)).is_success
        await answers.aclose()  # type: ignore[attr-defined]
        [batch_id] = await client.batch_ids()
        assert (await (await client.batch(batch_id)).counts()).cancelled
        assert await client.queue_length() == 0

    in_loop(redis_url, script)


def test_cancelling_and_errors_are_those_of_the_other_client(redis_url: str) -> None:
    async def script(client: AsyncClient) -> None:
        batch = await client.submit(numbered(3), "b")
        assert await batch.cancel_job(batch.job_id("r0"))
        assert await batch.cancel() == 2
        with pytest.raises(RequestError, match="request 2 has the custom_id of request 1"):
            await client.submit([{"prompt": "x", "custom_id": "a"}] * 2)
        with pytest.raises(TimeoutError):
            await (await client.submit(numbered(1), "c")).wait(0.05)
        with pytest.raises(ConfigError):
            client.open("no id")

    in_loop(redis_url, script)


def test_a_client_that_is_closed_says_so(redis_url: str) -> None:
    async def main() -> None:
        async with AsyncClient(redis_url) as client:
            pass
        with pytest.raises(RuntimeError, match="this AsyncClient is closed"):
            await client.batch_ids()

    asyncio.run(main())


def test_a_redis_that_is_away_is_the_same_error() -> None:
    async def script(client: AsyncClient) -> None:
        with pytest.raises(QueueUnavailable, match="localhost:1/0 can't be reached"):
            await client.batch_ids()

    in_loop("redis://localhost:1/0", script)


def test_a_connection_of_redis_asyncio_will_do_and_others_are_refused(redis_url: str) -> None:
    async def main() -> None:
        async with AsyncClient(AsyncRedis.from_url(redis_url)) as client:
            assert await client.batch_ids() == []
        with pytest.raises(ConfigError, match="decode_responses"):
            AsyncClient(AsyncRedis.from_url(redis_url, decode_responses=True))
        with pytest.raises(ConfigError, match="is not a Redis URL"):
            AsyncClient("http://host")
        with pytest.raises(ConfigError, match="is not a Redis URL"):
            AsyncClient("redis+sentinel://host:port/main")

    asyncio.run(main())


def test_the_connection_is_of_no_use_outside_of_the_client_s_threads(redis_url: str) -> None:
    async def script(client: AsyncClient) -> None:
        with pytest.raises(RuntimeError, match="only what runs in a thread of an AsyncClient"):
            client.open("b")._batch.counts()

    in_loop(redis_url, script)
