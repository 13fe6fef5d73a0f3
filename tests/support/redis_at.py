"""Connections of the tests' own: they wait for their Redis as long as for anything else.

redis-py's gives up after five seconds by itself, which a busy machine may take, and a thread that ends by that answers
nobody any more.
"""

from __future__ import annotations

from typing import Any

from redis import Redis
from tests.support.waiting import DEADLINE_S


def redis_at(url: str, **options: Any) -> Redis:
    """As `Redis.from_url`."""
    return Redis.from_url(url, socket_timeout=DEADLINE_S, socket_connect_timeout=DEADLINE_S, **options)


def redis_on(port: int) -> Redis:
    """The one that listens on this port; tried again where it hangs up, as it does once it is the new primary."""
    return Redis(port=port, socket_timeout=DEADLINE_S, socket_connect_timeout=DEADLINE_S)
