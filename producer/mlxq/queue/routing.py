"""Which models the workers of a Redis serve by name, each from a queue of its own (`mlxq.keys.model_queue`).

Whoever serves them announces them, whoever routes requests asks. Knows no requests and no workers.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import cast

from redis import Redis

from mlxq import keys
from mlxq.errors import RequestError
from mlxq.queue.broken_keys import mend
from mlxq.queue.connect import queue_errors
from mlxq.requests.openai import ParsedLine

MAX_SHOWN = 20
"""Names that an error lists."""


def announce(connection: Redis, models: Collection[str], now: float) -> None:
    """Say that these models are served; others are forgotten a week after anybody last said so of them.

    Args:
        now: Redis's clock, in Unix seconds.

    Raises:
        QueueUnavailable: Redis can't be reached.
    """
    with queue_errors(connection):
        mend(connection, {keys.MODELS: "zset"})
        connection.zadd(keys.MODELS, dict.fromkeys(models, now))
        connection.zremrangebyscore(keys.MODELS, "-inf", now - keys.MODEL_TTL_S)


def known_models(connection: Redis) -> tuple[str, ...]:
    """The models that are served by name, in the order of their names.

    Raises:
        QueueUnavailable: Redis can't be reached.
    """
    with queue_errors(connection):
        found = cast("list[bytes]", connection.zrevrange(keys.MODELS, 0, -1))
    return tuple(sorted(name.decode(errors="replace") for name in found))


def model_of(line: ParsedLine, known: Collection[str]) -> str:
    """The model that a request is for.

    Raises:
        RequestError: it names none, or one that nobody serves; the message has those that are served.
    """
    model = line.request.model
    shown = ", ".join(sorted(known)[:MAX_SHOWN]) + (", ..." if len(known) > MAX_SHOWN else "")
    if model is None:
        raise RequestError(f"the request names no model; known ones are {shown}", param="model", code="missing_field")
    if model not in known:
        raise RequestError(
            f"no worker serves the model {model[:100]!r}; known ones are {shown}", param="model", code="unknown_model"
        )
    return model
