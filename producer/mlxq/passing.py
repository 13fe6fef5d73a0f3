"""Which errors of Redis pass: it is away, or it is there and can't do now what it will do again later.

The one place that knows, for workers and producers alike. Redis says it by a code in front of its reply, but that is
not always what arrives: a pipeline puts its own words in front, a script wraps it, EXEC hides it in its own error, and
redis-py takes the code off and leaves a class, or only the text. Knows nothing of what is done about an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from redis import exceptions as redis_errors

REFUSALS: Final[Mapping[str, str]] = {
    "BUSY": r"\w+ is busy running a script",
    "CLUSTERDOWN": r"The cluster is down|Hash slot not served",
    "EXECABORT": r"Transaction discarded because of previous errors",  # redis-py shows the cause where it knows one
    "LOADING": r"\w+ is loading the dataset",
    "MASTERDOWN": r"Link with MASTER is down",
    "MISCONF": r"Errors writing to the AOF file|\w+ is configured to save RDB snapshots",
    "NOREPLICAS": r"Not enough good replicas",
    "NOSCRIPT": r"No matching script",  # flushed since it was loaded; the next try loads it again
    "OOM": r"command not allowed when used memory",
    "READONLY": r"You can't write against a read only",
    "TRYAGAIN": r"Multiple keys request during rehashing",
    "UNBLOCKED": r"force unblock from blocking operation",  # it became a replica while we waited for something
}
"""How a reply begins that will be another one later, and how it does once somebody has taken its code off: a regular
expression, since Valkey says its own name."""

_AWAY = (redis_errors.ConnectionError, redis_errors.TimeoutError)
"""Also a login that is refused: who asks here has been let in before, and passwords change on one side first."""
_NO_ROOM = re.compile(r"(?:ERR )?max number of clients")
"""redis-py knows these words too, but not all that may follow."""
_CLASSES: Final[Mapping[type[redis_errors.RedisError], str]] = {
    redis_errors.BusyLoadingError: "LOADING",
    redis_errors.MasterDownError: "MASTERDOWN",
    redis_errors.ClusterDownError: "CLUSTERDOWN",  # the class above is one of it, so it comes later
    redis_errors.NoScriptError: "NOSCRIPT",
    redis_errors.OutOfMemoryError: "OOM",
    redis_errors.ReadOnlyError: "READONLY",
    redis_errors.TryAgainError: "TRYAGAIN",
}
"""What redis-py makes of some codes, which it then takes off."""

_WRAPPERS = re.compile(
    r"Command # \d+ \(.*\) of pipeline caused error: "  # by redis-py; the command, with anything in it, may be cut off
    r"|(?:EXECABORT )?Transaction discarded because of: "
    r"|(?:ERR )?Error running script \(call to \w+\): (?:@?user_script: ?\d+: )*"  # up to Redis 6.2
    r"|-",
    re.DOTALL,
)
_DENIED = re.compile(r"NOPERM |(?:ERR )?The user executing the script can't")
"""What redis-py has no class for."""
_CODE = re.compile(rf"({'|'.join(REFUSALS)})(?: |$)")


def passes(error: BaseException) -> bool:
    """Whether waiting cures it: the same call, some time later, may succeed."""
    return isinstance(error, _AWAY) or _NO_ROOM.match(str(error)) is not None or is_refusal(error)


def is_denial(error: BaseException) -> bool:
    """Whether Redis doesn't give the right to do this: no waiting cures it but that of whoever gives rights, and no job
    is to blame."""
    if isinstance(error, redis_errors.NoPermissionError):
        return True
    return isinstance(error, redis_errors.ResponseError) and _DENIED.match(_unwrapped(str(error))) is not None


def is_refusal(error: BaseException) -> bool:
    """Whether Redis is there, and says that it can't do this now."""
    return refusal_code(error) is not None


def refusal_code(error: BaseException) -> str | None:
    """The code by which Redis says that it can't do this now, one of `REFUSALS`; `None` if it says something else."""
    for kind, code in _CLASSES.items():
        if isinstance(error, kind):
            return code
    return _code_in(_unwrapped(str(error))) if isinstance(error, redis_errors.ResponseError) else None


def _unwrapped(text: str) -> str:
    """The reply as Redis gave it to whoever put words in front."""
    while wrapper := _WRAPPERS.match(text):
        text = text[wrapper.end() :]
    return text


def _code_in(reply: str) -> str | None:
    if match := _CODE.match(reply):
        # Of an aborted transaction only if it doesn't say why: a cause that is named has been looked at by itself.
        return match[1] if match[1] != "EXECABORT" else _code_in(reply[match.end() :])
    return next((code for code, text in REFUSALS.items() if re.match(text, reply)), None)
