"""Whether a Redis keeps what is entrusted to it: looks at its settings and says, in sentences, what may get lost.

Jobs live in Redis alone until they have an answer. One that evicts keys throws them away without a word, and one that
writes nothing to its disk loses them all when it restarts. Changes nothing, and knows nothing of jobs.
"""

from __future__ import annotations

from typing import cast

from redis import Redis
from redis.exceptions import ResponseError

from mlxq.passing import passes
from mlxq.queue.connect import address_of, queue_errors, refuse_cluster

_NEEDED = "maxmemory-policy noeviction, and appendonly yes or a save rule"
_SETTINGS = ("maxmemory", "maxmemory-policy", "appendonly", "save")


def warnings(connection: Redis) -> list[str]:
    """What a user should know before relying on this Redis, each with the setting and the fix; none if all is well.

    Raises:
        ConfigError: it is a Redis Cluster.
        QueueUnavailable: Redis can't be reached.
    """
    refuse_cluster(connection)
    place = f"Redis at {address_of(connection)}"
    with queue_errors(connection):
        try:
            settings = cast("dict[str, str]", connection.config_get(*_SETTINGS))
        except ResponseError as error:
            if passes(error):
                raise
            settings = {}  # by an ACL, or by who runs it for us
    if not settings.keys() >= set(_SETTINGS):
        return [f"{place} doesn't let its settings be read, so make sure of them: {_NEEDED}."]
    return [f"{place} {finding}" for finding in (_eviction(settings), _persistence(settings)) if finding]


def _eviction(settings: dict[str, str]) -> str | None:
    policy = settings["maxmemory-policy"]
    if policy == "noeviction" or settings["maxmemory"] == "0":
        return None
    return (
        f"throws jobs away when its memory is full: maxmemory-policy is {policy}. Set it to noeviction in redis.conf,"
        " and now with: redis-cli CONFIG SET maxmemory-policy noeviction"
    )


def _persistence(settings: dict[str, str]) -> str | None:
    if settings["appendonly"] == "yes" or settings["save"]:
        return None
    return (
        "forgets all jobs when it restarts: appendonly is no, and there is no save rule. Set appendonly to yes in"
        " redis.conf, and now with: redis-cli CONFIG SET appendonly yes"
    )
