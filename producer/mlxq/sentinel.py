"""Connections through Redis Sentinel: reads the URLs that name Sentinels, and asks those where the primary is.

    redis+sentinel://[USER:PASSWORD@]HOST[:PORT][,HOST2[:PORT2],...]/SERVICE[/DB][?OPTION=VALUE&...]

That is the form of the package redis-sentinel-url, which others have taken up; ``rediss+sentinel`` is with TLS. User,
password, DB and options are those of the Redis itself; ``sentinel_username`` and ``sentinel_password`` are for the
Sentinels. Sends nothing by itself: redis-py asks the Sentinels whenever it opens a connection.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from redis import Redis
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


class _Sentinels(Sentinel):
    """redis-py's, with an error that fits into a line: its own describes each connection in full."""

    def discover_master(self, service_name: str) -> tuple[str, int]:
        try:
            found: tuple[str, int] = super().discover_master(service_name)  # type: ignore[no-untyped-call]
        except MasterNotFoundError:
            raise MasterNotFoundError(f"no Sentinel that can be reached knows where {service_name!r} is") from None
        return found


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
    for_sentinels |= {name: value for name, value in common.items() if name.startswith(_SHARED)}
    for_sentinels["retry"] = Retry(NoBackoff(), 0)  # the next one may answer
    addresses = [_sentinel(host) for host in hosts.split(",")]
    sentinels = _Sentinels(addresses, sentinel_kwargs=for_sentinels)  # type: ignore[no-untyped-call]
    name = unquote(service or "") or DEFAULT_SERVICE
    connection: Redis = sentinels.master_for(name, **common)  # type: ignore[no-untyped-call]
    return connection


def service_of(connection: Redis) -> str | None:
    """The service that a connection asks Sentinels for; `None` if it asks none."""
    pool = connection.connection_pool
    return str(pool.service_name) if isinstance(pool, SentinelConnectionPool) else None


def _sentinel(text: str) -> tuple[str, int]:
    if not (match := _SENTINEL.fullmatch(text)):
        raise ValueError("a Sentinel's address can't be read")
    return match[1].strip("[]"), int(match[2] or DEFAULT_PORT)
