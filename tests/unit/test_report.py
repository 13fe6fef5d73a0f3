"""The closing words of a command: what failed, how often and where; and how narrow, dumb and closed terminals do."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from rq.job import Job
from tests.support.fake_worker import FakeWorker, echo
from tests.support.redis_at import redis_at
from tests.support.waiting import DEADLINE_S

from mlxq.cli import main
from mlxq.cli.progress import Bar, Log, progress
from mlxq.cli.report import CUT_HINT, MAX_MESSAGES, exit_code, headline, print_failures
from mlxq.contract import Request
from mlxq.files.failures import MAX_MESSAGES as MOST_KEPT
from mlxq.files.failures import Failures
from mlxq.files.tally import Summary, Tally
from mlxq.queue.client import Client


def mlxq(*arguments: str | Path, **options: Any) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], prog_name="mlxq", **options)


def write(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


MIXED = [
    '{"id": "a", "prompt": "x"}',
    *['{"prompt": "x", "temprature": 0}'] * 5,
    '{"prompt": "x", "top_p": 2}',
    "{oops",
    *(f'{{"prompt": "x", "strange_{i}": 0}}' for i in range(6)),
]


# --- What failed ----------------------------------------------------------------------------------------------


def test_a_run_that_failed_says_why_where_and_how_often(redis_url: str, tmp_path: Path) -> None:
    file, out = write(tmp_path / "in.jsonl", *MIXED), tmp_path / "out.jsonl"
    with FakeWorker(redis_url):
        result = mlxq("run", "-i", file, "-o", out, "--workers", "0", "--url", redis_url)
    assert result.exit_code == 1
    said = result.stderr[result.stderr.index("What failed") :].splitlines()
    first = (
        "  5 x unknown_field: unknown field temprature; did you mean temperature? (line 2, line 3, line 4 and 2 more)"
    )
    assert said[1] == first
    assert said[2].startswith("  1 x out_of_range: top_p must be")
    assert said[3].startswith("  1 x invalid_json: ")
    assert said[3].endswith("(line 8)")
    assert said[6] == "  and 4 more, with 4 other messages"
    assert said[7] == f"What was wrong with each of them is in {tmp_path / 'out.errors.jsonl'}."


def test_collect_says_why_and_which_requests(redis_url: str, tmp_path: Path) -> None:
    def fail(request: Request, job_id: str) -> dict[str, Any]:
        line = echo(request, job_id)
        return {**line, "response": None, "error": {"code": "worker_crashed", "message": "it\x1b[2J died\nagain"}}

    with FakeWorker(redis_url, fail):
        Client(redis_url).submit([{"id": name, "prompt": "x"} for name in "abcd"], "b1").wait(DEADLINE_S)
    result = mlxq("collect", "b1", "-o", tmp_path / "out.jsonl", "--url", redis_url)
    [line] = [line for line in result.stderr.splitlines() if "worker_crashed" in line]
    assert line == ("  4 x worker_crashed: it\\x1b[2J died\\nagain (request a, request b, request c and 1 more)"), (
        "what a terminal would act on is shown"
    )


def test_enqueue_names_a_handful_of_lines_and_counts_the_others(redis_url: str, tmp_path: Path) -> None:
    file = write(tmp_path / "in.jsonl", '{"prompt": "x"}', *['{"prompt": 7}'] * 500, "{oops")
    result = mlxq("enqueue", "-i", file, "--batch-id", "b1", "--url", redis_url)
    lines = result.stderr.splitlines()
    assert result.exit_code == 1
    assert [line.partition(":")[0] for line in lines[:5]] == [f"line {number}" for number in range(2, 7)]
    assert lines[5] == "and 496 lines more:"
    assert lines[6].startswith("  495 x invalid_type: prompt must be")
    assert "(line 7, line 8, line 9 and 492 more)" in lines[6]
    assert lines[-1] == "1 request enqueued, 501 lines refused"
    assert len(lines) < 12


def test_any_number_of_messages_takes_bounded_memory_and_is_counted() -> None:
    failures = Failures()
    for number in range(3 * MOST_KEPT):
        failures.add("code", f"message {number}", f"line {number}")
    found = failures.most_common()
    assert (found[0].message, found[0].count) == ("", 2 * MOST_KEPT)
    assert sum(failure.count for failure in found) == 3 * MOST_KEPT


def test_a_long_message_is_shortened_and_all_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    failures = Failures()
    for number in range(MAX_MESSAGES + 2):
        failures.add("code", "x" * 1000 + str(number), "line 1")
    print_failures(failures.most_common())
    said = capsys.readouterr().err
    assert max(map(len, said.splitlines())) < 400
    assert said.endswith("  and 2 more, with 2 other messages\n")


def test_fields_that_were_dropped_are_counted_and_named(redis_url: str, tmp_path: Path) -> None:
    lines = ['{"prompt": "x", "odd": 1}', '{"prompt": "x", "odd": 2, "service_tier": "flex"}', '{"prompt": "x"}']
    file = write(tmp_path / "in.jsonl", *lines)
    arguments = ["-i", file, "--allow-unknown-params", "--url", redis_url]
    with FakeWorker(redis_url):
        ran = mlxq("run", *arguments, "-o", tmp_path / "out.jsonl", "--workers", "0")
        enqueued = mlxq("enqueue", *arguments)
    for result in (ran, enqueued):
        assert "Fields that were dropped, and of how many requests: odd (2), service_tier (1)." in result.stderr


def summary(**values: Any) -> Summary:
    defaults = {"skipped": 0, "succeeded": 2, "failed": 0, "prompt_tokens": 1, "completion_tokens": 9, "seconds": 3.0}
    return Summary(**{"error_codes": (), "stops": (), **defaults, **values})


def test_parts_of_answers_are_counted_apart_and_are_no_success() -> None:
    in_part = summary(cut=32, cancelled=1)
    assert headline(in_part).startswith("2 answered, 0 failed, 32 answered in part, 1 cancelled in 3 s")
    assert [exit_code(summary(**{name: 1})) for name in ("cut", "cancelled", "failed", "changed")] == [1, 1, 1, 0]


@pytest.mark.parametrize("kind", ["deadline", "cancelled", "error"])
def test_a_run_with_parts_of_answers_exits_with_1_and_says_what_becomes_of_them(
    redis_url: str, tmp_path: Path, kind: str
) -> None:
    def cut(request: Request, job_id: str) -> dict[str, Any]:
        line = echo(request, job_id)
        line["response"]["body"]["choices"][0]["stop_details"] = {"type": kind}
        return line

    file = write(tmp_path / "in.jsonl", '{"prompt": "x"}')
    arguments = ["run", "-i", file, "-o", tmp_path / "out.jsonl", "--workers", "0", "--url", redis_url]
    with FakeWorker(redis_url, cut):
        first = mlxq(*arguments)
    with FakeWorker(redis_url):
        again = mlxq(*arguments)
    assert (first.exit_code, again.exit_code) == (1, 0)
    assert CUT_HINT in first.stderr
    assert CUT_HINT not in again.stderr


def test_requests_that_changed_are_told(redis_url: str, tmp_path: Path) -> None:
    file = write(tmp_path / "in.jsonl", *(f'{{"id": "r{i}", "prompt": "x"}}' for i in range(20)))
    arguments = ["run", "-i", file, "-o", tmp_path / "out.jsonl", "--workers", "0", "--url", redis_url]
    with FakeWorker(redis_url):
        mlxq(*arguments)
        changed = mlxq(*arguments, "--set", "top_p=0.9")
    assert "20 answered, 0 failed in" in changed.stderr
    assert "20 requests had an answer there, but changed since, or the settings did." in changed.stderr


def test_a_prompt_whose_answer_was_cut_off_is_printed_and_exits_with_1(redis_url: str) -> None:
    def cut(request: Request, job_id: str) -> dict[str, Any]:
        line = echo(request, job_id)
        line["response"]["body"]["choices"][0]["stop_details"] = {"type": "deadline"}
        return line

    with FakeWorker(redis_url, cut):
        result = mlxq("enqueue", "--prompt", "Say hello", "--wait", "--url", redis_url)
    assert (result.exit_code, result.stdout) == (1, "Say hello\n")
    assert "not whole" in result.stderr


# --- Options --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["-i", "a", "-i", "b", "-i", "a", "-o", "out"], "a file is given twice"),
        (["-i", "a", "-o", "out", "-o", "other"], "it can be given once"),
        (["-i", "a", "-o", "out", "--error-file", "e", "--error-file", "f"], "it can be given once"),
    ],
)
def test_a_file_option_that_is_given_twice_is_an_error_and_says_what_to_do(given: list[str], said: str) -> None:
    result = mlxq("run", *given)
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.split())


def test_an_input_in_a_variable_may_have_a_colon_and_a_blank(redis_url: str, tmp_path: Path) -> None:
    file = write(tmp_path / "a:b c.jsonl", '{"prompt": "x"}')
    result = mlxq("enqueue", "--url", redis_url, env={"MLXQ_INPUT": str(file)})
    assert result.exit_code == 0, result.stderr


@pytest.mark.parametrize("batch_id", ["", "-x", "--y"])
def test_a_batch_id_that_is_empty_or_looks_like_an_option_is_refused(redis_url: str, batch_id: str) -> None:
    result = mlxq("enqueue", f"--batch-id={batch_id}", "--prompt", "x", "--url", redis_url)
    assert result.exit_code == 2
    assert "must be 1 to 100 letters" in result.stderr
    assert Client(redis_url).batch_ids() == []


@pytest.mark.parametrize("command", ["status", "collect", "cancel", "delete"])
def test_an_empty_batch_id_names_no_batch(redis_url: str, tmp_path: Path, command: str) -> None:
    more = ["-o", tmp_path / "out.jsonl"] if command == "collect" else []
    result = mlxq(command, "", *more, "--url", redis_url)
    assert result.exit_code == 1
    assert re.search(r"there is no batch (or job )?''", result.stderr)


def test_text_can_come_from_standard_input(redis_url: str) -> None:
    text = "What is a cat?\nWhat is a dog?\n{third}\n"
    result = mlxq("enqueue", "-i", "-", "--format", "text", "--batch-id", "b1", "--url", redis_url, input=text)
    assert result.exit_code == 0, result.stderr
    assert Client(redis_url).batch("b1").counts().total == 3


def test_a_batch_is_deleted_once_it_is_done(redis_url: str) -> None:
    Client(redis_url).submit(["x"], "b1")
    early = mlxq("delete", "b1", "--url", redis_url)
    with FakeWorker(redis_url):
        Client(redis_url).batch("b1").wait(DEADLINE_S)
    cancelled = mlxq("cancel", "b1", "--url", redis_url)
    listed = mlxq("status", "b1", "--url", redis_url)
    deleted, again = mlxq("delete", "b1", "--url", redis_url), mlxq("delete", "b1", "--url", redis_url)
    assert (early.exit_code, "cancel it first" in early.stderr) == (1, True)
    assert (cancelled.exit_code, cancelled.stderr) == (0, "batch b1 was done already, and stays so\n")
    assert "batch b1: done" in listed.stdout
    assert (deleted.exit_code, again.exit_code) == (0, 1)
    assert Client(redis_url).batch_ids() == []


# --- Terminals ------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("term", "columns", "kind"),
    [("xterm", "80", Bar), ("xterm", "40", Bar), ("xterm", "20", Log), ("dumb", "80", Log), ("unknown", "80", Log)],
)
def test_the_display_suits_the_terminal(
    monkeypatch: pytest.MonkeyPatch, term: str, columns: str, kind: type[Bar | Log]
) -> None:
    monkeypatch.setenv("TERM", term)
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setattr("sys.stderr", Terminal())
    assert type(progress(100)) is kind


@pytest.mark.parametrize("columns", [30, 40, 80, 200])
def test_the_bar_keeps_to_one_line_of_the_terminal(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr("sys.stderr", terminal)
    tally = Tally(succeeded=50_000, failed=300, cut=7, num_inflight=4096, completion_tokens=1_000_000)
    with Bar(100_000) as bar:
        bar.update(tally, lambda: "waiting for Redis")
    frames = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue()).replace("\r", "\n").split("\n")
    drawn = [frame.rstrip() for frame in frames if frame.strip()]
    assert drawn
    assert max(map(len, drawn)) <= columns
    assert any("50,307" in frame or "50307" in frame for frame in drawn)


def test_validating_lists_every_bad_line_and_runs_nothing(tmp_path: Path) -> None:
    # given
    first = write(tmp_path / "a.csv", "id,prompt,top_p\na,x,\nb,y,7\nc\n")
    second = write(tmp_path / "b.jsonl", '{"id": "a", "prompt": "x"}\n{"id": "d", "prompt": "\x1b[31m", "promt": 1}\n')

    # when
    result = mlxq("run", "-i", first, "-i", second, "--validate-only")

    # then
    assert result.exit_code == 1
    assert [line.partition(":")[0] for line in result.stdout.splitlines()] == [
        *("line 3 of a.csv", "line 4 of a.csv", "line 1 of b.jsonl", "line 2 of b.jsonl")
    ]
    assert "top_p" in result.stdout
    assert result.stderr == "1 request can be used, 4 lines can not.\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "b.jsonl"]


def test_validating_an_input_without_faults_is_fine(tmp_path: Path) -> None:
    file = write(tmp_path / "in.jsonl", '{"prompt": "x"}\n{"prompt": "x"}\n')
    result = mlxq("run", "-i", file, "--validate-only")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "2 requests can be used, 0 lines can not.\n")


def test_a_pattern_of_names_is_all_files_that_match_in_order(tmp_path: Path) -> None:
    for name in ("part-2.txt", "part-1.txt", "other.txt"):
        write(tmp_path / name, "")
    result = mlxq("run", "-i", tmp_path / "part-*.txt", "-i", tmp_path / "part-1.txt", "--validate-only")
    assert "a file is given twice" in result.stderr
    write(tmp_path / "part-[1].txt", "x\n")  # a file of that very name comes before what it matches
    assert mlxq("run", "-i", tmp_path / "part-[1].txt", "--validate-only").stderr.startswith("1 request ")
    assert "no file matches" in mlxq("run", "-i", tmp_path / "*.csv", "--validate-only").stderr


def test_the_options_of_single_fields_lie_under_every_request(redis_url: str, tmp_path: Path) -> None:
    template = write(tmp_path / "prompt.jinja", "Say {{ word }}")
    table = write(tmp_path / "in.csv", "word", "hello")
    given = ["--max-tokens", "3", "--temperature", "0", "--top-p", "0.5", "--seed", "7", "--stop", "a", "--stop", "b"]
    done = mlxq("enqueue", "-i", table, "--template", template, "--system", "Be kind.", *given, "--url", redis_url)
    [job_id] = Client(redis_url).batch(done.stdout.strip()).job_ids()
    [payload] = Job.fetch(job_id, redis_at(redis_url), "json").args
    assert payload["body"] == {
        "max_tokens": 3,
        "temperature": 0.0,
        "top_p": 0.5,
        "seed": 7,
        "stop": ["a", "b"],
        "messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Say hello"}],
    }


def test_two_ways_to_make_the_prompt_are_an_error() -> None:
    result = mlxq("run", "-i", "in.csv", "-o", "out", "--prompt-column", "a", "--template", "{{ a }}")
    assert result.exit_code == 2
    assert "give one of --prompt-column, --messages-column and --template" in " ".join(result.stderr.split())
