"""Connections through Redis Sentinel: reads the URLs that name Sentinels, and asks those where the primary is.

    redis+sentinel://[USER:PASSWORD@]HOST[:PORT][,HOST2[:PORT2],...]/SERVICE[/DB][?OPTION=VALUE&...]

That is the form of the package redis-sentinel-url, which others have taken up; ``rediss+sentinel`` is with TLS. User,
password, DB and options are those of the Redis itself; ``sentinel_username`` and ``sentinel_password`` are for the
Sentinels. Sends nothing by itself: redis-py, or its redis.asyncio, asks the Sentinels whenever it opens a connection.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from redis.asyncio.retry import Retry as AsyncRetry
from redis.asyncio.sentinel import MasterNotFoundError as AsyncMasterNotFoundError
from redis.asyncio.sentinel import Sentinel as AsyncSentinel
from redis.asyncio.sentinel import SentinelConnectionPool as AsyncSentinelConnectionPool
from redis.backoff import NoBackoff
from redis.connection import parse_url
from redis.retry import Retry
from redis.sentinel import MasterNotFoundError, Sentinel, SentinelConnectionPool

DEFAULT_PORT = 26379
DEFAULT_SERVICE = "mymaster"

_URL = re.compile(
    r"redis(s?)\+sentinel://(?:([^@]*)@)?([^/?#]*)(?:/([^/?#]*))?(?:/(\d*))?(?:\?([^#]*))?", re.IGNORECASE
)
_SENTINEL = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]]+)(?::(\d+))?")
_FOR_SENTINELS = "sentinel_"
_SHARED = ("socket_", "ssl")
"""How options begin that hold for the connections to the Sentinels, too."""
_NOBODY_KNOWS = "no Sentinel that can be reached knows where {!r} is"


class _Sentinels(Sentinel):
    """redis-py's, with an error that fits into a line: its own describes each connection in full."""

    def discover_master(self, service_name: str) -> tuple[str, int]:
        try:
            found: tuple[str, int] = super().discover_master(service_name)  # type: ignore[no-untyped-call]
        except MasterNotFoundError:
            raise MasterNotFoundError(_NOBODY_KNOWS.format(service_name)) from None
        return found


class _AsyncSentinels(AsyncSentinel):
    """The same of redis.asyncio."""

    async def discover_master(self, service_name: str) -> tuple[str, int]:
        try:
            found: tuple[str, int] = await super().discover_master(service_name)
        except AsyncMasterNotFoundError:
            raise AsyncMasterNotFoundError(_NOBODY_KNOWS.format(service_name)) from None
        return found


class _AsyncPool(AsyncSentinelConnectionPool):
    """One that closes the connections to the Sentinels with its own: a loop that ends complains of what is left."""

    async def aclose(self) -> None:
        await super().aclose()
        for sentinel in self.sentinel_manager.sentinels:
            await sentinel.aclose()


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a URL says: whom to ask for which service, and the options of the connections to either."""

    addresses: Sequence[tuple[str, int]]
    service: str
    for_sentinels: Mapping[str, Any]
    for_redis: Mapping[str, Any]


def is_sentinel_url(url: str) -> bool:
    """Whether a URL names Sentinels."""
    return url.partition("://")[0].lower() in ("redis+sentinel", "rediss+sentinel")


def connect_through_sentinel(url: str, options: Mapping[str, Any]) -> Redis:
    """A connection pool for the primary that the Sentinels name; nothing is sent yet.

    Args:
        options: of all connections.

    Raises:
        ValueError: it isn't a URL of the form above, or has options that redis-py can't read.
    """
    asked = _read(url, options)
    for_sentinels = {**asked.for_sentinels, "retry": Retry(NoBackoff(), 0)}  # the next one may answer
    sentinels = _Sentinels(asked.addresses, sentinel_kwargs=for_sentinels)  # type: ignore[no-untyped-call]
    connection: Redis = sentinels.master_for(asked.service, **asked.for_redis)  # type: ignore[no-untyped-call]
    return connection


def connect_async_through_sentinel(url: str, options: Mapping[str, Any]) -> AsyncRedis:
    """The same of redis.asyncio. Raises as `connect_through_sentinel`."""
    asked = _read(url, options)
    for_sentinels = {**asked.for_sentinels, "retry": AsyncRetry(NoBackoff(), 0)}
    sentinels = _AsyncSentinels(asked.addresses, sentinel_kwargs=for_sentinels)  # type: ignore[no-untyped-call]
    connection: AsyncRedis = sentinels.master_for(asked.service, connection_pool_class=_AsyncPool, **asked.for_redis)
    return connection


def _read(url: str, options: Mapping[str, Any]) -> _Asked:
    if not (match := _URL.fullmatch(url)):
        raise ValueError("not of that form")
    tls, credentials, hosts, service, db, query = match.groups()
    # redis-py reads everything but the hosts; the one here is never used.
    plain = f"redis://{credentials or ''}{'@' if credentials else ''}host/{db or 0}?{query or ''}"
    known: dict[str, Any] = parse_url(plain)  # type: ignore[no-untyped-call]
    known.pop("host")
    for_sentinels = {
        name.removeprefix(_FOR_SENTINELS): known.pop(name) for name in list(known) if name.startswith(_FOR_SENTINELS)
    }
    common = {**options, **known, **({"ssl": True} if tls else {})}
    shared = {name: value for name, value in common.items() if name.startswith(_SHARED)}
    name = unquote(service or "") or DEFAULT_SERVICE
    return _Asked([_sentinel(host) for host in hosts.split(",")], name, for_sentinels | shared, common)


def service_of(connection: Redis) -> str | None:
    """The service that a connection asks Sentinels for; `None` if it asks none."""
    pool: Any = connection.connection_pool
    is_asking = isinstance(pool, SentinelConnectionPool | AsyncSentinelConnectionPool)
    return str(pool.service_name) if is_asking else None


def _sentinel(text: str) -> tuple[str, int]:
    if not (match := _SENTINEL.fullmatch(text)):
        raise ValueError("a Sentinel's address can't be read")
    return match[1].strip("[]"), int(match[2] or DEFAULT_PORT)
