"""Keys that hold something of another type than RQ and mlxq keep there: made room for, and told in one sentence each.

Redis refuses a command on such a key, and would go on refusing it. What only RQ or mlxq writes is moved away, under
``mlxq:broken:{key}``, so that whoever is hindered by it goes on and nothing is lost; what belongs to a single job or
batch stays. Scripts that find a broken key note it in ``mlxq:broken``. Knows nothing of what keys mean.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, cast

from redis import Redis
from redis import exceptions as redis_errors
from redis.client import Pipeline

from mlxq import keys
from mlxq.errors import QueueError
from mlxq.printable import printable
from mlxq.queue.scripts import source

Kind = Literal["string", "list", "set", "zset", "hash", "stream"]
"""Redis's words for the types of its values."""


@dataclass(frozen=True, slots=True)
class BrokenKey:
    """A key, the type that belongs there, the one that was found, and whether that was moved away."""

    key: str
    wanted: str
    found: str
    is_moved: bool

    def __str__(self) -> str:
        held = f"The key {self.key} {'held' if self.is_moved else 'holds'} a {self.found} where a {self.wanted} belongs"
        if self.is_moved:
            return f"{held}; that is now under {keys.moved(self.key)}"
        return f"{held}, and counts as gone: delete it"


def mend(connection: Redis | Pipeline, kinds: Mapping[str, Kind], *, with_notes: bool = False) -> list[BrokenKey]:
    """Move away what has another type than it should. One round trip.

    Args:
        kinds: keys, and the type that each should have if it is there at all.
        with_notes: also take what scripts have noted since anybody last did.
    """
    # Not by its hash: an unknown one is an error, after which an embedded server may hang up.
    reply = connection.eval(source("mend"), len(kinds), *kinds, int(with_notes), *kinds.values())
    return [_broken_key(entry) for entry in cast("list[list[bytes]]", reply)]


def kinds_of_batch(batch_id: str) -> dict[str, Kind]:
    """A batch's keys, each with its type."""
    return {keys.batch(batch_id): "hash", keys.batch_jobs(batch_id): "zset", keys.batch_events(batch_id): "stream"}


@contextmanager
def naming(connection: Redis, kinds: Mapping[str, Kind]) -> Iterator[None]:
    """Says which key it was if Redis refuses something in the block since a key has the wrong type.

    Raises:
        QueueError: one of `kinds` has another type than it should.
    """
    try:
        yield
    except redis_errors.ResponseError as error:
        if not is_wrong_type(error):
            raise
        for key, wanted in kinds.items():
            found = cast(bytes, connection.type(key)).decode()
            if found not in ("none", wanted):
                raise QueueError(str(BrokenKey(printable(key), wanted, found, is_moved=False))) from error
        raise


def is_wrong_type(error: BaseException) -> bool:
    """Whether Redis has refused a command since a key holds something of another type."""
    return isinstance(error, redis_errors.ResponseError) and "WRONGTYPE" in str(error)


def _broken_key(entry: list[bytes]) -> BrokenKey:
    key, wanted, found, became = entry
    return BrokenKey(printable(key), wanted.decode(), found.decode(), became == b"moved")
