"""The command line: exit codes, what goes to stdout and what to stderr, and `mlxq run` around a stand-in worker."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import zlib
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from redis import Redis
from tests.support.fake_worker import FakeWorker, echo, refuse
from tests.support.waiting import DEADLINE_S

from mlxq.cli import COMMANDS, main
from mlxq.cli.lazy import Entry, LazyGroup
from mlxq.cli.progress import Log, RateMeter, describe, duration
from mlxq.cli.report import counted, exit_code, headline
from mlxq.cli.signals import StopRequest
from mlxq.contract import Request
from mlxq.errors import (
    BatchNotFound,
    LoginRefused,
    MlxqError,
    ModelError,
    QueueNotReady,
    QueueUnavailable,
    WorkerFailed,
)
from mlxq.files.tally import Summary, Tally
from mlxq.queue.client import Client
from mlxq.requests.openai import text_request
from mlxq_worker.commands import run as run_module
from mlxq_worker.commands.worker import options_given, worker
from mlxq_worker.commands.worker_options import worker_command
from mlxq_worker.config import WorkerConfig
from mlxq_worker.demo import MODEL_PATH
from mlxq_worker.model.generation import DEFAULT_MAX_TOKENS

STAND_IN = """
import os, signal, sys
signal.alarm(60)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
sys.path.insert(0, {tests!r})
from tests.support.fake_worker import FakeWorker, {answer}
with FakeWorker(os.environ["MLXQ_URL"], {answer}):
    signal.sigwait([signal.SIGTERM])
"""
TESTS = Path(__file__).parent.parent

REDIS_KILLER = """
import os, time
from redis import Redis
os.kill(Redis.from_url(os.environ["MLXQ_URL"], socket_timeout=300).info()["process_id"], 9)
time.sleep(3600)
"""


def mlxq(*arguments: str | Path, **options: Any) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], prog_name="mlxq", **options)


def write_prompts(path: Path, count: int) -> Path:
    path.write_text("".join(f'{{"custom_id": "r{i}", "prompt": "Say hello"}}\n' for i in range(count)))
    return path


def custom_ids(path: Path) -> list[str]:
    return [json.loads(line)["custom_id"] for line in path.read_text().splitlines()]


def use_worker(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Have `mlxq run` start this script as its worker."""
    monkeypatch.setattr(run_module, "worker_command", lambda queue, **options: [sys.executable, "-c", script])


def stand_in(answer: str) -> str:
    return STAND_IN.format(tests=str(TESTS), answer=answer)


# --- The group ------------------------------------------------------------------------------------------------


def test_help_lists_every_command_without_importing_it() -> None:
    result = mlxq("--help")
    assert result.exit_code == 0
    assert all(name in result.stdout and entry.help[:20] in result.stdout for name, entry in COMMANDS.items())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_in_the_table_exists(name: str) -> None:
    result = mlxq(name, "--help")
    assert result.exit_code == 0
    assert result.stdout.startswith(f"Usage: mlxq {name} ")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_the_variable_that_the_help_promises(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    command = COMMANDS[name].load()
    context = command.make_context(name, [], resilient_parsing=True)
    shown = [item for item in command.params if isinstance(item, click.Option) and not item.hidden]

    for option in shown:
        name_of_option = option.opts[-1].lstrip("-").replace("-", "_").upper()
        variable = "MLXQ_GRACE_S" if name_of_option == "GRACE" else f"MLXQ_{name_of_option}"
        monkeypatch.setenv(variable, "1")
        is_read_elsewhere = (name, variable) == ("worker", "MLXQ_URL")  # by `WorkerConfig.from_env`
        assert is_read_elsewhere or option.resolve_envvar_value(context) == "1", variable


def test_version_is_printed() -> None:
    result = mlxq("--version")
    assert (result.exit_code, result.stdout.split()[0].rstrip(",")) == (0, "mlxq")


@pytest.mark.parametrize(
    "arguments",
    [
        ["bogus"],
        ["enqueue"],
        ["enqueue", "-i", "a.jsonl", "--prompt", "hello"],
        ["enqueue", "-i", "a.jsonl", "--wait"],
        ["enqueue", "--prompt", "hello", "--set", "temperature"],
        ["collect", "b1"],
        ["collect", "b1", "-o", "-"],
        ["collect", "b1", "-o", "b.jsonl", "--error-file", "-"],
        ["run", "-i", "a.jsonl"],
        ["run", "-i", "a.jsonl", "-o", "b.jsonl", "--max-inflight", "0"],
    ],
)
def test_wrong_usage_exits_with_2(arguments: list[str]) -> None:
    result = mlxq(*arguments)
    assert result.exit_code == 2
    assert "Usage:" in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "-i", "a.jsonl", "-o", "a.jsonl"],
        ["run", "-i", "a.jsonl", "-o", "b.jsonl", "--set", "temprature=0"],
        ["enqueue", "--prompt", "hello", "--set", "temprature=0"],
        ["enqueue", "--prompt", "hello", "--batch-id", "a b"],
        ["status", "--url", "localhost:6379"],
    ],
)
def test_an_option_that_cannot_be_right_is_one_line_and_exit_code_2(arguments: list[str]) -> None:
    result = mlxq(*arguments, env={"MLXQ_URL": "redis://localhost:1"})
    assert (result.exit_code, result.stderr.count("\n"), result.stdout) == (2, 1, "")


def lazy_group(entry: Entry) -> click.Command:
    return LazyGroup("mlxq", entries={"do": entry})


def failing_command(error: Exception) -> click.Command:
    @click.command()
    def do() -> None:
        raise error

    return do


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (WorkerFailed("it keeps ending"), 1),
        (BatchNotFound("no such batch"), 1),
        (ModelError("no such model"), 2),
        (LoginRefused("wrong password"), 2),
        (QueueUnavailable("no Redis"), 3),
        (QueueNotReady("it is full"), 3),
    ],
)
def test_an_error_of_ours_is_one_line_and_its_exit_code_says_whether_a_restart_may_help(
    monkeypatch: pytest.MonkeyPatch, error: MlxqError, code: int
) -> None:
    monkeypatch.setattr(Entry, "load", lambda self: failing_command(error))
    result = CliRunner().invoke(lazy_group(Entry("a:b", "Do.")), ["do"])
    assert (result.exit_code, result.stderr) == (code, f"Error: {error}\n")


def test_a_command_that_is_misspelt_is_told_from_one_that_is_nothing_like_any() -> None:
    group = lazy_group(Entry("a:b", "Do."))
    assert "No such command 'doo'. Did you mean 'do'?" in CliRunner().invoke(group, ["doo"]).stderr
    assert "No such command 'xyz'." in CliRunner().invoke(group, ["xyz"]).stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize(
    "arguments",
    [("--help",), ("--version",), ("deploy", "redis"), ("deploy", "acl", "--role", "worker"), ("eos", "demo")],
)
def test_an_output_that_takes_nothing_is_one_line(arguments: tuple[str, ...]) -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "mlxq", *arguments]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (
        1,
        "Error: can't write to standard output or a file: No space left on device",
    )
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [("--help",), ("--version",), ("deploy", "redis")])
def test_an_output_that_nobody_reads_any_more_ends_a_command_without_a_word(arguments: tuple[str, ...]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "mlxq", *arguments]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Entry, "load", lambda self: failing_command(ZeroDivisionError("a bug")))
    result = CliRunner().invoke(lazy_group(Entry("a:b", "Do.")), ["do"])
    assert isinstance(result.exception, ZeroDivisionError)


@pytest.mark.parametrize("module", ["mlx.core", "fakeredis", "jinja2"])
def test_without_the_worker_packages_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    error = ModuleNotFoundError(f"No module named {module!r}", name=module)
    monkeypatch.setattr(Entry, "load", lambda self: failing_command(error))
    result = CliRunner().invoke(lazy_group(Entry("a:b", "Do.")), ["do"])
    assert result.exit_code == 1
    assert 'install "mlxq[worker]"' in result.stderr
    assert "Traceback" not in result.stderr


def test_without_the_packages_of_serve_its_own_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    error = ModuleNotFoundError("No module named 'starlette'", name="starlette.applications")
    monkeypatch.setattr(Entry, "load", lambda self: failing_command(error))
    result = CliRunner().invoke(lazy_group(Entry("a:b", "Do.")), ["do"])
    assert result.exit_code == 1
    assert 'install "mlxq[serve]"' in result.stderr


def test_another_missing_module_is_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Entry, "load", lambda self: failing_command(ModuleNotFoundError(name="mlxq.typo")))
    result = CliRunner().invoke(lazy_group(Entry("a:b", "Do.")), ["do"])
    assert isinstance(result.exception, ModuleNotFoundError)


def test_an_unreachable_redis_is_one_line_without_the_password() -> None:
    result = mlxq("status", "--url", "redis://me:secret@localhost:1/0")
    assert result.exit_code == 3
    assert result.stderr.startswith("Error: Redis at localhost:1/0 can't be reached")
    assert result.stderr.count("\n") == 1
    assert "secret" not in result.stderr


@pytest.mark.parametrize("variable", ["MLXQ_URL", "REDIS_URL"])
def test_the_url_comes_from_the_environment_too(redis_url: str, variable: str) -> None:
    result = mlxq("status", env={variable: redis_url})
    assert (result.exit_code, result.stdout) == (0, "queue mlxq: 0 waiting, 0 workers\n")


# --- enqueue, status, collect, cancel -------------------------------------------------------------------------


def test_enqueue_prints_the_batch_id_and_nothing_else_on_stdout(redis_url: str, tmp_path: Path) -> None:
    result = mlxq("enqueue", "-i", write_prompts(tmp_path / "in.jsonl", 3), "--url", redis_url)
    assert result.exit_code == 0
    counts = Client(redis_url).batch(result.stdout.strip()).counts()
    assert (counts.total, counts.sealed) == (3, True)


def test_enqueue_says_of_a_new_batch_what_it_is(redis_url: str, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"prompt": "hi"}\n')
    command = ["enqueue", "-i", str(tmp_path / "in.jsonl"), "--url", redis_url, "--batch-id", "b1"]
    about = ["--batch-name", "nightly", "--metadata", "owner=Kim", "--metadata", "why=a = b"]

    refused = CliRunner().invoke(main, [*command, "--metadata", "owner"])
    done = CliRunner().invoke(main, [*command, *about, "--max-inflight", "1"])

    assert (refused.exit_code, done.exit_code) == (2, 0)
    assert "--metadata 'owner' is not NAME=TEXT" in refused.output
    counts = Client(redis_url).batch("b1").counts()
    assert (counts.name, counts.metadata) == ("nightly", {"owner": "Kim", "why": "a = b"})


def test_enqueue_names_bad_lines_and_enqueues_the_others(redis_url: str, tmp_path: Path) -> None:
    file = tmp_path / "in.jsonl"
    file.write_text('{"prompt": "hello"}\n{"prompt": "hello", "temperature": "hot"}\n')
    result = mlxq("enqueue", "-i", file, "--batch-id", "b1", "--url", redis_url)
    assert (result.exit_code, result.stdout) == (1, "b1\n")
    assert "line 2: temperature must be" in result.stderr
    assert "1 request enqueued, 1 line refused" in result.stderr
    assert Client(redis_url).batch("b1").counts().total == 1


def test_enqueue_tells_of_requests_that_the_batch_has_with_other_content(redis_url: str) -> None:
    # given a batch whose requests are still the same, have changed, have got another label only, or are new
    def line(custom_id: str, **more: str) -> str:
        return json.dumps({"custom_id": custom_id, "prompt": "hello", **more}) + "\n"

    def enqueue(text: str) -> Result:
        return mlxq("enqueue", "-i", "-", "--batch-id", "b1", "--url", redis_url, input=text)

    enqueue(line("same") + line("changed") + line("relabelled"))
    again = enqueue(line("same") + line("changed", prompt="bye") + line("relabelled", user="me") + line("new"))

    # then
    assert (again.exit_code, again.stdout) == (1, "b1\n")
    assert "1 request enqueued" in again.stderr
    assert "The batch has 1 request with other content" in again.stderr
    assert enqueue(line("same") + line("new")).exit_code == 0


def test_a_prompt_is_not_answered_by_an_earlier_one(redis_url: str) -> None:
    arguments = ["enqueue", "--batch-id", "b1", "--url", redis_url, "--prompt"]
    first, again, other = (mlxq(*arguments, prompt) for prompt in ("hello", "hello", "bye"))
    assert [result.exit_code for result in (first, again, other)] == [0, 0, 1]
    assert other.stderr == "Error: batch b1 has another prompt; use another --batch-id\n"


def test_what_a_stranger_put_in_a_jobs_place_is_no_change(redis_url: str, connection: Redis) -> None:
    arguments = ["enqueue", "--batch-id", "b1", "--url", redis_url, "--prompt", "hello"]
    mlxq(*arguments)
    [job_id] = Client(redis_url).batch("b1").job_ids()
    for data in (b"\x00", zlib.compress(b"[1]")):
        connection.hset(f"rq:job:{job_id}", "data", data)
        assert mlxq(*arguments).exit_code == 0


def test_collect_never_sees_the_lines_that_enqueue_refused(redis_url: str, tmp_path: Path) -> None:
    mlxq("enqueue", "-i", "-", "--batch-id", "b1", "--url", redis_url, input='{"prompt": "hello"}\nnot json\n')
    with FakeWorker(redis_url):
        result = mlxq("collect", "b1", "-o", tmp_path / "out.jsonl", "--follow", "--url", redis_url)
    [custom_id] = custom_ids(tmp_path / "out.jsonl")
    assert (result.exit_code, custom_id.partition("-")[0]) == (0, "row")
    assert not (tmp_path / "out.errors.jsonl").exists()


def test_enqueue_reads_stdin_and_lays_settings_under_every_request(redis_url: str) -> None:
    line = '{"prompt": "hello", "max_tokens": 7}\n{"prompt": "hello"}\n'
    result = mlxq(
        "enqueue", "-i", "-", "--set", "max_tokens=5", "--set", "temperature=0", "--url", redis_url, input=line
    )
    bodies: list[Any] = []

    def record(request: Any, job_id: str) -> dict[str, Any]:
        bodies.append(request.sampling)
        return echo(request, job_id)

    with FakeWorker(redis_url, record):
        Client(redis_url).batch(result.stdout.strip()).wait(timeout_s=DEADLINE_S)
    assert [(sampling.max_tokens, sampling.temperature) for sampling in bodies] == [(7, 0), (5, 0)]


def test_a_missing_input_file_is_one_line(redis_url: str, tmp_path: Path) -> None:
    result = mlxq("enqueue", "-i", tmp_path / "none.jsonl", "--url", redis_url)
    assert result.exit_code == 2
    assert "none.jsonl" in result.stderr
    assert result.stdout == ""


def test_a_prompt_is_answered_on_stdout(redis_url: str) -> None:
    with FakeWorker(redis_url):
        result = mlxq("enqueue", "--prompt", "Say hello", "--chat", "--wait", "--url", redis_url)
    assert (result.exit_code, result.stdout) == (0, "Say hello\n")


def test_a_prompt_that_fails_exits_with_1(redis_url: str) -> None:
    with FakeWorker(redis_url, refuse):
        result = mlxq("enqueue", "--prompt", "Say hello", "--wait", "--url", redis_url)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "too long" in result.stderr


def test_several_answers_and_calls_are_all_printed(redis_url: str) -> None:
    # given a worker that answers twice, once with a call
    def answer_twice(request: Request, job_id: str) -> dict[str, Any]:
        line = echo(request, job_id)
        [choice] = line["response"]["body"]["choices"]
        function = {"name": "add", "arguments": '{"a": "é"}'}
        call = {"id": "c", "type": "function", "function": function}
        calling = {**choice, "message": {"role": "assistant", "content": None, "tool_calls": [call]}}
        line["response"]["body"]["choices"] = [choice, calling]
        return line

    # when one prompt is asked
    with FakeWorker(redis_url, answer_twice):
        result = mlxq("enqueue", "--prompt", "Say hello", "--chat", "--wait", "--url", redis_url)

    # then stdout has the data and stderr says which is which
    assert result.stdout == 'Say hello\n{"name": "add", "arguments": "{\\"a\\": \\"é\\"}"}\n'
    assert "answer 2 of 2:" in result.stderr


def test_status_shows_batches_and_one_batch(redis_url: str, tmp_path: Path) -> None:
    mlxq("enqueue", "-i", write_prompts(tmp_path / "in.jsonl", 2), "--batch-id", "b1", "--url", redis_url)
    with FakeWorker(redis_url):
        Client(redis_url).batch("b1").wait(timeout_s=DEADLINE_S)
    listed = mlxq("status", "--url", redis_url)
    one = mlxq("status", "b1", "--url", redis_url)
    assert "b1" in listed.stdout
    assert "done" in listed.stdout
    assert "batch b1: done, 2 of 2 ended" in one.stdout


def test_status_shows_the_whole_id_of_a_runs_batch(redis_url: str, tmp_path: Path) -> None:
    file = write_prompts(tmp_path / "in.jsonl", 1)
    with FakeWorker(redis_url):
        mlxq("run", "-i", file, "-o", tmp_path / "out.jsonl", "--workers", "0", "--url", redis_url)
    [batch_id] = Client(redis_url).batch_ids()
    assert batch_id in mlxq("status", "--url", redis_url, env={"COLUMNS": "60"}).stdout


def test_status_speaks_json(redis_url: str) -> None:
    Client(redis_url).submit([text_request("hello", custom_id="a")], "b1")
    listed = json.loads(mlxq("status", "--json", "--url", redis_url).stdout)
    one = json.loads(mlxq("status", "b1", "--json", "--url", redis_url).stdout)
    assert listed["queue"] == {"name": "mlxq", "waiting": 1, "workers": 0}
    assert [item["batch_id"] for item in listed["batches"]] == ["b1"]
    assert (one["batch"]["state"], one["batch"]["total"], one["batch"]["requests_per_s"]) == ("running", 1, 0.0)


def test_status_lists_the_newest_batch_first_as_table_and_as_json(redis_url: str) -> None:
    for batch_id in ("older", "newer"):
        Client(redis_url).submit([], batch_id)
    table = mlxq("status", "--url", redis_url).stdout
    listed = json.loads(mlxq("status", "--json", "--url", redis_url).stdout)
    assert table.index("newer") < table.index("older")
    assert [item["batch_id"] for item in listed["batches"]] == ["newer", "older"]


def test_an_unknown_batch_exits_with_1(redis_url: str) -> None:
    result = mlxq("status", "nope", "--url", redis_url)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "'nope'" in result.stderr


def test_collect_follows_a_batch_into_a_file(redis_url: str, tmp_path: Path) -> None:
    mlxq("enqueue", "-i", write_prompts(tmp_path / "in.jsonl", 3), "--batch-id", "b1", "--url", redis_url)
    with FakeWorker(redis_url):
        result = mlxq("collect", "b1", "-o", tmp_path / "out.jsonl", "--follow", "--ordered", "--url", redis_url)
    assert (result.exit_code, result.stdout) == (0, "")
    assert custom_ids(tmp_path / "out.jsonl") == ["r0", "r1", "r2"]
    assert "3 answered, 0 failed; 15 prompt and 9 completion tokens.\n" in result.stderr  # how fast is not ours to say
    assert "eos_token" in result.stderr
    assert "<end>" in result.stderr
    assert "out.errors.jsonl" not in result.stderr


def test_collect_says_that_a_batch_is_not_done(redis_url: str, tmp_path: Path) -> None:
    mlxq("enqueue", "-i", write_prompts(tmp_path / "in.jsonl", 1), "--batch-id", "b1", "--url", redis_url)
    result = mlxq("collect", "b1", "-o", tmp_path / "out.jsonl", "--url", redis_url)
    assert result.exit_code == 1
    assert "not done" in result.stderr


def test_a_cancelled_batch_is_collected_into_the_error_file(redis_url: str, tmp_path: Path) -> None:
    mlxq("enqueue", "-i", write_prompts(tmp_path / "in.jsonl", 2), "--batch-id", "b1", "--url", redis_url)
    cancelled = mlxq("cancel", "b1", "--url", redis_url)
    result = mlxq("collect", "b1", "-o", tmp_path / "out.jsonl", "--url", redis_url)
    assert (cancelled.exit_code, cancelled.stdout) == (0, "")
    assert "2 waiting requests ended" in cancelled.stderr
    assert result.exit_code == 1
    assert sorted(custom_ids(tmp_path / "out.errors.jsonl")) == ["r0", "r1"]


def in_part(request: Request, job_id: str) -> dict[str, Any]:
    """The answer to a request that was cancelled while it was decoded."""
    line = echo(request, job_id)
    line["response"]["body"]["choices"][0] |= {"finish_reason": "abort", "stop_details": {"type": "cancelled"}}
    return line


def test_status_and_collect_count_what_was_cancelled_alike(redis_url: str, tmp_path: Path) -> None:
    # given a batch with an answer, a part of one, and a request that never ran
    file = write_prompts(tmp_path / "in.jsonl", 3)
    mlxq("enqueue", "-i", file, "--batch-id", "b1", "--url", redis_url)
    answers = {"r0": echo, "r1": in_part}
    both = threading.Event()

    def answer(request: Request, job_id: str) -> dict[str, Any]:
        if request.custom_id == "r1":
            worker.stop()
            both.set()
        return answers[request.custom_id](request, job_id)

    worker = FakeWorker(redis_url, answer)
    with worker:
        assert both.wait(DEADLINE_S)
    mlxq("cancel", "b1", "--url", redis_url)

    # when
    one, all_of_them = mlxq("status", "b1", "--url", redis_url), mlxq("status", "--url", redis_url)
    collected = mlxq("collect", "b1", "-o", tmp_path / "out.jsonl", "--url", redis_url)

    # then
    assert "1 answered, 0 failed, 2 cancelled; " in one.stdout
    assert "1 answered, 0 failed, 2 cancelled; " in collected.stderr
    assert "cancelled" in all_of_them.stdout.splitlines()[1]
    assert "What failed" not in collected.stderr
    assert collected.exit_code == 1
    assert custom_ids(tmp_path / "out.jsonl") == ["r0", "r1"]
    assert custom_ids(tmp_path / "out.errors.jsonl") == ["r2"]


def test_a_job_can_be_cancelled_by_its_id_once(redis_url: str) -> None:
    batch = Client(redis_url).submit([text_request("hello", custom_id="a")], "b1")
    first = mlxq("cancel", batch.job_id("a"), "--url", redis_url)
    second = mlxq("cancel", batch.job_id("a"), "--url", redis_url)
    unknown = mlxq("cancel", "nope", "--url", redis_url)
    assert [first.exit_code, second.exit_code, unknown.exit_code] == [0, 1, 1]
    assert "already ended" in second.stderr
    assert "no batch or job 'nope'" in unknown.stderr


@pytest.mark.parametrize("content", ["my notes\n", '{"custom_id": "a", "prompt": "x"}\n'])
@pytest.mark.parametrize("command", ["run", "collect"])
def test_an_error_file_that_holds_something_else_is_refused_and_kept(
    redis_url: str, tmp_path: Path, command: str, content: str
) -> None:
    # given a file that is no file of errors
    notes = tmp_path / "notes"
    notes.write_text(content)
    source = write_prompts(tmp_path / "in.jsonl", 1)
    batch = Client(redis_url).submit([text_request("Say hello", custom_id="a")])
    arguments = ["run", "-i", source, "--workers", "0"] if command == "run" else ["collect", batch.id]

    # when
    result = mlxq(*arguments, "-o", tmp_path / "out.jsonl", "--error-file", notes, "--url", redis_url)

    # then it is as it was, and nothing else was made
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (1, f"Error: line 1 of {notes} is not an output line")
    assert notes.read_text() == content
    assert not (tmp_path / "out.jsonl").exists()


def test_input_and_output_that_are_swapped_are_named_once_and_stay(redis_url: str, tmp_path: Path) -> None:
    requests, answers = write_prompts(tmp_path / "in.jsonl", 2), tmp_path / "out.jsonl"
    answers.write_text('{"custom_id": "r0", "response": {"status_code": 200, "body": {}}, "error": null}\n' * 2)
    before = requests.read_text(), answers.read_text()

    result = mlxq("run", "-i", answers, "-o", requests, "--workers", "0", "--url", redis_url)

    why = f"Error: {answers} is a file of answers, not of requests; are -i and -o swapped?\n"
    assert (result.exit_code, result.stderr) == (1, why)
    assert (requests.read_text(), answers.read_text()) == before


def test_output_and_error_file_must_differ(redis_url: str, tmp_path: Path) -> None:
    Client(redis_url).submit([], "b1")
    out = tmp_path / "out.jsonl"
    result = mlxq("collect", "b1", "-o", out, "--error-file", out, "--url", redis_url)
    assert result.exit_code == 2
    assert "same file" in result.stderr


# --- run ------------------------------------------------------------------------------------------------------


def test_run_answers_a_file_with_nothing_else_started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use_worker(monkeypatch, stand_in("echo"))
    out = tmp_path / "out.jsonl"
    file = write_prompts(tmp_path / "in.jsonl", 5)

    first = mlxq("run", "-i", file, "-o", out, "--model", "echo", "--ordered")
    use_worker(monkeypatch, "raise SystemExit('no worker is needed to do nothing')")
    again = mlxq("run", "-i", file, "-o", out, "--model", "echo")

    assert (first.exit_code, first.stdout) == (0, "")
    assert custom_ids(out) == [f"r{i}" for i in range(5)]
    assert "5 answered, 0 failed" in first.stderr
    assert again.exit_code == 0
    assert "5 already there" in again.stderr


def test_run_says_that_the_output_holds_answers_to_other_requests(redis_url: str, tmp_path: Path) -> None:
    out, file = tmp_path / "out.jsonl", tmp_path / "in.jsonl"
    arguments = ["run", "-i", file, "-o", out, "--workers", "0", "--url", redis_url]
    with FakeWorker(redis_url):
        write_prompts(file, 3)
        mlxq(*arguments)
        file.write_text('{"custom_id": "new", "prompt": "Say hello"}\n')
        result = mlxq(*arguments)
    assert "The output file also holds 3 answers to other requests." in result.stderr
    assert len(custom_ids(out)) == 4


def test_run_exits_with_1_when_requests_failed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use_worker(monkeypatch, stand_in("refuse"))
    result = mlxq("run", "-i", write_prompts(tmp_path / "in.jsonl", 2), "-o", tmp_path / "out.jsonl")
    assert result.exit_code == 1
    assert "prompt_too_long" in result.stderr
    assert f"is in {tmp_path / 'out.errors.jsonl'}." in result.stderr
    assert sorted(custom_ids(tmp_path / "out.errors.jsonl")) == ["r0", "r1"]


def test_run_tells_at_once_why_its_worker_cannot_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use_worker(monkeypatch, "import sys; print('Error: there is no model here'); sys.exit(78)")
    result = mlxq("run", "-i", write_prompts(tmp_path / "in.jsonl", 1), "-o", tmp_path / "out.jsonl")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("Error: the worker can't work: there is no model here")


def test_run_without_workers_needs_a_redis_that_others_know(tmp_path: Path) -> None:
    file = write_prompts(tmp_path / "in.jsonl", 1)
    result = mlxq("run", "-i", file, "-o", tmp_path / "out.jsonl", "--workers", "0")
    assert result.exit_code == 2
    assert "--url" in result.stderr


def test_run_uses_a_given_redis_and_workers_of_others(redis_url: str, tmp_path: Path) -> None:
    file = write_prompts(tmp_path / "in.jsonl", 3)
    with FakeWorker(redis_url):
        result = mlxq("run", "-i", file, "-o", tmp_path / "out.jsonl", "--workers", "0", env={"REDIS_URL": redis_url})
    assert result.exit_code == 0
    assert result.stderr.startswith(f"Using queue mlxq in the Redis at {redis_url}")
    assert len(custom_ids(tmp_path / "out.jsonl")) == 3


def test_a_stopped_run_says_how_to_go_on(redis_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(StopRequest, "__bool__", lambda self: True)
    file = write_prompts(tmp_path / "in.jsonl", 3)
    result = mlxq("run", "-i", file, "-o", tmp_path / "out.jsonl", "--workers", "0", "--url", redis_url)
    assert result.exit_code == 1
    assert "same command again" in result.stderr


def test_a_run_whose_own_redis_dies_says_so_and_how_to_go_on(
    redis_program: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use_worker(monkeypatch, REDIS_KILLER)
    result = mlxq("run", "-i", write_prompts(tmp_path / "in.jsonl", 3), "-o", tmp_path / "out.jsonl")
    assert result.exit_code == 3
    assert "The Redis that this run had started is gone. Run the same command again" in result.stderr
    assert "Waiting" not in result.stderr


def test_a_run_without_a_redis_to_begin_with_does_not_wait_for_one(tmp_path: Path) -> None:
    file = write_prompts(tmp_path / "in.jsonl", 3)
    result = mlxq("run", "-i", file, "-o", tmp_path / "out.jsonl", "--workers", "0", "--url", "redis://localhost:1")
    assert result.exit_code == 3
    assert "Redis at localhost:1/0 can't be reached" in result.stderr
    assert "Waiting" not in result.stderr


def test_the_worker_of_a_run_never_ends_on_an_empty_queue(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLXQ_BURST", "1")
    says_burst = (
        "import os, sys; from mlxq_worker import exits; from mlxq_worker.config import WorkerConfig;"
        "print(f'Error: burst is {WorkerConfig.from_env(os.environ, model=\"m\").burst}', file=sys.stderr);"
        "sys.exit(exits.GAVE_UP)"
    )
    use_worker(monkeypatch, says_burst)
    result = mlxq(
        "run", "-i", write_prompts(tmp_path / "in.jsonl", 1), "-o", tmp_path / "out.jsonl", "--url", redis_url
    )
    assert "burst is False" in result.stderr


def test_a_run_warns_of_answers_by_another_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use_worker(monkeypatch, stand_in("echo"))
    arguments = ["run", "-i", write_prompts(tmp_path / "in.jsonl", 2), "-o", tmp_path / "out.jsonl"]
    shared_queue = mlxq(*arguments, "--model", "org/other")  # whose worker calls its model echo
    old_answers = mlxq(*arguments, "--accept-model-change")
    refused = mlxq(*arguments)
    right_model = mlxq(*arguments, "--model", "echo")
    assert "2 of the answers are by echo, not by org/other." in shared_queue.stderr
    assert "2 of the answers are by echo, not by mlxq-demo." in old_answers.stderr
    assert "Warning" not in right_model.stderr
    assert refused.exit_code == 2
    assert "holds 2 answers by echo, not by mlxq-demo" in " ".join(refused.stderr.split())


def test_a_run_does_not_go_on_from_answers_that_had_other_end_tokens(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # given a run of which everything is done, and no manifest of it
    use_worker(monkeypatch, stand_in("echo"))
    folder = shutil.copytree(MODEL_PATH, tmp_path / "echo")
    arguments = ["run", "-i", write_prompts(tmp_path / "in.jsonl", 2), "-o", tmp_path / "out.jsonl", "--no-manifest"]
    mlxq(*arguments, "--model", folder)

    # when it is run again, with a model whose end tokens aren't those that the answers say
    refused = mlxq(*arguments, "--model", folder, "--extra-eos-token", "5")
    accepted = mlxq(*arguments, "--model", folder, "--accept-model-change")

    # then
    said = " ".join(refused.stderr.split())
    assert refused.exit_code == 2
    assert "holds 2 answers by echo with the end tokens 2 '<end>'; now it has 5 '&', 1699 '<|end_of_text|>'" in said
    assert (accepted.exit_code, "2 already there" in accepted.stderr) == (0, True)


def test_a_run_over_a_model_that_says_no_end_tokens_does_not_compare_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use_worker(monkeypatch, stand_in("echo"))
    arguments = ["run", "-i", write_prompts(tmp_path / "in.jsonl", 1), "-o", tmp_path / "out.jsonl"]
    (folder := tmp_path / "echo").mkdir()
    mlxq(*arguments, "--model", folder)
    again = mlxq(*arguments, "--model", folder)
    assert again.exit_code == 2
    assert "has no config.json: it is not a model" in " ".join(again.stderr.split())


def test_a_password_in_the_url_stays_off_the_worker_command_line() -> None:
    command = worker_command("q", model="m", max_num_seqs=4, extra_eos_tokens=("<end>",))
    assert command[1:4] == ["-m", "mlxq", "worker"]
    assert "--url" not in command
    assert command[-4:] == ["--max-num-seqs", "4", "--extra-eos-token", "<end>"]


@pytest.mark.parametrize("arguments", [["enqueue"], ["run", "--workers", "0", "-o", "OUT"]], ids=["enqueue", "run"])
def test_an_empty_input_is_pointed_out(redis_url: str, tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "in.jsonl").write_text("\n")
    given = [str(tmp_path / "out.jsonl") if word == "OUT" else word for word in arguments]
    result = mlxq(*given, "-i", tmp_path / "in.jsonl", "--url", redis_url)
    assert result.exit_code == 0
    assert "The input holds no requests." in result.stderr


def test_what_run_is_told_of_its_worker_reaches_it() -> None:
    options = {"max_num_seqs": 4, "default_max_tokens": 7, "extra_eos_tokens": ("<end>",), "allow_no_eos": True}
    command = worker_command("q", model="m", **options)
    given = worker.make_context("worker", command[4:]).params
    assert {name: given[name] for name in ("model", "queues", "extra_eos_tokens")} == {
        "model": "m",
        "queues": ("q",),
        "extra_eos_tokens": ("<end>",),
    }
    assert (given["max_num_seqs"], given["default_max_tokens"], given["allow_no_eos"]) == (4, 7, True)


def test_the_defaults_in_the_help_are_those_of_the_configuration() -> None:
    config = WorkerConfig(model="m")
    defaults = [
        config.url,
        config.queues[0],
        DEFAULT_MAX_TOKENS,
        f"{config.grace_s:g}",
    ]
    shown = re.findall(r"default:\s+(\S+)\]", mlxq("worker", "--help").stdout)
    shown_by_run = re.findall(r"default:\s+(\S+)\]", mlxq("run", "--help").stdout)
    assert {str(default) for default in defaults} <= set(shown)
    assert str(DEFAULT_MAX_TOKENS) in shown_by_run


# --- What is printed ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("seconds", "text"), [(8.4, "8 s"), (185, "3:05"), (7385, "2:03:05")])
def test_durations_are_short(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(("number", "text"), [(0, "0 workers"), (1, "1 worker"), (2000, "2,000 workers")])
def test_things_are_counted_in_words(number: int, text: str) -> None:
    assert counted(number, "worker") == text


def test_rates_are_of_the_last_half_minute_and_skip_what_was_there() -> None:
    meter, tally = RateMeter(), Tally()
    tally.skipped = 1000
    meter.update(tally, now=0.0)
    tally.failed, tally.completion_tokens = 10, 500
    meter.update(tally, now=40.0)
    tally.failed, tally.completion_tokens = 30, 1500
    meter.update(tally, now=50.0)
    assert (meter.requests_per_s, meter.tokens_per_s) == (2.0, 100.0)
    assert describe(tally, meter, 1050, "") == "2.0 requests/s, 100 tokens/s, 30 failed, 10 s left"
    assert describe(tally, meter, None, "the model is loading").endswith("30 failed, the model is loading")


def test_a_plain_line_has_no_rates_before_something_has_ended(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter((0.0, 1.0, 11.0, 12.0, 21.0))
    monkeypatch.setattr("mlxq.cli.progress.time.monotonic", lambda: next(clock))
    log, tally = Log(8), Tally()
    log.update(tally)
    log.update(tally)
    tally.succeeded, tally.completion_tokens = 2, 40
    log.update(tally)
    log.update(tally)
    assert capsys.readouterr().err.splitlines() == [
        "0/8 requests",
        "2/8 requests, 0.1 requests/s, 2 tokens/s, 30 s left",  # loading is no part of the rate
    ]


def summary(**values: Any) -> Summary:
    defaults: dict[str, Any] = {
        "skipped": 0,
        "succeeded": 2,
        "failed": 0,
        "error_codes": (),
        "stops": (),
        "prompt_tokens": 10,
        "completion_tokens": 1000,
        "seconds": 10.0,
    }
    return Summary(**{**defaults, **values})


def test_the_headline_has_counts_and_rates() -> None:
    assert headline(summary(skipped=5)) == (
        "2 answered, 0 failed, 5 already there in 10 s; 10 prompt and 1,000 completion tokens, 100 completion tokens/s."
    )


@pytest.mark.parametrize(("values", "code"), [({}, 0), ({"failed": 1}, 1), ({"interrupted": True}, 1)])
def test_the_exit_code_is_0_only_if_everything_was_answered(values: dict[str, Any], code: int) -> None:
    assert exit_code(summary(**values)) == code


def test_the_process_that_works_gets_the_options_of_its_supervisor_but_not_the_url() -> None:
    given = ["--model", "m", "--queue", "a", "--queue", "b", "--burst", "--url", "redis://:secret@here/0"]
    given += ["--memory-limit", "1.5GB", "--extra-eos-token", "two words", "--grace", "5", "--log-level", "debug"]

    words = options_given(worker.make_context("worker", list(given)))

    again = worker.make_context("worker", list(words)).params
    assert "secret" not in " ".join(words)
    assert again == worker.make_context("worker", list(given)).params | {"url": None}
    assert again["memory_limit_bytes"] == 1_500_000_000


def test_what_comes_from_a_variable_is_left_to_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLXQ_MODEL", "m")
    monkeypatch.setenv("MLXQ_MAX_JOBS", "5")

    assert options_given(worker.make_context("worker", ["--burst"])) == ["--burst"]


@pytest.mark.parametrize(
    "option",
    [
        ["--memory-limit", "plenty"],
        ["--wired-limit", "some"],
        ["--kv-bits", "4"],
        ["--max-jobs", "0"],
        ["--max-num-seqs", "0"],
    ],
)
def test_an_option_of_the_worker_that_cannot_be_right_is_named_and_starts_nothing(option: list[str]) -> None:
    result = mlxq("worker", "--model", "demo", *option)

    assert (result.exit_code, option[0] in result.stderr) == (2, True)


def test_a_template_file_that_is_not_there_is_a_wrong_option(tmp_path: Path) -> None:
    result = mlxq("run", "-i", __file__, "-o", tmp_path / "out.jsonl", "--template", "prompt.jinja")
    assert result.exit_code == 2
    assert "prompt.jinja" in result.stderr
