"""What SECURITY.md promises: the least rights suffice, TLS is checked, and neither secrets nor prompts get out."""

from __future__ import annotations

import logging
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from tests.support.fake_engine import FakeEngine, FakePreparer, FakeWorker
from tests.support.ports import free_port
from tests.support.processes import MLXQ, ended, run, running
from tests.support.queued_jobs import enqueue_plain, fetch, status, submit
from tests.support.redis_at import redis_at
from tests.support.redis_fixture import MortalRedis
from tests.support.waiting import wait_until

from mlxq.errors import QueueUnavailable
from mlxq.queue.client import Client
from mlxq.queue.connect import connect
from mlxq.queue.overview import overview
from mlxq_worker.config import WorkerConfig
from mlxq_worker.supervision.dead_workers import DeadWorkers

ROOT = Path(__file__).parents[2]
COMPATIBILITY = ROOT / "docs" / "compatibility.md"
OF_TEST = {"config|resetstat", "hello", "auth", "info", "acl|log", "command|list"}
"""What only the test sends, what every client may send, and what is asked for but can be refused."""
SECRET = "hunter2-PASSWORD"
MARKER = "sesame-open-0042"


def acl_rule() -> list[str]:
    """The words of the one rule in SECURITY.md, after the user's name."""
    [rule] = re.findall(r"^    ACL SETUSER mlxq (.*)$", (ROOT / "SECURITY.md").read_text(), re.MULTILINE)
    return rule.replace(">PASSWORD", f">{SECRET}").split()


def work(redis: Redis) -> None:
    config = WorkerConfig(model="fake")
    FakeWorker(["mlxq"], connection=redis, serializer="json", config=config).work(burst=True)


def use_everything(redis: Redis) -> None:
    """Whatever producers, workers and supervisors send to Redis."""
    client = Client(redis)
    batch, cancelled = submit(redis, "one", "two", "three"), submit(redis, "four", "five")
    parent = enqueue_plain(redis)
    child = enqueue_plain(redis, depends_on=parent)
    assert cancelled.cancel_job(cancelled.job_id("r0"))
    assert cancelled.cancel() == 1
    DeadWorkers(redis, ["mlxq"]).release_silent()

    work(redis)

    collector = batch.collector()
    collector.forget(list(collector.next_answers(0.0)))
    assert batch.counts().num_finished == 3
    assert status(redis, child.id) in ("queued", "finished")
    assert (client.queue_length(), client.num_workers()) == (0, 0)
    assert cancelled.id in client.batch_ids()
    assert batch.rate() >= 0
    assert overview(redis, "mlxq").queue("mlxq").waiting == 0


@pytest.fixture
def limited(mortal_redis: MortalRedis) -> Iterator[Redis]:
    """A connection with the rights of SECURITY.md and no others."""
    with redis_at(mortal_redis.url) as admin:
        admin.execute_command("ACL", "SETUSER", "mlxq", *acl_rule())
    with connect(mortal_redis.url.replace("unix://", f"unix://mlxq:{SECRET}@")) as redis:
        yield redis


def test_the_least_rights_suffice_for_all_that_mlxq_does(limited: Redis, mortal_redis: MortalRedis) -> None:
    use_everything(limited)

    assert mortal_redis.refused() == []


@pytest.mark.parametrize(
    "command",
    [
        ("GET", "secret"),
        ("CONFIG", "GET", "requirepass"),
        ("FLUSHALL",),
        ("KEYS", "*"),
        ("ACL", "LIST"),
        ("SHUTDOWN",),
        ("MONITOR",),
        ("EVAL", "return redis.call('GET', 'secret')", "0"),
    ],
)
def test_the_least_rights_allow_nothing_else(limited: Redis, command: tuple[str, ...]) -> None:
    with pytest.raises(Exception, match=r"(?i)permission|can't access"):
        limited.execute_command(*command)


def test_a_wrong_password_is_said_without_it(limited: Redis, mortal_redis: MortalRedis) -> None:
    with (
        connect(mortal_redis.url.replace("unix://", "unix://mlxq:wrong-secret@")) as redis,
        pytest.raises(QueueUnavailable, match="refuses the login") as caught,
    ):
        Client(redis).queue_length()
    assert "wrong-secret" not in str(caught.value)


def commands_in_scripts(redis: Redis) -> set[str]:
    """What the Lua scripts of both packages may call: words in capitals that Redis knows as commands."""
    words = {
        word.lower()
        for path in [*ROOT.glob("producer/**/*.lua"), *ROOT.glob("worker/**/*.lua")]
        for word in re.findall(r"'([A-Z]{3,})'", path.read_text())
    }
    return words & set(redis.command())


def knows_setinfo(redis: Redis) -> bool:
    """Redis 7.2 does, and Valkey calls itself that; redis-py tells them its name."""
    major, minor, *_ = redis.info("server")["redis_version"].split(".")
    return (int(major), int(minor)) >= (7, 2)


def test_the_list_of_needed_commands_is_complete_and_suffices(mortal_redis: MortalRedis) -> None:
    with redis_at(mortal_redis.url) as admin:
        # given a user with the rule of the documents, which names each command
        [rule] = re.findall(r"^    ACL SETUSER mlxq ((?:\\\n|.)*)$", COMPATIBILITY.read_text(), re.MULTILINE)
        words = rule.replace("\\\n", " ").replace(">PASSWORD", f">{SECRET}").split()
        if knows_setinfo(admin):
            words += re.findall(r"^Redis 7\.2 and later, and Valkey, need `(\S+)` too", COMPATIBILITY.read_text(), re.M)
        admin.execute_command("ACL", "SETUSER", "mlxq", *words)
        admin.config_resetstat()

        # when
        with connect(mortal_redis.url.replace("unix://", f"unix://mlxq:{SECRET}@")) as redis:
            use_everything(redis)
            overview(redis, "mlxq")

        # then
        sent = {name.removeprefix("cmdstat_") for name in admin.info("commandstats")} - OF_TEST
        needed = {name for name in sent if "fail" not in name} | commands_in_scripts(admin)
        named = {word.removeprefix("+") for word in words if word.startswith("+") and not word.startswith("+@")}
        named |= {name.partition("|")[0] for name in named | OF_TEST}  # Redis 6.2 counts by these
        assert " ".join(f"+{name}" for name in sorted(needed - named)) == ""
        assert mortal_redis.refused() == []


@pytest.fixture
def protected_url(mortal_redis: MortalRedis) -> str:
    """The URL, password included, of a Redis with a password."""
    with redis_at(mortal_redis.url) as admin:
        admin.config_set("requirepass", SECRET)
    return mortal_redis.url.replace("unix://", f"unix://:{SECRET}@")


@pytest.mark.slow
@pytest.mark.parametrize("command", [("status",), ("status", "--json"), ("status", "no-such-batch")])
def test_status_shows_no_password(protected_url: str, command: tuple[str, ...]) -> None:
    done = run(*MLXQ, *command, MLXQ_URL=protected_url)

    assert done.stdout + done.stderr
    assert SECRET not in done.stdout + done.stderr


@pytest.mark.slow
def test_a_worker_shows_its_password_in_no_log_and_to_nobody_who_lists_processes(protected_url: str) -> None:
    with connect(protected_url) as redis:
        batch = submit(redis, "Say hello")
        with running(*MLXQ, "worker", "--model", "demo", MLXQ_URL=protected_url) as worker:
            wait_until(lambda: batch.counts().num_ended, "the answer")
            listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
            worker.terminate()
            output = ended(worker)
    assert "mlxq worker" in listed
    assert SECRET not in listed + output


def test_connections_and_clients_show_no_password() -> None:
    url = f"redis://me:{SECRET}@localhost:1/0"

    with connect(url) as redis:
        shown = repr(Client(redis)) + str(Client(redis)) + repr(WorkerConfig(model="fake", url=url))

    assert SECRET not in shown


# --- TLS ------------------------------------------------------------------------------------------------------


@pytest.fixture
def tls(redis_program: str, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The URL of a Redis that speaks only TLS, and the certificate of the authority behind it."""
    ca, port = make_certificates(tmp_path), free_port()
    files = ["--tls-cert-file", "redis.crt", "--tls-key-file", "redis.key", "--tls-ca-cert-file", "ca.crt"]
    options = ["--port", "0", "--tls-port", str(port), "--tls-auth-clients", "no", "--save", "", *files]
    server = subprocess.Popen([redis_program, *options], cwd=tmp_path, stdout=subprocess.DEVNULL)
    url = f"rediss://localhost:{port}/0"
    try:
        with redis_at(url, ssl_ca_certs=str(ca)) as redis:
            wait_until(lambda: is_up(redis), "the server")
        yield url, ca
    finally:
        server.kill()
        server.wait()


def make_certificates(directory: Path) -> Path:
    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=directory, capture_output=True, check=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    authority = ("-addext", "keyUsage=critical,keyCertSign,cRLSign")
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.crt", "-days", "2", "-subj", "/CN=test", *authority)
    openssl("req", *key, "-keyout", "redis.key", "-out", "redis.csr", "-subj", "/CN=localhost")
    (directory / "names").write_text("subjectAltName=DNS:localhost\n")
    signed = ("-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "names", "-days", "2")
    openssl("x509", "-req", "-in", "redis.csr", "-out", "redis.crt", *signed)
    return directory / "ca.crt"


def is_up(redis: Redis) -> bool:
    try:
        return bool(redis.ping())
    except RedisConnectionError:
        return False


def test_jobs_go_through_a_redis_that_speaks_tls(tls: tuple[str, Path]) -> None:
    url, ca = tls

    with connect(f"{url}?ssl_ca_certs={ca}") as redis:
        use_everything(redis)


def test_a_server_with_an_unknown_certificate_or_another_name_is_refused(tls: tuple[str, Path]) -> None:
    url, ca = tls

    for bad in (url, f"{url.replace('localhost', '127.0.0.1')}?ssl_ca_certs={ca}"):
        with connect(bad) as redis, pytest.raises(QueueUnavailable, match=r"(?i)certificate"):
            Client(redis).queue_length()


# --- Prompts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("owner", "part"), [(FakePreparer, "prepare"), (FakePreparer, "finish"), (FakeEngine, "step")])
def test_an_error_that_quotes_the_prompt_is_logged_without_it(
    connection: Redis,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    owner: type,
    part: str,
) -> None:
    def quoting(self: object, *arguments: Any, **options: Any) -> Any:
        raise KeyError(f"no token for {MARKER}")

    monkeypatch.setattr(owner, part, quoting)
    job = enqueue_plain(connection, MARKER)
    with caplog.at_level(logging.DEBUG), caplog.at_level(logging.DEBUG, logger="rq.worker"):
        work(connection)

    assert fetch(connection, job.id).get_status() == "failed"
    assert "KeyError" in caplog.text
    assert MARKER not in caplog.text


@pytest.mark.slow
def test_a_worker_logs_no_prompt_and_no_answer(redis_url: str) -> None:
    with connect(redis_url) as redis:
        batch = submit(redis, f"Repeat: {MARKER}", f"{MARKER} " * 2000, max_tokens=5)
        enqueue_plain(redis, MARKER)
        done = run(*MLXQ, "worker", "--model", "demo", "--burst", MLXQ_URL=redis_url)
        counts = batch.counts()

    assert counts.num_ended == 2
    assert MARKER not in done.stdout + done.stderr
