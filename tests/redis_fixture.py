"""A real Redis server for tests: one per session, emptied before each test; never the developer's own.

A pytest plugin, so that every test can ask for `redis_url` or `connection`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest
from redis import Redis

from mlxq_worker.redis_server import SERVERS, private_redis


@pytest.fixture(scope="session")
def redis_server_url() -> Iterator[str]:
    if not any(map(shutil.which, SERVERS)):
        if os.environ.get("CI"):
            pytest.fail("no redis-server on the PATH")
        pytest.skip("no redis-server on the PATH")
    with private_redis() as server:
        yield server.url


@pytest.fixture
def redis_url(redis_server_url: str) -> str:
    """The URL of an empty Redis."""
    with Redis.from_url(redis_server_url) as connection:
        connection.flushall()
    return redis_server_url


@pytest.fixture
def connection(redis_url: str) -> Iterator[Redis]:
    """A connection to the empty Redis at `redis_url`."""
    with Redis.from_url(redis_url) as connection:
        yield connection
