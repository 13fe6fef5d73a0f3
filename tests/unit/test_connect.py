"""Redis URLs: what is accepted, and that no message about a bad one shows a piece of its password."""

from __future__ import annotations

import pytest

from mlxq.errors import ConfigError
from mlxq.queue.connect import connect, mask_url


@pytest.mark.parametrize(
    "url",
    [
        "redis://:sec/ret@localhost:7391/0",
        "redis://:sec#ret@localhost:7391/0",
        "redis://:sec?ret@localhost:7391/0",
        "redis://:1/sec#ret@localhost:7391",
        "redis://:12/secret@localhost:7391/0",
        "redis://:p@sec/ret#d@localhost:7391/0",
        "redis://:[secret@localhost:7391",
        "redis://me:secret",
        "redis://localhost?password=sec@ret",
        "redis:/me:secret@localhost:7391",
        "rediss//me:secret@localhost:7391",
        "http://me:secret@localhost",
        "me:secret@localhost:7391",
        "me:secret",
        "unix://:sec/ret@/tmp/redis.sock",
    ],
)
def test_a_bad_url_shows_nothing_of_its_password_and_says_how_to_write_it(url: str) -> None:
    with pytest.raises(ConfigError, match="%2F for /") as caught:
        connect(url)
    assert not any(piece in str(caught.value) for piece in ("sec", "ret@", "12", "me:"))


@pytest.mark.parametrize("query", ["foo=x", "protocol=9", "socket_timeout=soon"])
def test_an_option_that_redis_clients_do_not_know_is_an_error_at_once(query: str) -> None:
    with pytest.raises(ConfigError, match="'redis://localhost:7391/0' is not a Redis URL with options that are known"):
        connect(f"redis://localhost:7391/0?{query}")


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("redis://localhost:7391/0", "redis://localhost:7391/0"),
        ("redis://[::1]:7391/0", "redis://[::1]:7391/0"),
        ("rediss://me:sec%2Fret@localhost:7391/0?password=secret", "rediss://***@localhost:7391/0"),
        ("unix:///tmp/redis.sock?db=3", "unix:///tmp/redis.sock"),
        ("unix://me:secret@/tmp/redis.sock", "unix://***@/tmp/redis.sock"),
    ],
)
def test_a_good_url_is_shown_without_its_secrets(url: str, masked: str) -> None:
    assert mask_url(url) == masked
    connect(url).close()
