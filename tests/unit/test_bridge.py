"""Calls that run in a thread over a connection in the loop, cancelled at the worst moments."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.support.waiting import DEADLINE_S

from mlxq.aio.bridge import Threads, as_blocking


class Connection:
    """What a call waits for twice: a command that ends just as its task is cancelled, and one that never ends."""

    def __init__(self) -> None:
        self.caller: asyncio.Future[Any] | None = None
        self.turns_before_its_end = 0

    async def short(self) -> None:
        assert self.caller is not None
        asyncio.get_running_loop().call_soon(self.caller.cancel)
        for _ in range(self.turns_before_its_end):
            await asyncio.sleep(0)

    async def endless(self) -> None:
        await asyncio.Event().wait()

    async def last(self) -> str:
        await asyncio.sleep(0)
        return "cleaned up"


@pytest.mark.parametrize("turns", range(4))
def test_a_cancel_is_not_lost_where_a_command_ends_at_that_moment(turns: int) -> None:
    ended: list[Any] = []

    async def script() -> None:
        threads, connection = Threads(), Connection()
        connection.turns_before_its_end = turns
        blocking: Any = as_blocking(connection)  # type: ignore[arg-type]  # two commands are enough here

        def work() -> None:
            try:
                blocking.short()
                blocking.endless()
            finally:
                ended.append(blocking.last())

        connection.caller = asyncio.ensure_future(threads.run(work))
        with pytest.raises(asyncio.CancelledError):
            await connection.caller
        threads.close()

    asyncio.run(asyncio.wait_for(script(), DEADLINE_S))
    assert ended == ["cleaned up"]
