"""What Redis answers when it can't do something now, and what redis-py makes of an answer."""

from __future__ import annotations

from redis import exceptions as redis_errors
from redis._parsers.base import BaseParser

REPLIES = {
    "BUSY": "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
    "CLUSTERDOWN": "CLUSTERDOWN The cluster is down",
    "EXECABORT": "EXECABORT Transaction discarded because of previous errors.",
    "LOADING": "LOADING Redis is loading the dataset in memory",
    "MASTERDOWN": "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
    "MISCONF": "MISCONF Errors writing to the AOF file: No space left on device",
    "NOREPLICAS": "NOREPLICAS Not enough good replicas to write.",
    "NOSCRIPT": "NOSCRIPT No matching script. Please use EVAL.",
    "OOM": "OOM command not allowed when used memory > 'maxmemory'.",
    "READONLY": "READONLY You can't write against a read only replica.",
    "TRYAGAIN": "TRYAGAIN Multiple keys request during rehashing of slot",
    "UNBLOCKED": "UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)",
}
"""As Redis 7 says it, line by line what stands in its sources."""


def as_raised(reply: str) -> redis_errors.RedisError:
    """The error that redis-py raises for a reply."""
    return BaseParser.parse_error(reply)
