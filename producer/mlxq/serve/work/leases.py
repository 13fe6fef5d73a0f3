"""Which of several `mlxq serve` processes works on a batch: the one that holds its lease in Redis.

A lease runs out by Redis's clock unless it is renewed, so that a process that is killed leaves its batches to others.
What guards the batch itself is a lock on the disk (`DataDirectory.work_on`): a process that lost its lease without
noticing still has that, and who has the lease waits until it doesn't. Knows nothing of what batches are.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from typing import cast

from redis import Redis

from mlxq import keys
from mlxq.queue.connect import queue_errors
from mlxq.queue.scripts import source

PACKAGE = "mlxq.serve.work"


class BatchLeases:
    """The leases of one process.

    Args:
        lease_s: how long one is held without being renewed.
    """

    def __init__(self, connection: Redis, lease_s: float) -> None:
        self._redis = connection
        self._lease_ms = int(lease_s * 1000)
        self._owner = secrets.token_hex(16)

    def hold(self, batch_ids: Iterable[str]) -> list[str]:
        """Take or renew leases; those of `batch_ids` that are ours now. One that ran out is taken again.

        Raises:
            QueueUnavailable: Redis can't be reached.
        """
        wanted = list(batch_ids)
        if not wanted:
            return []
        held = self._run("hold", wanted, self._owner, self._lease_ms)
        return [batch_id for batch_id, is_ours in zip(wanted, held, strict=True) if is_ours]

    def release(self, batch_ids: Iterable[str]) -> None:
        """Leave batches to whoever wants them; those that aren't ours stay as they are.

        Raises:
            QueueUnavailable: Redis can't be reached; the leases run out by themselves.
        """
        if wanted := list(batch_ids):
            self._run("release", wanted, self._owner)

    def _run(self, script: str, batch_ids: list[str], *args: str | int) -> list[int]:
        lease_keys = map(keys.serve_lease, batch_ids)
        # Not by its hash: an unknown one is an error, after which an embedded server hangs up.
        with queue_errors(self._redis):
            return cast("list[int]", self._redis.eval(source(script, PACKAGE), len(batch_ids), *lease_keys, *args))
