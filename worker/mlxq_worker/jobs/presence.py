"""The worker as RQ's tools see it: its state, its heartbeat, and the commands they send to it.

Registers nothing by itself: birth and death are the worker's. Used by the I/O thread alone, which asks for commands
instead of letting RQ start a third thread for them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from redis.client import PubSub
from redis.exceptions import RedisError
from rq import worker_registration
from rq.command import parse_payload
from rq.utils import now, utcformat
from rq.worker import BaseWorker, WorkerStatus

from mlxq.machine import machine_id
from mlxq.queue import rq_keys
from mlxq_worker.jobs.store import script

logger = logging.getLogger("rq.worker")

ENTRY_TTL_S = 60
"""An entry that nobody has renewed for so long is gone, by Redis's clock: RQ itself would keep it for eight minutes.
What is left of it says how long its worker has been silent."""
MACHINE = "mlxq_machine"
"""The field of an entry that tells hosts of one name apart."""


@dataclass(frozen=True, slots=True)
class Command:
    """What somebody asks of this worker. `target` is a job id, an execution id, or empty."""

    kind: Literal["stop-job", "stop-execution", "shutdown"]
    target: str = ""


class Presence:
    """One worker's entry in Redis, kept alive, and its command channel."""

    def __init__(self, worker: BaseWorker) -> None:
        self._worker = worker
        self.num_tokens = 0
        """Generated for answers that have ended; counted by who sees them end."""
        self._say_present = worker.connection.register_script(script("present"))
        self._pubsub: PubSub | None = None
        self._machine = machine_id()
        self._told_s = 0.0
        self._model = ""
        self._width = 0

    def serves(self, model_name: str, width: int) -> None:
        """From now on it answers, with this model, so many rows at once."""
        self._model, self._width = model_name, width

    def beat(self, state: WorkerStatus, worked_s: float) -> None:
        """Say that the worker lives and what it does. An entry that expired or was flushed is written anew.

        Args:
            worked_s: for how long it has had jobs in hand, since it began.
        """
        worker = self._worker
        worker.last_heartbeat = now()
        is_there = self._say_present(
            keys=[worker.key, worker.executions_key],
            args=[
                utcformat(worker.last_heartbeat),
                state,
                ENTRY_TTL_S,
                self._machine,
                worked_s - self._told_s,
                self._model,
                self._width,
                self.num_tokens,
            ],
        )
        self._told_s = worked_s
        if not is_there:
            logger.warning("Redis had no entry of this worker any more: its data was lost, or we were away for long")
            self.restore(state)

    def commands(self) -> Iterator[Command]:
        """The commands that have come since the last call; doesn't wait.

        Raises:
            redis.exceptions.RedisError: none can be had now; the next call subscribes again.
        """
        pubsub = self._pubsub = self._pubsub or self._subscribed()
        try:
            while message := pubsub.get_message(timeout=0.0):
                if command := _read(message):
                    yield command
        except RedisError:
            # It may have been the answer to our subscription, which a busy Redis refuses.
            self.close()
            raise

    def close(self) -> None:
        """Hear of no more commands."""
        if self._pubsub is not None:
            self._pubsub.close()
            self._pubsub = None

    def _subscribed(self) -> PubSub:
        pubsub: PubSub = self._worker.connection.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
        pubsub.subscribe(self._worker.pubsub_channel_name)
        return pubsub

    def restore(self, state: WorkerStatus) -> None:
        """Write the worker's entry anew, and list it."""
        worker = self._worker
        with worker.connection.pipeline() as pipe:
            worker.set_state(state, pipeline=pipe)
            pipe.hset(worker.key, mapping=worker.serialize())
            worker_registration.register(worker, pipe)
            pipe.hset(worker.key, mapping={MACHINE: self._machine, rq_keys.MODEL: self._model})
            worker.heartbeat(ENTRY_TTL_S, pipeline=pipe)
            pipe.execute()


def _read(message: dict[str, object]) -> Command | None:
    try:
        payload = parse_payload(message)
        kind = payload["command"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
        logger.warning("Ignored a command that can't be read")
        return None
    match kind:
        case "stop-job":
            return Command("stop-job", str(payload.get("job_id", "")))
        case "stop-execution":
            return Command("stop-execution", str(payload.get("execution_id", "")))
        case "shutdown":
            return Command("shutdown")
    logger.warning("Ignored the command %r: this worker has no process per job", kind)
    return None
