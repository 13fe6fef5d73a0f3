"""Asks the queue from an event loop: two batches at once, and a stream of requests, a window of them at a time.

    mlxq worker --model demo            # in one terminal, with a Redis on this machine
    python examples/in_a_loop.py        # in another

REDIS_URL names a Redis elsewhere.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Iterable

from mlxq import AsyncBatch, AsyncClient, ParsedLine, request


def question(country: str) -> ParsedLine:
    asked = [{"role": "user", "content": f"What is the capital of {country}?"}]
    return request(messages=asked, custom_id=country, temperature=0)


async def answered(client: AsyncClient, countries: Iterable[str]) -> list[str]:
    """All of a batch, once it is done. A task that is cancelled here leaves nothing half done."""
    batch: AsyncBatch = await client.submit(map(question, countries))
    return sorted([answer.text async for answer in batch.as_completed(timeout_s=600, forget=True)])


async def stream(countries: Iterable[str]) -> AsyncIterator[ParsedLine]:
    """Requests as they come, from a socket, say: no more of them are taken than are to wait at a time."""
    for country in countries:
        await asyncio.sleep(0)
        yield question(country)


async def main() -> None:
    async with AsyncClient(os.environ.get("REDIS_URL", "redis://localhost:6379/0")) as client:
        print(await asyncio.gather(answered(client, ["France", "Greece"]), answered(client, ["Gabon"])))
        async for answer in client.run(stream(["Romania"]), max_inflight=100):
            print(f"{answer.custom_id}: {answer.text}")


asyncio.run(main())
