"""The Redis: whether it can be reached, whether it is new enough, keeps what it is given, and tells the same time."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from typing import Any

from redis import Redis
from redis.exceptions import RedisError

from mlxq.errors import LoginRefused, MlxqError, QueueUnavailable
from mlxq.queue import durability
from mlxq.queue.connect import address_of, queue_errors
from mlxq_worker.commands.doctor.finding import Finding, note, ok, problem, warning

LEAST_VERSION = (6, 2)
MOST_APART_S = 5.0
FULL = 0.9


def look_at_redis(connection: Redis) -> Iterator[Finding]:
    """All about the server; ends at the first finding that makes the others impossible."""
    place = address_of(connection)
    try:
        with queue_errors(connection):
            now_s, now_us = connection.time()
    except LoginRefused as error:
        yield problem(
            "redis_login", str(error), "correct user and password in MLXQ_URL: redis://USER:PASSWORD@HOST:PORT/0"
        )
        return
    except QueueUnavailable as error:
        todo = "start it (redis-server), or name another one with --url or MLXQ_URL; mlxq run needs none"
        yield problem("redis", str(error), todo)
        return
    except MlxqError as error:
        yield problem("redis", str(error), "see docs/compatibility.md for what Redis has to be like")
        return
    yield ok("redis", f"Redis at {place} answers")
    yield from look_at_clock(now_s + now_us / 1e6 - time.time())
    yield from look_at_settings(connection)
    try:
        info = {**connection.info("server"), **connection.info("memory")}
    except RedisError:
        yield note("redis_version", "Redis doesn't say which version it is", "allow +info to its user")
    else:
        yield from look_at_version(info)
        yield from look_at_memory(info)


def look_at_clock(ahead_s: float) -> Iterator[Finding]:
    """Whether Redis's clock and ours agree. `ahead_s` is how far it is ahead."""
    what = f"Redis's clock and this machine's are {abs(ahead_s):.1f} s apart"
    if abs(ahead_s) > MOST_APART_S:
        todo = "set both by NTP: leases run on Redis's clock, but times in answers and in RQ's tools will be wrong"
        yield warning("clock", what, todo)
    else:
        yield ok("clock", what)


def look_at_settings(connection: Redis) -> Iterator[Finding]:
    """Whether it keeps what it is given."""
    try:
        found = durability.warnings(connection)
    except MlxqError as error:
        yield problem("redis", str(error), "use a Redis or Valkey that has all keys, or Sentinels")
        return
    for sentence in found:
        name = "redis_eviction" if "throws jobs away" in sentence else "redis_persistence"
        what, _, todo = sentence.partition(". ")
        if todo:
            yield warning(name, what, todo)
        else:
            yield note("redis_settings", sentence)
    if not found:
        yield ok("redis_persistence", "Redis writes to its disk and throws nothing away")


def look_at_version(info: Mapping[str, Any]) -> Iterator[Finding]:
    """Whether it is new enough."""
    is_valkey = "valkey_version" in info
    version = str(info.get("valkey_version") or info.get("redis_version") or "")
    what = f"{'Valkey' if is_valkey else 'Redis'} is {version or 'of an unknown version'}"
    numbers = tuple(map(int, re.findall(r"\d+", version)[:2]))
    if numbers and numbers < LEAST_VERSION:
        yield problem("redis_version", what, "use Redis 6.2 or newer, or Valkey: scripts and streams need it")
    else:
        yield ok("redis_version", what)


def look_at_memory(info: Mapping[str, Any]) -> Iterator[Finding]:
    """Whether it is nearly full."""
    used, limit = int(info.get("used_memory", 0)), int(info.get("maxmemory", 0))
    if not limit:
        yield ok("redis_memory", f"Redis uses {used / 1e6:.0f} MB, without a limit")
    elif used >= FULL * limit:
        yield warning(
            "redis_memory",
            f"Redis uses {used / 1e6:.0f} of {limit / 1e6:.0f} MB and takes no new requests when it is full",
            "collect and delete batches that are done (mlxq delete BATCH), or raise maxmemory",
        )
    else:
        yield ok("redis_memory", f"Redis uses {used / 1e6:.0f} of {limit / 1e6:.0f} MB")
