"""Redis URLs: what is accepted, and that no message about a bad one shows a piece of its password."""

from __future__ import annotations

import pytest
from redis import Redis

from mlxq.errors import ConfigError
from mlxq.queue.client import Client
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
    ("url", "service", "sentinels"),
    [
        ("redis+sentinel://h1:26379,h2:26380/main/3", "main", [("h1", 26379), ("h2", 26380)]),
        ("redis+sentinel://me:p%40ss@h1,[::1]:5/main/3?sentinel_password=x", "main", [("h1", 26379), ("::1", 5)]),
        ("REDISS+SENTINEL://h1//3?ssl_ca_certs=/tmp/ca.crt", "mymaster", [("h1", 26379)]),
    ],
)
def test_a_url_of_sentinels_names_them_the_service_and_the_database(
    url: str, service: str, sentinels: list[tuple[str, int]]
) -> None:
    with connect(url) as connection:
        pool = connection.connection_pool
        asked = [sentinel.connection_pool.connection_kwargs for sentinel in pool.sentinel_manager.sentinels]

    assert (pool.service_name, pool.connection_kwargs["db"]) == (service, 3)
    assert [(options["host"], options["port"]) for options in asked] == sentinels
    if "p%40ss" in url:
        assert (pool.connection_kwargs["username"], pool.connection_kwargs["password"]) == ("me", "p@ss")
        assert (asked[0]["username"], asked[0]["password"]) == (None, "x")


@pytest.mark.parametrize(
    "url",
    [
        "redis+sentinel://me:secret@h1:port/main",
        "redis+sentinel://me:secret@/main/0",
        "redis+sentinel://me:secret@h1/main/zero",
        "redis+sentinel://me:secret@h1/main/0/1",
        "redis+sentinel://me:secret@h1/main?foo=x",
        "sentinel://me:secret@h1/main",
    ],
)
def test_a_bad_url_of_sentinels_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(ConfigError, match="SERVICE/DB") as caught:
        connect(url)
    assert "secret" not in str(caught.value)


def test_a_url_for_text_gives_bytes_all_the_same() -> None:
    with connect("redis://localhost:7391/0?decode_responses=true") as connection:
        assert Client(connection).redis.get_encoder().decode_responses is False


def test_a_connection_for_text_is_refused() -> None:
    with Redis(decode_responses=True) as connection, pytest.raises(ConfigError, match="decode_responses"):
        Client(connection)


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("redis://localhost:7391/0", "redis://localhost:7391/0"),
        ("redis://[::1]:7391/0", "redis://[::1]:7391/0"),
        ("rediss://me:sec%2Fret@localhost:7391/0?password=secret", "rediss://***@localhost:7391/0"),
        ("redis+sentinel://me:secret@h1/main/0", "redis+sentinel://***@h1/main/0"),
        ("unix:///tmp/redis.sock?db=3", "unix:///tmp/redis.sock"),
        ("unix://me:secret@/tmp/redis.sock", "unix://***@/tmp/redis.sock"),
    ],
)
def test_a_good_url_is_shown_without_its_secrets(url: str, masked: str) -> None:
    assert mask_url(url) == masked
    connect(url).close()


@pytest.mark.parametrize("url", ["localhost:6379", "localhost", "", "/0"])
def test_an_address_without_a_scheme_is_no_url_and_is_shown_as_it_is(url: str) -> None:
    with pytest.raises(ConfigError, match=rf"^'({url}|\*\*\*)' is not a Redis URL"):
        connect(url)
