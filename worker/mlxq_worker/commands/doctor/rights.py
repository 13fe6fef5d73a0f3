"""Whether Redis's ACL allows each command that mlxq needs: each is tried once, on keys of the doctor's own.

Redis looks at rights before it looks at what a key holds, so an answer of any other kind than NOPERM is a yes. The keys
are deleted in the end, and would expire by themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

from redis import Redis
from redis.exceptions import NoPermissionError, RedisError, ResponseError

from mlxq.deploying.roles import COMMANDS as ROLES
from mlxq.deploying.roles import Role
from mlxq_worker.commands.doctor.finding import Finding, ok, problem

_RUN = "to run"
"""In what Redis says of a command that isn't allowed; of a key or channel it says "to access"."""
K = "{key}"
COMMANDS: tuple[tuple[str, ...], ...] = (
    ("HSET", K, "f", "1"),
    ("EXPIRE", K, "60"),
    ("DEL", K),
    ("EVAL", "return 1", "0"),
    ("EVALSHA", "0" * 40, "0"),
    ("EXISTS", K),
    ("GET", K),
    ("HDEL", K, "f"),
    ("HEXISTS", K, "f"),
    ("HGET", K, "f"),
    ("HGETALL", K),
    ("HINCRBY", K, "f", "1"),
    ("HINCRBYFLOAT", K, "f", "1"),
    ("HKEYS", K),
    ("HLEN", K),
    ("HMGET", K, "f"),
    ("HMSET", K, "f", "1"),
    ("HSETNX", K, "f", "1"),
    ("HSTRLEN", K, "f"),
    ("INFO", "server"),
    ("LINDEX", K, "0"),
    ("LLEN", K),
    ("LPOP", K),
    ("LPOS", K, "x"),
    ("LPUSH", K, "x"),
    ("LRANGE", K, "0", "0"),
    ("LREM", K, "0", "x"),
    ("PERSIST", K),
    ("PING",),
    ("PTTL", K),
    ("RENAME", K, K),
    ("RPUSH", K, "x"),
    ("SADD", K, "x"),
    ("SET", K, "x"),
    ("SCARD", K),
    ("SCRIPT EXISTS", "0" * 40),
    ("SCRIPT LOAD", "return 1"),
    ("SISMEMBER", K, "x"),
    ("SMEMBERS", K),
    ("SREM", K, "x"),
    ("TIME",),
    ("TTL", K),
    ("TYPE", K),
    ("UNLINK", K),
    ("WATCH", K),
    ("UNWATCH",),
    ("XADD", K, "*", "f", "1"),
    ("XDEL", K, "0-1"),
    ("XRANGE", K, "-", "+", "COUNT", "1"),
    ("XREAD", "COUNT", "1", "STREAMS", K, "0"),
    ("XREVRANGE", K, "+", "-", "COUNT", "1"),
    ("ZADD", K, "1", "x"),
    ("ZCARD", K),
    ("ZCOUNT", K, "0", "1"),
    ("ZINCRBY", K, "1", "x"),
    ("ZMSCORE", K, "x"),
    ("ZPOPMIN", K),
    ("ZRANGE", K, "0", "0"),
    ("ZRANGEBYSCORE", K, "0", "1"),
    ("ZREM", K, "x"),
    ("ZREMRANGEBYSCORE", K, "0", "1"),
    ("ZREVRANGE", K, "0", "0"),
    ("ZSCORE", K, "x"),
    ("PUBLISH", "rq:pubsub:mlxq-doctor", "x"),
)
"""Each with the fewest arguments that it takes. MULTI, EXEC and DISCARD are tried together, SUBSCRIBE by itself; what a
client sends to connect was allowed, or nothing would be here to ask."""

PREFIXES = ("rq:", "mlxq:")
"""How all keys begin."""
CHANNEL = "rq:pubsub:mlxq-doctor"


def look_at_rights(connection: Redis, role: Role | None = None) -> Iterator[Finding]:
    """One finding for all commands that are missing, and one each for the keys and the channels.

    Args:
        role: what the user is to be; `None` for producer and worker in one.
    """
    key = f"mlxq:doctor:{uuid4().hex}"
    try:
        refusals = {words[0]: _refusal(connection, words, key) for words in COMMANDS} | _of_sessions(connection)
        refusals = {name: refusal for name, refusal in refusals.items() if role is None or _is_of(name, role)}
        _refusal(connection, ("DEL", K), key)
        closed = [prefix for prefix in PREFIXES if "key" in _refusal(connection, ("TYPE", K), f"{prefix}doctor")]
    except RedisError as error:
        yield problem("rights", f"the rights could not be tried: {error}", "look at Redis, and try again")
        return
    missing = [name for name, refusal in refusals.items() if _RUN in refusal]
    if missing:
        names = " ".join(f"+{name.lower().replace(' ', '|')}" for name in missing)
        yield problem(
            "rights",
            f"Redis's user may not run {', '.join(missing)}",
            f"ACL SETUSER NAME {names} (the whole rule: mlxq deploy acl --role {role or 'ROLE'})",
        )
    if closed:
        yield problem(
            "rights_keys",
            f"Redis's user has no access to keys that begin with {' or '.join(closed)}",
            f"ACL SETUSER NAME {' '.join(f'~{prefix}*' for prefix in closed)}",
        )
    if any("channel" in refusal for refusal in refusals.values()):
        yield problem("rights_channels", "Redis's user has no access to RQ's channels", "ACL SETUSER NAME &rq:pubsub:*")
    if not any(refusals.values()) and not closed:
        yield ok("rights", f"Redis's user may do all that mlxq needs ({len(refusals)} commands were tried)")


def _is_of(name: str, role: Role) -> bool:
    return name.lower().replace(" ", "|") in ROLES[role]


def _refusal(connection: Redis, words: tuple[str, ...], key: str = "") -> str:
    """What Redis says if it isn't allowed; empty if it is, whatever else comes of it."""
    try:
        connection.execute_command(*(word.replace(K, key) for word in words))  # type: ignore[no-untyped-call]
    except ResponseError as error:  # EXEC that isn't allowed is an EXECABORT because of that
        return str(error) if "permission" in str(error).lower() else ""
    return ""


def _of_sessions(connection: Redis) -> dict[str, str]:
    """Of what has to come in order, on a connection of its own."""
    with connection.client() as session:  # type: ignore[no-untyped-call]
        refusals = {name: _refusal(session, (name,)) for name in ("MULTI", "EXEC")}
        _refusal(session, ("MULTI",))
        refusals["DISCARD"] = _refusal(session, ("DISCARD",))
    pubsub = connection.pubsub()  # type: ignore[no-untyped-call]
    try:
        pubsub.subscribe(CHANNEL)
        pubsub.get_message(timeout=1.0)
        refusals["SUBSCRIBE"] = ""
    except NoPermissionError as error:
        refusals["SUBSCRIBE"] = str(error)
    finally:
        pubsub.close()
    return refusals
