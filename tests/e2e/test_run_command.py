"""`mlxq run` as a user calls it: a file of mixed requests in, every line answered or refused exactly once."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.support.batch_files import Line, choice, demo_examples, read_lines, requests, text_of, write_lines
from tests.support.processes import MLXQ, ended, run, running
from tests.support.waiting import wait_until

from mlxq.results.read_back import calls_of
from mlxq_worker.demo.tasks import Example

EXAMPLES = demo_examples(64)
GOOD = requests(EXAMPLES)
HALF = len(GOOD) // 2
PRIMARY_EOS = "<|eot_id|>"

USER = {"role": "user", "content": "Which time is it?"}
CLOCK = {"type": "function", "function": {"name": "clock"}}
OTHER_TOOL = {"type": "function", "function": {"name": "calendar"}}


@dataclass(frozen=True, slots=True)
class Bad:
    """A line that is refused: the custom id, the field and the code that its error has."""

    line: Line | str
    custom_id: str
    param: str | None
    code: str


BAD = (
    Bad('{"custom_id": "half a line", "prompt": "Coun', f"line-{HALF + 1}", None, "invalid_json"),
    Bad({"id": "long", "prompt": "word " * 1100}, "long", "prompt", "context_length_exceeded"),
    Bad({"id": "unknown", "prompt": "a", "temprature": 0}, "unknown", "temprature", "unknown_field"),
    Bad({"id": "no such id", "prompt": [1, 1705]}, "no such id", "prompt", "out_of_range"),
    Bad({"id": "no stop id", "prompt": "a", "stop_token_ids": [1705]}, "no stop id", "stop_token_ids", "out_of_range"),
    Bad({"id": "chat-0", "prompt": "a"}, "chat-0", "custom_id", "duplicate_custom_id"),
    Bad({"id": "empty", "prompt": ""}, "empty", "prompt", "out_of_range"),
    Bad({"id": "cold", "prompt": "a", "temperature": -1}, "cold", "temperature", "out_of_range"),
    Bad({"id": "no choice", "prompt": "a", "top_p": 0}, "no choice", "top_p", "out_of_range"),
    Bad({"id": "no answers", "prompt": "a", "n": 0}, "no answers", "n", "out_of_range"),
    Bad({"id": "no bias id", "prompt": "a", "logit_bias": {"1705": 1}}, "no bias id", "logit_bias", "out_of_range"),
    Bad(
        {"id": "no schema", "prompt": "a", "structured_outputs": {"json": {"type": "objekt"}}},
        "no schema",
        "structured_outputs.json",
        "invalid_schema",
    ),
    Bad(
        {"id": "no regex", "prompt": "a", "structured_outputs": {"regex": "(a"}},
        "no regex",
        "structured_outputs.regex",
        "invalid_regex",
    ),
    Bad(
        {"id": "no tool", "messages": [USER], "tools": [CLOCK], "tool_choice": OTHER_TOOL},
        "no tool",
        "tool_choice.function.name",
        "unknown_tool",
    ),
)


@dataclass(frozen=True, slots=True)
class Files:
    """The files of a run, and the run."""

    directory: Path

    @property
    def input(self) -> Path:
        return self.directory / "in.jsonl"

    @property
    def output(self) -> Path:
        return self.directory / "out.jsonl"

    @property
    def errors(self) -> Path:
        return self.directory / "out.errors.jsonl"

    def command(self, *options: str) -> tuple[str, ...]:
        return (*MLXQ, "run", "-i", str(self.input), "-o", str(self.output), *options)

    def run(self, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
        done = run(*self.command(*options), **variables)
        assert "Traceback" not in done.stderr
        return done


@dataclass(frozen=True, slots=True)
class Done:
    """A run that is over: its files and how it ended."""

    files: Files
    process: subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """A run over good lines with bad ones between them; not to be changed."""
    files = Files(tmp_path_factory.mktemp("mixed"))
    write_lines(files.input, [*GOOD[:HALF], *(bad.line for bad in BAD), *GOOD[HALF:]])
    return Done(files, files.run())


@pytest.fixture
def answered(mixed: Done, tmp_path: Path) -> Files:
    """A copy of what that run left, with the good lines alone as the input."""
    files = Files(Path(shutil.copytree(mixed.files.directory, tmp_path / "copy")))
    write_lines(files.input, GOOD)
    return files


def count_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def is_right(line: Line, example: Example) -> bool:
    return (
        text_of(line) == example.expected_text and choice(line)["stop_details"]["token"] == example.expected_end_token
    )


# --- One run --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_good_line_is_answered_once_and_the_run_says_that_some_failed(mixed: Done) -> None:
    answers = read_lines(mixed.files.output)

    assert mixed.process.returncode == 1
    assert f"{len(GOOD)} answered, {len(BAD)} failed in" in mixed.process.stderr
    assert f"What was wrong with each of them is in {mixed.files.errors}." in mixed.process.stderr
    assert answers.keys() == EXAMPLES.keys()
    assert sum(is_right(answers[name], example) for name, example in EXAMPLES.items()) >= 0.95 * len(EXAMPLES)


@pytest.mark.slow
def test_every_answer_says_which_of_the_three_end_tokens_ended_it(mixed: Done) -> None:
    answers = read_lines(mixed.files.output).values()

    for line in answers:
        body, stop = line["response"]["body"], choice(line)["stop_details"]
        assert stop == {
            "type": "eos_token",
            "token_id": stop["token_id"],
            "token": {end["id"]: end["token"] for end in body["mlxq"]["eos"]}[stop["token_id"]],
            "string": None,
            "token_index": body["usage"]["completion_tokens"] - 1,
        }
        assert choice(line)["finish_reason"] == ("tool_calls" if calls_of(choice(line)) else "stop")
        assert choice(line)["stop_reason"] == (None if stop["token"] == PRIMARY_EOS else stop["token_id"])
    ends = Counter(choice(line)["stop_details"]["token"] for line in answers)
    assert ends.keys() == {"<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"}


@pytest.mark.slow
@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.custom_id)
def test_every_bad_line_gets_one_error_that_names_the_field(mixed: Done, bad: Bad) -> None:
    errors = read_lines(mixed.files.errors)

    assert len(errors) == len(BAD)
    assert errors[bad.custom_id]["response"]["status_code"] == 400
    assert errors[bad.custom_id]["error"] is None
    error = errors[bad.custom_id]["response"]["body"]["error"]
    assert (error["param"], error["code"]) == (bad.param, bad.code)
    assert bad.param is None or bad.param in error["message"]


# --- Runs after it --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_rerun_answers_nothing_again_and_refuses_again(mixed: Done, answered: Files) -> None:
    shutil.copy(mixed.files.input, answered.input)

    again = answered.run()

    assert again.returncode == 1
    assert f"0 answered, {len(BAD)} failed, {len(GOOD)} already there in" in again.stderr
    assert answered.output.read_bytes() == mixed.files.output.read_bytes()
    assert read_lines(answered.errors).keys() == {bad.custom_id for bad in BAD}


@pytest.mark.slow
def test_a_changed_line_is_answered_again_and_no_other(mixed: Done, answered: Files) -> None:
    changed = {**GOOD[2], "body": {**GOOD[2]["body"], "max_tokens": 3}}
    write_lines(answered.input, [changed if line is GOOD[2] else line for line in GOOD])

    again = answered.run()

    before, after = read_lines(mixed.files.output), read_lines(answered.output)
    assert again.returncode == 0
    assert f"1 answered, 0 failed, {len(GOOD) - 1} already there in" in again.stderr
    assert choice(after.pop("count-2"))["finish_reason"] == "length"
    assert choice(before.pop("count-2"))["finish_reason"] == "stop"
    assert after == before
    of_others = {bad.custom_id for bad in BAD} - {line["custom_id"] for line in GOOD}
    assert read_lines(answered.errors).keys() == of_others
    assert f"The error file also holds {len(of_others)} failures of other requests." in again.stderr


@pytest.mark.slow
def test_ordered_puts_the_answers_into_the_order_of_the_input(mixed: Done, answered: Files) -> None:
    again = answered.run("--ordered")

    before, after = read_lines(mixed.files.output), read_lines(answered.output)
    assert again.returncode == 0
    assert f"0 answered, 0 failed, {len(GOOD)} already there in" in again.stderr
    assert list(before) != list(EXAMPLES)
    assert list(after) == list(EXAMPLES)
    assert after == before


@pytest.mark.slow
def test_ctrl_c_keeps_what_has_ended_and_a_rerun_does_the_rest(tmp_path: Path) -> None:
    files = Files(tmp_path)
    write_lines(files.input, GOOD)

    with running(*files.command("--max-num-seqs", "2")) as process:
        wait_until(lambda: count_lines(files.output) >= 3, "the first answers")
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does it
        output = ended(process)
    before = read_lines(files.output)
    again = files.run()

    assert process.returncode == -signal.SIGINT, "so that a loop of the shell ends, too"
    assert "Interrupted. Run the same command again" in output
    assert "Traceback" not in output
    assert 3 <= len(before) < len(GOOD)
    assert {choice(line)["stop_details"]["type"] for line in before.values()} == {"eos_token"}
    assert again.returncode == 0
    assert f"{len(GOOD) - len(before)} answered, 0 failed, {len(before)} already there in" in again.stderr
    after = read_lines(files.output)
    assert after.keys() == EXAMPLES.keys()
    assert {name: after[name] for name in before} == before


# --- Without a run to build on --------------------------------------------------------------------------------


@pytest.mark.slow
def test_no_redis_server_is_needed(tmp_path: Path) -> None:
    files = Files(tmp_path)
    write_lines(files.input, GOOD[:8])
    (tmp_path / "bin").mkdir()

    done = files.run("--ordered", PATH=str(tmp_path / "bin"))

    assert done.returncode == 0, done.stderr
    answers = read_lines(files.output)
    assert list(answers) == list(EXAMPLES)[:8]
    assert all(is_right(line, EXAMPLES[name]) for name, line in answers.items())


def test_a_missing_input_is_one_line_and_empties_no_file(tmp_path: Path) -> None:
    files = Files(tmp_path)
    write_lines(files.output, ['{"custom_id": "from before"}'])
    write_lines(files.errors, ['{"custom_id": "failed before"}'])

    done = files.run("--no-resume")

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"Error: can't read {files.input}: No such file or directory\n"
    assert read_lines(files.output).keys() == {"from before"}
    assert read_lines(files.errors).keys() == {"failed before"}


def test_an_output_that_is_the_input_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    files = Files(tmp_path)
    write_lines(files.input, GOOD)
    files.output.symlink_to(files.input)

    done = files.run("--no-resume")

    assert done.returncode == 2
    assert done.stderr == f"Error: --input and --output are the same file: {files.input}\n"
    assert count_lines(files.input) == len(GOOD)
