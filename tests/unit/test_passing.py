"""Which errors of Redis pass, in every shape in which they arrive, and which look like one and don't."""

from __future__ import annotations

import pytest
from redis import exceptions as redis_errors
from tests.support.redis_replies import REPLIES, as_raised

from mlxq.errors import LoginRefused, QueueError, QueueNotReady, QueueUnavailable
from mlxq.passing import REFUSALS, is_denial, is_refusal, passes, refusal_code
from mlxq.queue.connect import connect, queue_errors

OTHER_WORDS = [
    "MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk. Commands",
    "MISCONF Redis is configured to save RDB snapshots, but it is currently not able to persist on disk.",
    "MISCONF Valkey is configured to save RDB snapshots, but it's currently unable to persist to disk.",
    "BUSY Valkey is busy running a script. You can only call FUNCTION KILL or SHUTDOWN NOSAVE.",
    "LOADING Valkey is loading the dataset in memory",
    "CLUSTERDOWN Hash slot not served",
]
LASTING = [
    "WRONGTYPE Operation against a key holding the wrong kind of value",
    "NOPERM User default has no permissions to run the 'evalsha' command",
    "ERR unknown command 'EVALSHA', with args beginning with: ",
    "ERR value is not an integer or out of range",
    "BUSYGROUP Consumer Group name already exists",
    "BUSYKEY Target key name already exists.",
    "MOVED 3999 127.0.0.1:6381",
    "ERR user_script:3: attempt to index a nil value script: 6a1f, on @user_script:3.",
    "EXECABORT Transaction discarded because of: NOPERM User default has no permissions to run the 'hset' command",
    "ERR Error running script (call to f_6a1f): @user_script:3: @user_script: 3: -WRONGTYPE Operation against a key",
]


def plain(reply: str) -> str:
    return reply


def aborted(reply: str) -> str:
    return f"EXECABORT Transaction discarded because of: {reply}"


def script(reply: str) -> str:
    return f"{reply} script: 6a1f2e, on @user_script:12."


def old_script(reply: str) -> str:
    return f"ERR Error running script (call to f_6a1f2e): @user_script:12: @user_script: 12: -{reply}"


def oldest_script(reply: str) -> str:
    return f"ERR Error running script (call to f_6a1f2e): @user_script:12: -{reply}"


SHAPES = [plain, aborted, script, old_script, oldest_script]


def in_a_pipeline(reply: str) -> redis_errors.RedisError:
    """As `Pipeline.annotate_exception` says it; the command may hold anything, and is cut off where it is long."""
    error = as_raised(reply)
    error.args = (f"Command # 3 (EVALSHA (OOM ) of pipeline caused error: BUSY ...) of pipeline caused error: {error}",)
    return error


def bare(reply: str) -> redis_errors.RedisError:
    """The code is lost, and no class tells of it."""
    code, _, text = reply.partition(" ")
    return redis_errors.ResponseError(text if code in REFUSALS else reply)


@pytest.mark.parametrize("ways", [as_raised, in_a_pipeline, bare])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("reply", [*REPLIES.values(), *OTHER_WORDS])
def test_a_refusal_is_told_in_whatever_it_is_wrapped(reply: str, shape, ways) -> None:  # type: ignore[no-untyped-def]
    error = ways(shape(reply))

    assert refusal_code(error) == reply.split()[0]
    assert passes(error)


@pytest.mark.parametrize("ways", [as_raised, in_a_pipeline])
@pytest.mark.parametrize("reply", LASTING)
def test_what_no_waiting_cures_does_not_pass(reply: str, ways) -> None:  # type: ignore[no-untyped-def]
    assert not passes(ways(reply))


@pytest.mark.parametrize(
    ("reply", "is_denied"),
    [
        ("NOPERM this user has no permissions to run the 'hset' command", True),
        ("NOPERM User default has no permissions to run the 'hset' command", True),
        ("NOPERM No permissions to access a key script: 6a1f, on @user_script:1.", True),
        (
            "ERR The user executing the script can't run this command or subcommand script: 6a1f, on @user_script:1.",
            True,
        ),
        *((reply, False) for reply in LASTING if "NOPERM" not in reply),
        *((reply, False) for reply in REPLIES.values()),
    ],
)
def test_a_right_that_is_missing_is_told_from_all_else(reply: str, is_denied: bool) -> None:
    assert is_denial(as_raised(reply)) == is_denied
    assert is_denial(in_a_pipeline(reply)) == is_denied
    assert is_denial(as_raised(old_script(reply))) == is_denied


def test_every_refusal_is_tried_here() -> None:
    assert REPLIES.keys() == REFUSALS.keys()


@pytest.mark.parametrize(
    "error",
    [
        redis_errors.ConnectionError("Connection closed by server."),
        redis_errors.TimeoutError("Timeout reading from socket"),
        redis_errors.AuthenticationError("invalid username-password pair"),
        as_raised("ERR max number of clients reached"),
        as_raised("ERR max number of clients + cluster connections reached"),
    ],
)
def test_a_redis_that_is_away_passes_and_is_no_refusal(error: redis_errors.RedisError) -> None:
    assert passes(error)
    assert not is_refusal(error)


@pytest.mark.parametrize("error", [ValueError("OOM command not allowed"), redis_errors.WatchError("READONLY ")])
def test_only_what_redis_answers_is_a_refusal(error: Exception) -> None:
    assert not passes(error)


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        *((as_raised(REPLIES[code]), QueueNotReady, "takes no more writes") for code in ("OOM", "MISCONF", "READONLY")),
        *((as_raised(REPLIES[code]), QueueNotReady, "can't do this now") for code in ("BUSY", "LOADING")),
        (redis_errors.ConnectionError("gone"), QueueUnavailable, "can't be reached"),
        (redis_errors.TimeoutError("slow"), QueueUnavailable, "can't be reached"),
        (as_raised("WRONGPASS invalid username-password pair"), LoginRefused, "refuses the login"),
        (as_raised(LASTING[0]), QueueError, "says"),
    ],
)
def test_callers_of_the_client_see_one_error_per_decision(
    error: redis_errors.RedisError, kind: type[QueueError], words: str
) -> None:
    with pytest.raises(QueueError, match=words) as caught, queue_errors(connect("redis://localhost:1")):
        raise error

    assert type(caught.value) is kind
