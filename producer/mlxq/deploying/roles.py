"""The commands of Redis that each role needs, as data, and the ACL rule that allows them and nothing else.

A rule bounds what a login can do by accident, and to other keys in the same Redis. It keeps no producer from another:
whoever may enqueue may write to every key of RQ and mlxq (see SECURITY.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

Role = Literal["producer", "worker", "observer"]

_CONNECTING = "auth client|info client|setname hello ping select"
_LOOKING = (
    "eval exists hget hgetall hlen hmget info lindex llen pttl smembers time ttl type xrevrange zcard zcount zrevrange"
    " zscore"
)
_WRITING = (
    "del discard evalsha exec expire hdel hexists hincrby hkeys hmset hset hsetnx lpos lpush multi publish rename"
    " rpush sadd scard script|exists script|load sismember srem unwatch watch xadd xrange zadd zincrby zpopmin zrange"
    " zrem zremrangebyscore"
)
_OF_PRODUCERS = "get lrange lrem set unlink xdel xread zmscore"
_OF_WORKERS = "hincrbyfloat hstrlen lpop lrange persist subscribe unsubscribe zrangebyscore"

COMMANDS: Mapping[Role, frozenset[str]] = {
    "producer": frozenset(f"{_CONNECTING} {_LOOKING} {_WRITING} {_OF_PRODUCERS}".split()),
    "worker": frozenset(f"{_CONNECTING} {_LOOKING} {_WRITING} {_OF_WORKERS}".split()),
    "observer": frozenset(f"{_CONNECTING} {_LOOKING}".split()),
}
"""A producer enqueues, collects, cancels and deletes; a worker answers; an observer runs `mlxq status` without a batch,
`mlxq top` and `mlxq metrics`. All may run `mlxq doctor`. Names as Redis's ACL has them, a part of a command after a
bar."""

ABOUT: Mapping[Role, str] = {
    "producer": "for mlxq enqueue, status, collect, cancel, delete, serve, for mlxq run --url, and for mlxq.Client",
    "worker": "for mlxq worker and rq worker; config|get lets it warn of settings that lose jobs",
    "observer": "for mlxq status without a batch, mlxq top and mlxq metrics; changes nothing",
}


def acl_line(role: Role, user: str | None = None) -> str:
    """A line of an ACL file (``aclfile`` in redis.conf) for one user of this role. Its password is to be filled in.

    Args:
        user: `None` for ``mlxq-`` and the role.
    """
    commands = sorted(COMMANDS[role] | ({"config|get"} if role == "worker" else set()))
    allowed = " ".join(f"+{command}" for command in commands)
    channels = "&rq:pubsub:*" if "publish" in COMMANDS[role] else ""
    words = (
        f"user {user or f'mlxq-{role}'} on >CHANGE-ME resetkeys ~rq:* ~mlxq:* resetchannels {channels} -@all {allowed}"
    )
    return " ".join(words.split())
