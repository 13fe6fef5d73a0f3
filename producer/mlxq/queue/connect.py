"""Opens Redis connections and turns their failures into mlxq's errors, with passwords masked.

The one place on the producer side that sees a Redis URL. Knows nothing of queues, batches or jobs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from redis import Redis
from redis import exceptions as redis_errors
from redis.asyncio import Redis as AsyncRedis
from redis.asyncio import from_url as async_from_url
from redis.client import Pipeline

from mlxq import keys
from mlxq.errors import ConfigError, LoginRefused, QueueError, QueueNotReady, QueueUnavailable
from mlxq.passing import is_denial, passes, refusal_code
from mlxq.sentinel import connect_async_through_sentinel, connect_through_sentinel, is_sentinel_url, service_of

T = TypeVar("T")

DEFAULT_URL = keys.DEFAULT_URL
CONNECT_TIMEOUT_S = 5.0
SOCKET_TIMEOUT_S = 30.0
"""Longer than any script or blocking read that mlxq sends."""
HEALTH_CHECK_S = 30
URL_HINT = (
    "write redis://[USER:PASSWORD@]HOST:PORT/DB, or redis+sentinel://[USER:PASSWORD@]HOST:PORT,.../SERVICE/DB, and in a"
    " password %2F for /, %3F for ?, %23 for #, %40 for @ and %25 for %"
)

_NO_WRITES = frozenset({"MISCONF", "NOREPLICAS", "OOM", "READONLY"})
_OPTIONS: Mapping[str, float] = {
    "socket_connect_timeout": CONNECT_TIMEOUT_S,
    "socket_timeout": SOCKET_TIMEOUT_S,
    "health_check_interval": HEALTH_CHECK_S,
}
_IS_CLUSTER = "is a Redis Cluster, which keeps a part of the keys on each node: mlxq needs one Redis that has them all"
_SCHEME_AND_REST = re.compile(r"((?:\w+\+)?\w+://)?(.*)", re.DOTALL)
_UP_TO_ADDRESS = re.compile(r"(?:[^:]*://)?[^/?#]*")
"""A URL up to the end of its address, without urllib: newer versions of Python refuse an IPv6 address among several."""
_ADDRESS = re.compile(r"((?:\[[0-9a-fA-F:.]*\]|[^:?#]*)(?::\d*)?(?:/[^:?#]*)?)(?:[?#].*)?", re.DOTALL)
"""Host, port and path. What stands after a colon and is no port may be a password that lacks its ``@``."""


def connect(url: str, *, timeout_s: float | None = None) -> Redis:
    """A connection pool for `url`; nothing is sent yet.

    Args:
        timeout_s: for connecting, and for each reply; by default what the longest commands need.

    Raises:
        ConfigError: the URL has a scheme or a part that Redis clients don't know.
    """
    try:
        # What follows is part of a password that ends the address too early, and would be taken for a host or port.
        if "@" in _UP_TO_ADDRESS.sub("", url, count=1):
            raise ValueError("an @ behind the address")
        options = dict(_OPTIONS)
        if timeout_s is not None:
            options |= {"socket_connect_timeout": timeout_s, "socket_timeout": timeout_s}
        connection = (connect_through_sentinel if is_sentinel_url(url) else _connect_directly)(url, options)
        # Whoever else uses the URL may want text; what is in Redis isn't always some.
        connection.connection_pool.connection_kwargs["decode_responses"] = False
        # Made as the first command would, and thrown away: only this looks at what stands behind the question mark.
        pool = connection.connection_pool
        pool.connection_class(**pool.connection_kwargs)
    except (ValueError, TypeError, redis_errors.RedisError):
        # Not what it says, which may be a piece of the password.
        unknown = " with options that are known" if "?" in url else ""
        raise ConfigError(f"{mask_url(url)!r} is not a Redis URL{unknown}: {URL_HINT}") from None
    return connection


def connect_async(url: str) -> AsyncRedis:
    """Likewise for an event loop: a connection pool of redis.asyncio.

    Raises:
        ConfigError: the URL has a scheme or a part that Redis clients don't know.
    """
    connect(url).close()  # says what is wrong with it
    open_pool = connect_async_through_sentinel if is_sentinel_url(url) else _connect_async_directly
    connection = open_pool(url, _OPTIONS)
    connection.connection_pool.connection_kwargs["decode_responses"] = False
    return connection


def refuse_cluster(connection: Redis) -> None:
    """Look at the Redis behind a connection, for a command that begins. One round trip.

    Raises:
        ConfigError: it is a Redis Cluster.
    """
    try:
        info = connection.info("cluster")
    except redis_errors.RedisError:  # by an ACL, or by an embedded server; if it is away, what comes next will say so
        return
    refuse_cluster_info(connection, info)


def refuse_cluster_info(connection: Redis, info: object) -> None:
    """Likewise, where the reply to INFO CLUSTER is there; anything else than one says nothing."""
    if isinstance(info, Mapping) and info.get("cluster_enabled") == 1:
        raise ConfigError(f"Redis at {address_of(connection)} {_IS_CLUSTER}")


def _connect_directly(url: str, options: Mapping[str, Any]) -> Redis:
    return Redis.from_url(url, **options)


def _connect_async_directly(url: str, options: Mapping[str, Any]) -> AsyncRedis:
    connection: AsyncRedis = async_from_url(url, **options)
    return connection


def takes_bytes(connection: Any) -> Redis:
    """The connection, if it gives replies as they are.

    Raises:
        ConfigError: it decodes them, or is no connection that this client can use.
    """
    if isinstance(connection, AsyncRedis):
        raise ConfigError("a connection of redis.asyncio is for an AsyncClient, not for a Client")
    if not hasattr(connection, "connection_pool"):
        raise ConfigError(f"redis must be a URL or a connection of the package redis, not {type(connection).__name__}")
    if connection.connection_pool.connection_kwargs.get("decode_responses"):
        raise ConfigError("mlxq needs a Redis connection without decode_responses: compressed data is no text")
    taken: Redis = connection
    return taken


def mask_url(url: str) -> str:
    """The URL without its secrets, for messages; of one that can't be told apart, only the scheme.

    Everything before the last ``@`` counts as user and password, whether it is a proper URL or not, and the query,
    which may hold a password, is dropped.
    """
    scheme, rest = _SCHEME_AND_REST.fullmatch(url).groups("")  # type: ignore[union-attr]
    credentials, at, address = rest.rpartition("@")
    shown = _ADDRESS.fullmatch(address)
    if shown is None or "?" in credentials:
        return f"{scheme or ''}***"
    return f"{scheme or ''}{at and '***@'}{shown[1]}"


def address_of(connection: Redis) -> str:
    """Where a connection goes, for messages: never its user or password."""
    options = connection.connection_pool.connection_kwargs
    if service := service_of(connection):
        return f"Sentinel's {service}/{options.get('db', 0)}"
    if "path" in options:
        return f"unix://{options['path']}"
    return f"{options.get('host', 'localhost')}:{options.get('port', 6379)}/{options.get('db', 0)}"


@contextmanager
def queue_errors(connection: Redis) -> Iterator[None]:
    """Turns what redis-py raises inside the block into errors that a caller can act on.

    Raises:
        LoginRefused: Redis refuses the user or the password.
        QueueNotReady: it can't do this now, and will do it later.
        QueueUnavailable: it can't be reached.
        QueueError: it answered with another error.
    """
    try:
        yield
    except (redis_errors.MovedError, redis_errors.AskError, redis_errors.ClusterCrossSlotError) as error:
        raise QueueError(f"Redis at {address_of(connection)} {_IS_CLUSTER}") from error
    except (redis_errors.AuthenticationError, redis_errors.AuthorizationError) as error:
        raise LoginRefused(f"Redis at {address_of(connection)} refuses the login: {error}") from error
    except redis_errors.RedisError as error:
        place = f"Redis at {address_of(connection)}"
        if (code := refusal_code(error)) is not None:
            what = "takes no more writes" if code in _NO_WRITES else "can't do this now"
            raise QueueNotReady(f"{place} {what}: {error}") from error
        if passes(error):
            raise QueueUnavailable(f"{place} can't be reached: {error}") from error
        if isinstance(error, redis_errors.ResponseError):
            todo = " (mlxq doctor --role ROLE names all rights that its user lacks)" if is_denial(error) else ""
            raise QueueError(f"{place} says: {error}{todo}") from error
        raise


def replies_to(pipe: Pipeline) -> list[Any]:
    """Executes a pipeline of reads. `None` stands where a stranger has put something of another type under the key."""
    return without_wrong_types(pipe.execute(raise_on_error=False))


def without_wrong_types(replies: Sequence[Any]) -> list[Any]:
    """Replies with errors among them, the first of which is raised unless it is one of those."""
    for reply in replies:
        if isinstance(reply, Exception) and "WRONGTYPE" not in str(reply):
            raise reply
    return [None if isinstance(reply, Exception) else reply for reply in replies]


def transact(connection: Redis, change: Callable[[Pipeline], T], *watched: str) -> T:
    """Run `change` and execute what it left in the pipeline, again from the start while others write to `watched`.

    `change` reads first, then calls `pipe.multi()` and writes; what it returns is returned.
    """
    with connection.pipeline() as pipe:
        while True:
            try:
                pipe.watch(*watched)  # type: ignore[no-untyped-call]
                result = change(pipe)
                pipe.execute()
            except redis_errors.WatchError:
                continue
            return result
