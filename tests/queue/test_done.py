"""What counts as done: which lines a rerun keeps and which it replaces, and what counts and error file say then."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support.fake_worker import FakeWorker, echo, refuse
from tests.support.file_runs import Files, go_on, prompt, run
from tests.support.waiting import DEADLINE_S

from mlxq.contract import Request
from mlxq.errors import ConfigError
from mlxq.files.collection import collect
from mlxq.files.input import read_requests
from mlxq.files.output.retry import Retry
from mlxq.files.output.same_model import Expected
from mlxq.files.output.stored import read_lines
from mlxq.files.paths import source_name
from mlxq.queue.client import Client
from mlxq.requests.normal_form import spelled_hash
from mlxq.requests.openai import ParsedLine
from mlxq.results.read_back import texts_of

Line = dict[str, Any]

PARTS: dict[str, Line] = {
    "cancelled": {"finish_reason": "length", "stop_reason": "abort", "stop_details": {"type": "cancelled"}},
    "timed out": {"finish_reason": "length", "stop_reason": "abort", "stop_details": {"type": "deadline"}},
    "of an earlier mlxq": {"finish_reason": "abort", "stop_details": {"type": "deadline"}},
    "of vLLM": {"finish_reason": "abort", "stop_details": None},
    "with a dead row": {"finish_reason": "length", "stop_reason": "error", "stop_details": {"type": "error"}},
}
"""How the choice of an answer ends that is there in part only."""


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def cutting(part: Line, *custom_ids: str) -> Callable[[Request, str], Line]:
    """Answers these requests in part, and all others whole."""

    def answer(request: Request, job_id: str) -> Line:
        line = echo(request, job_id)
        if request.custom_id in custom_ids:
            line["response"]["body"]["choices"][0] |= {"text": "cut", **part}
        return line

    return answer


def texts(files: Files) -> dict[str, str]:
    lines = (json.loads(line) for line in files.output.read_text().splitlines())
    return {line["custom_id"]: line["response"]["body"]["choices"][0]["text"] for line in lines}


# --- Answers that were cut off --------------------------------------------------------------------------------


@pytest.mark.parametrize("part", PARTS)
def test_a_rerun_replaces_the_answers_that_were_cut_off_and_no_others(redis_url: str, files: Files, part: str) -> None:
    # given a run of which two of four answers are there in part
    files.write_numbered(4)
    with FakeWorker(redis_url, cutting(PARTS[part], "r1", "r2")):
        first = run(redis_url, files)
    before = texts(files)

    # when it is run again, and once more
    with FakeWorker(redis_url) as worker:
        second = run(redis_url, files)
        third = run(redis_url, files)

    # then
    assert before == {"r0": "Say hello", "r1": "cut", "r2": "cut", "r3": "Say hello"}
    assert (first.succeeded, first.cut + first.cancelled, first.failed) == (2, 2, 0)
    assert sorted(worker.custom_ids) == ["r1", "r2"]
    assert (second.succeeded, second.skipped, second.cut, second.changed) == (2, 2, 0, 0)
    assert (third.succeeded, third.skipped) == (0, 4)
    assert texts(files) == {f"r{i}": "Say hello" for i in range(4)}
    assert len(files.answers()) == 4


@pytest.mark.parametrize("part", PARTS)
def test_collecting_a_whole_answer_replaces_the_part_of_one_and_never_the_other_way_round(
    redis_url: str, files: Files, part: str
) -> None:
    files.write_numbered(3)
    requests = [line for line in read_requests(files.input) if isinstance(line, ParsedLine)]
    client = Client(redis_url)
    with FakeWorker(redis_url, cutting(PARTS[part], "r1")):
        client.submit(requests, "in-part").wait(DEADLINE_S)
    with FakeWorker(redis_url):
        client.submit(requests, "whole").wait(DEADLINE_S)

    summaries = [
        collect(client.batch(name), files.output, files.errors, on_turn=go_on)
        for name in ("in-part", "whole", "in-part", "whole")
    ]

    assert [(s.succeeded, s.cut + s.cancelled, s.skipped) for s in summaries] == [
        (2, 1, 0),
        (1, 0, 2),
        (0, 0, 3),
        (0, 0, 3),
    ]
    assert texts(files) == {f"r{i}": "Say hello" for i in range(3)}


def test_a_failure_takes_the_place_of_a_part_and_an_answer_that_of_the_failure(redis_url: str, files: Files) -> None:
    files.write_numbered(1)
    found = []
    for answer in (cutting(PARTS["timed out"], "r0"), refuse, echo):
        with FakeWorker(redis_url, answer):
            run(redis_url, files)
        found.append((files.answers(), files.failures()))
    assert found == [(["r0"], []), ([], ["r0"]), (["r0"], [])]


# --- The same request -----------------------------------------------------------------------------------------

SAME = {
    "numbers": ({"temperature": 0, "top_p": 1}, {"temperature": 0.0, "top_p": 1.0}),
    "the name of the limit": ({"max_tokens": 5}, {"max_completion_tokens": 5.0}),
    "the model's label": ({"model": "gpt-4o"}, {"model": "other"}),
    "labels": ({"user": "a", "metadata": {"run": "1"}}, {"user": "b"}),
    "defaults": ({}, {"n": 1, "temperature": 1, "stop": [], "logprobs": False, "seed": -1, "top_k": -1}),
    "a stop string alone": ({"stop": "x"}, {"stop": ["x"]}),
    "neutral values": ({}, {"stream": False, "response_format": {"type": "text"}, "use_beam_search": False}),
    "one schema": (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"minimum": 1.0}}}},
        {"structured_outputs": {"json": {"minimum": 1}}},
    ),
    "the order": ({"seed": 1, "top_k": 2}, {"top_k": 2, "seed": 1}),
    "a list of one prompt": ({}, {"prompt": ["Say hello"]}),
}
OTHER = {
    "the prompt": ({}, {"prompt": "Say hello "}),
    "greedy": ({}, {"temperature": 0}),
    "log probabilities of the tokens alone": ({}, {"logprobs": 0}),
    "a limit": ({"max_tokens": 5}, {"max_completion_tokens": 6}),
    "the stop string": ({"stop": "x"}, {"stop": ["y"]}),
    "the form": ({"structured_outputs": {"regex": "a"}}, {"structured_outputs": {"choice": ["a"]}}),
}


def run_twice(url: str, files: Files, first: Line, second: Line) -> Any:
    with FakeWorker(url):
        for body in (first, second):
            files.write_input({"custom_id": "r0", "prompt": "Say hello", **body})
            summary = run(url, files)
    return summary


@pytest.mark.parametrize("what", SAME)
def test_a_request_that_is_spelled_otherwise_is_the_same(redis_url: str, files: Files, what: str) -> None:
    for first, second in (SAME[what], SAME[what][::-1]):
        summary = run_twice(redis_url, files, first, second)
        assert (summary.skipped, summary.changed) == (1, 0)
        files.output.unlink()


@pytest.mark.parametrize("what", OTHER)
def test_a_request_that_asks_for_something_else_is_answered_again_and_counted(
    redis_url: str, files: Files, what: str
) -> None:
    summary = run_twice(redis_url, files, *OTHER[what])
    assert (summary.succeeded, summary.skipped, summary.changed) == (1, 0, 1)


def test_settings_for_all_requests_count_as_said_by_each(redis_url: str, files: Files) -> None:
    files.write_numbered(2)
    changed = []
    with FakeWorker(redis_url):
        for top_p in (None, 0.9, 0.9, 1.0):
            lines = read_requests(files.input, defaults={} if top_p is None else {"top_p": top_p})
            changed.append(run(redis_url, files, lines=lines).changed)
    assert changed == [0, 2, 0, 2]


def test_an_answer_that_kept_to_another_default_limit_is_to_something_else(redis_url: str, files: Files) -> None:
    # given a request without a limit of its own, one with, and workers with one limit after the other
    files.write_input(prompt("open"), {**prompt("limited"), "max_tokens": 7})
    limits = iter([100, 200])

    def limited(limit: int) -> Callable[[Request, str], Line]:
        def answer(request: Request, job_id: str) -> Line:
            line = echo(request, job_id)
            if request.sampling.max_tokens is None:
                line["response"]["body"]["mlxq"]["default_max_tokens"] = limit
            return line

        return answer

    # when
    summaries = []
    for limit in (100, 200, 200, None):
        with FakeWorker(redis_url, limited(next(limits, 200))):
            summaries.append(run(redis_url, files, default_max_tokens=limit))

    # then
    assert [(s.succeeded, s.skipped, s.changed) for s in summaries] == [(2, 0, 0), (1, 1, 1), (0, 2, 0), (0, 2, 0)]


def test_answers_of_an_earlier_release_are_known_by_how_their_requests_were_spelled(
    redis_url: str, files: Files
) -> None:
    # given a file whose lines have the hashes of mlxq 0.1
    files.write_input(*({**prompt(f"r{i}"), "temperature": 0.0, "max_completion_tokens": 9} for i in range(3)))

    def as_before(request: Request, job_id: str) -> Line:
        line = echo(request, job_id)
        body = {"prompt": "Say hello", "temperature": 0.0, "max_completion_tokens": 9}
        line["response"]["body"]["mlxq"]["content_hash"] = spelled_hash("/v1/completions", body)
        return line

    with FakeWorker(redis_url, as_before):
        run(redis_url, files)

    # when, then
    with FakeWorker(redis_url) as worker:
        again = run(redis_url, files)
    assert (again.skipped, worker.custom_ids) == (3, [])


# --- What is wrong now ----------------------------------------------------------------------------------------


def test_after_a_run_over_the_same_input_the_error_file_says_what_is_wrong_now(redis_url: str, files: Files) -> None:
    # given an input with a line that is no JSON, a bad id, a bad field, and a request that fails
    files.write_input("{oops", {"custom_id": True, "prompt": "x"}, {**prompt("bad"), "temprature": 0}, prompt("fails"))
    with FakeWorker(redis_url, refuse):
        first = run(redis_url, files, source=source_name(files.input))
    before = files.failures()

    # when the lines are repaired: with ids of their own, one of them removed, one still wrong
    files.write_input(prompt("a"), prompt("b"), {**prompt("bad"), "top_p": 7})
    with FakeWorker(redis_url):
        second = run(redis_url, files, source=source_name(files.input))

    # then
    assert first.failed == 4
    assert sorted(before) == ["bad", "fails", "line-1", "line-2"]
    assert files.failures() == ["bad"]
    assert (second.succeeded, second.failed, second.unasked_failures) == (2, 1, 0)


def test_a_run_over_another_input_or_one_that_is_interrupted_leaves_old_failures(
    redis_url: str, files: Files, tmp_path: Path
) -> None:
    files.write_input("{oops", prompt("a"))
    with FakeWorker(redis_url):
        run(redis_url, files, source=source_name(files.input))
        other = Files(tmp_path / "elsewhere")
        other.input.parent.mkdir()
        other.write_input(prompt("b"))
        files.write_input(prompt("a"), prompt("c"))
        stopped = run(redis_url, files, source=source_name(files.input), on_turn=lambda _: False)
        elsewhere = run(redis_url, files, source=source_name(other.input))
    assert (stopped.interrupted, elsewhere.unasked_failures) == (True, 1)
    assert files.failures() == ["line-1"]


def test_the_name_of_an_input_is_one_files_and_tells_no_place(tmp_path: Path) -> None:
    paths = [tmp_path / "a" / "in.jsonl", tmp_path / "b" / "in.jsonl"]
    for path in paths:
        path.parent.mkdir()
        path.touch()
    names = {source_name(path) for path in paths}
    assert len(names) == 2
    assert all(name and name.startswith("in.jsonl-") and "/" not in name for name in names)
    assert [source_name("-"), source_name("/dev/null")] == [None, None]


# --- Asked again ----------------------------------------------------------------------------------------------


def ends_on_another_token(request: Request, job_id: str) -> Line:
    line = echo(request, job_id)
    line["response"]["body"]["mlxq"]["eos"] = [{"id": 3, "token": "<END>"}]
    return line


def up_to_its_limit(request: Request, job_id: str) -> dict[str, Any]:
    """Says which limit it had, and hit it unless that is 8 or more."""
    line = echo(request, job_id)
    limit = request.sampling.max_tokens
    choice = line["response"]["body"]["choices"][0]
    choice["text"] = f"limit {limit}"
    if limit is not None and limit < 8:
        choice["finish_reason"], choice["stop_details"]["type"] = "length", "max_tokens"
    return line


def test_answers_that_hit_their_limit_are_asked_for_again_with_a_larger_one_until_it_is_enough(
    redis_url: str, files: Files
) -> None:
    # given
    files.write_input({**prompt("short"), "max_completion_tokens": 3}, {**prompt("fine"), "max_tokens": 9}, prompt("b"))
    twice = Retry.read((), "2x:7")
    with FakeWorker(redis_url, up_to_its_limit) as worker:
        run(redis_url, files)

        # when
        retried = [run(redis_url, files, retry=retry) for retry in (None, twice, twice, twice, Retry.read((), "3x"))]

    # then each try goes on from the last one's limit: 6, then 7, which is all there may be, and at last 21
    assert [(summary.retried, summary.changed, summary.skipped) for summary in retried] == [
        (0, 0, 3),
        (1, 0, 2),
        (1, 0, 2),
        (0, 0, 3),
        (1, 0, 2),
    ]
    assert worker.custom_ids[3:] == ["short"] * 3
    [line] = [line for line in read_lines(files.output) if line["custom_id"] == "short"]
    assert texts_of(line) == ("limit 21",)
    assert sorted(files.answers()) == ["b", "fine", "short"]
    # and it is an answer to the request as it is
    assert run(redis_url, files).skipped == 3


def test_answers_are_asked_for_again_by_how_they_ended(redis_url: str, files: Files) -> None:
    files.write_input({**prompt("short"), "max_tokens": 3}, prompt("whole"))
    with FakeWorker(redis_url, up_to_its_limit) as worker:
        run(redis_url, files)
        summary = run(redis_url, files, retry=Retry.read(("length",), None))
    assert (summary.retried, worker.custom_ids[2:]) == (1, ["short"])


@pytest.mark.parametrize("limit", ["2", "x", "1x", "0.5x", "2x:", "2x:a"])
def test_a_limit_that_is_no_larger_one_is_refused(limit: str) -> None:
    with pytest.raises(ConfigError, match="--max-tokens-on-retry is a factor above 1"):
        Retry.read((), limit)


def test_answers_of_another_model_are_not_gone_on_from_unless_that_is_wanted(redis_url: str, files: Files) -> None:
    files.write_numbered(2)
    with FakeWorker(redis_url):
        run(redis_url, files, expected=Expected("echo"))
        with pytest.raises(ConfigError, match=r"holds 2 answers by echo, not by other: .*--accept-model-change"):
            run(redis_url, files, expected=Expected("other"))
        assert run(redis_url, files).skipped == 2


def test_a_worker_elsewhere_with_other_end_tokens_is_refused_at_its_first_answer(redis_url: str, files: Files) -> None:
    # given two answers that another machine has given, and more to ask for there
    files.write_numbered(2)
    with FakeWorker(redis_url):
        run(redis_url, files)
    files.write_numbered(9)

    # when its model ends on another token from now on
    with FakeWorker(redis_url, ends_on_another_token):
        with pytest.raises(ConfigError, match=r"2 answers by echo with the end tokens 2 '<end>'; now it has 3 '<END>'"):
            run(redis_url, files, expected=Expected())
        kept = sorted(files.answers())

        # then nothing of that is in the file, and nothing is lost for who accepts it
        assert kept == ["r0", "r1"]
        assert Client(redis_url).queue_length() == 0
        assert run(redis_url, files).total == 9
    assert sorted(files.answers()) == [f"r{i}" for i in range(9)]


# --- Answers in parts ------------------------------------------------------------------------------------------

STORY = "Once upon a time there was"


def telling(request: Request, job_id: str) -> Line:
    """Tells the story, two words at a time, from where it is told to go on; a word is a token. It refuses `no`."""
    chat = request.messages is not None
    given = str(request.messages[-1]["content"]) if request.messages else str(request.prompt)
    if given.startswith("no") and given != "no":
        return refuse(request, job_id)
    goes_on = request.continue_final_message if chat else True
    told = given.removeprefix("Tell: ").split() if goes_on else []
    words = STORY.split()[len(told) : len(told) + 2]
    is_over = len(told) + 2 >= len(STORY.split())
    text = "".join(f" {word}" if told or index else word for index, word in enumerate(words))
    line = echo(request, job_id)
    body = line["response"]["body"]
    stop = {"type": "eos_token" if is_over else "max_tokens", "token_id": None, "token_index": 1}
    choice = {"finish_reason": "stop" if is_over else "length", "stop_details": stop, "index": 0}
    body["choices"] = [choice | ({"message": {"role": "assistant", "content": text}} if chat else {"text": text})]
    body["usage"] = {"prompt_tokens": 5 + len(told), "completion_tokens": 2, "total_tokens": 7 + len(told)}
    return line


def test_an_answer_that_hit_its_limit_is_gone_on_with_until_it_is_whole(redis_url: str, files: Files) -> None:
    # given a chat, one whose last message is to be gone on with, and a prompt
    asked = [{"role": "user", "content": "Tell:"}]
    files.write_input(
        {"id": "chat", "messages": asked, "max_tokens": 2},
        {"id": "begun", "messages": [*asked, {"role": "assistant", "content": ""}], "continue_final_message": True},
        {"id": "prompt", "prompt": "Tell: ", "max_tokens": 2},
    )
    go_on_with = Retry.read((), None, goes_on=True)

    # when
    with FakeWorker(redis_url, telling) as worker:
        runs = [run(redis_url, files, retry=retry) for retry in (None, None, go_on_with, go_on_with, go_on_with)]

    # then the answers are whole, say what all of it has taken, and are to the lines as they stand
    assert [(each.succeeded, each.retried, each.skipped) for each in runs] == [
        (3, 0, 0),
        (0, 0, 3),
        (3, 3, 0),
        (3, 3, 0),
        (0, 0, 3),
    ]
    assert len(worker.custom_ids) == 9
    lines = {line["custom_id"]: line["response"]["body"] for line in read_lines(files.output)}
    assert {name: texts_of({"response": {"body": body}}) for name, body in lines.items()} == dict.fromkeys(
        ("chat", "begun", "prompt"), (STORY,)
    )
    for body in lines.values():
        assert body["usage"] == {"prompt_tokens": 5, "completion_tokens": 6, "total_tokens": 11}
        assert (body["choices"][0]["finish_reason"], body["mlxq"]["parts"]) == ("stop", 3)
        assert body["choices"][0]["stop_details"] == {"type": "eos_token", "token_id": None, "token_index": 5}


def test_an_answer_that_can_be_no_part_or_gets_no_rest_stays_as_it_is(redis_url: str, files: Files) -> None:
    # given answers that hit their limit, to requests for what can't be put together, and one whose rest is refused
    lines: list[Line] = [
        {"n": 2},
        {"logprobs": 1},
        {"echo": True},
        {"return_token_ids": True},
        {"structured_outputs": {"regex": "a*"}},
        {"prompt": [1, 2]},
        {"prompt": "no"},
    ]
    files.write_input(*({"id": f"r{number}", "prompt": "Tell:", **line} for number, line in enumerate(lines)))
    with FakeWorker(redis_url, telling) as worker:
        run(redis_url, files)
        before = texts(files)
        summary = run(redis_url, files, retry=Retry.read((), None, goes_on=True))

    assert worker.custom_ids[len(lines) :] == ["r6"]
    assert (summary.skipped, summary.failed, texts(files)) == (len(lines) - 1, 1, before)
    assert files.failures() == ["r6"]


@pytest.mark.parametrize("others", [((), "2x"), (("length",), None)])
def test_going_on_from_an_answer_and_beginning_it_anew_exclude_each_other(others: Any) -> None:
    with pytest.raises(ConfigError, match="give one of them"):
        Retry.read(*others, goes_on=True)
