"""What a request asks for it gets, from a file through Redis and a worker to a file: several answers, their scores,
changed odds, loops that end. OpenAI's own types read every answer."""

from __future__ import annotations

import json
import os
import re
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion
from redis import Redis
from tests.support.batch_files import Line, choice, endless, read_lines, text_of, write_lines
from tests.support.processes import MLXQ, ended, run, running
from tests.support.queued_jobs import fetch
from tests.support.waiting import wait_until

from mlxq.queue.client import Client
from mlxq.results.read_back import is_success
from mlxq_worker.demo.tasks import count_example

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
COUNTING = count_example(1, 9).body["prompt"]
UNUSUAL = "Count from 1 to 5"
"""Without its colon the demo model has not seen it, and goes round in circles after an end that is ignored."""
GREEDY_IDS: dict[str, Any] = {"temperature": 0, "max_tokens": 40, "ignore_eos": True, "return_token_ids": True}
SOME_ID, SOME_WORD = 322, "18"
SEED = 5
NUM_LONG = 400
"""Tokens of an answer that is killed before it ends."""


def chat(custom_id: str, content: str, **body: Any) -> Line:
    return {"custom_id": custom_id, "url": CHAT, "body": {"messages": [{"role": "user", "content": content}], **body}}


def completion(custom_id: str, prompt: str, **body: Any) -> Line:
    return {"custom_id": custom_id, "url": COMPLETIONS, "body": {"prompt": prompt, **body}}


def sampled(custom_id: str, seed: int, **body: Any) -> Line:
    sampling = {"temperature": 1.5, "max_tokens": 12, "return_token_ids": True}
    return chat(custom_id, "Count from 3 to 7", seed=seed, **sampling, **body)


def json_schema(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


def tool(name: str, parameters: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}, "size": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["city", "size"],
    "additionalProperties": False,
}

WEATHER = tool("get_weather", {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]})
CLOCK = tool("clock", {"type": "object", "properties": {"zone": {"enum": ["CET", "UTC"]}}, "required": ["zone"]})
ASK_WEATHER = "What is the weather in Paris?"

LINES = [
    sampled("three", SEED, n=3),
    *(sampled(f"seed-{SEED + index}", SEED + index) for index in range(3)),
    chat("scored", "What is the capital of France?", max_tokens=6, temperature=0, logprobs=True, top_logprobs=3),
    completion("scored-text", COUNTING, max_tokens=6, temperature=0, logprobs=2, prompt_logprobs=1),
    completion("plain", UNUSUAL, **GREEDY_IDS),
    completion("penalised", UNUSUAL, **GREEDY_IDS, frequency_penalty=2.0),
    completion("without-3", COUNTING, max_tokens=20, temperature=0, bad_words=["3"]),
    completion("only-one-id", COUNTING, max_tokens=5, allowed_token_ids=[SOME_ID], ignore_eos=True),
    completion(
        "loop",
        COUNTING,
        max_tokens=50,
        allowed_token_ids=[SOME_ID],
        ignore_eos=True,
        repetition_detection={"max_pattern_size": 2, "min_count": 4},
    ),
    completion("beams", COUNTING, max_tokens=30, n=2, use_beam_search=True, beam_width=3, return_token_ids=True),
    completion("greedy", COUNTING, max_tokens=30, temperature=0, return_token_ids=True),
    chat("schema", "Count from 3 to 7", n=2, seed=SEED, max_tokens=200, response_format=json_schema(CITY)),
    completion("regex", COUNTING, max_tokens=20, structured_outputs={"regex": "[0-9]{3}-[a-f]{2}"}),
    chat("call", ASK_WEATHER, max_tokens=60, temperature=0, tools=[WEATHER, CLOCK]),
    chat("cut-call", ASK_WEATHER, max_tokens=8, temperature=0, tools=[WEATHER]),
    chat("no-call", "What is the capital of France?", max_tokens=60, temperature=0, tools=[WEATHER]),
    chat("must-call", "Count from 3 to 7", max_tokens=200, seed=SEED, tools=[WEATHER, CLOCK], tool_choice="required"),
    chat("must-call-one", ASK_WEATHER, max_tokens=200, seed=SEED, tools=[WEATHER, CLOCK], tool_choice=named("clock")),
    completion("nothing-left", COUNTING, n=2, allowed_token_ids=[SOME_ID], bad_words=[SOME_WORD]),
    completion("too-soon", COUNTING, min_tokens=20, structured_outputs={"choice": ["yes"]}),
    completion("too-complex", COUNTING, max_tokens=500, structured_outputs={"regex": "((a{1,100}){1,100}){90,100}"}),
    completion("no-such-id", COUNTING, logit_bias={"99999": 1}),
    completion("no-regex", COUNTING, structured_outputs={"regex": "[0-9"}),
]
FAILED = dict.fromkeys(("nothing-left", "too-soon", "too-complex"), "no_token_allowed")
REFUSED = {"no-such-id": "logit_bias", "no-regex": "structured_outputs.regex"}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Line]:
    """The lines of both result files of one run."""
    directory = tmp_path_factory.mktemp("asked-for")
    source, output = write_lines(directory / "in.jsonl", LINES), directory / "out.jsonl"
    run(*MLXQ, "run", "-i", str(source), "-o", str(output))
    return {**read_lines(output), **read_lines(directory / "out.errors.jsonl")}


def body(line: Line) -> dict[str, Any]:
    found: dict[str, Any] = line["response"]["body"]
    return found


def test_every_line_is_answered_but_those_that_ask_for_the_impossible(answers: dict[str, Line]) -> None:
    not_answered = {custom_id: line for custom_id, line in answers.items() if not is_success(line)}

    assert answers.keys() == {line["custom_id"] for line in LINES}
    assert not_answered.keys() == REFUSED.keys() | FAILED.keys()
    for custom_id, param in REFUSED.items():
        assert body(answers[custom_id])["error"]["param"] == param
    for custom_id, code in FAILED.items():
        assert (answers[custom_id]["response"], answers[custom_id]["error"]["code"]) == (None, code)


def test_openais_types_read_every_answer(answers: dict[str, Line]) -> None:
    for custom_id, line in answers.items():
        if is_success(line) and custom_id != "loop":  # OpenAI has no word for how a loop ends
            found = body(line)
            (Completion if found["object"] == "text_completion" else ChatCompletion).model_validate(found)


def test_each_of_several_answers_is_the_one_that_its_seed_gives_alone(answers: dict[str, Line]) -> None:
    choices = body(answers["three"])["choices"]
    alone = [choice(answers[f"seed-{SEED + index}"]) for index in range(3)]

    assert [each["index"] for each in choices] == [0, 1, 2]
    assert [each["seed"] for each in choices] == [SEED, SEED + 1, SEED + 2]
    assert [each["token_ids"] for each in choices] == [each["token_ids"] for each in alone]
    assert [each["stop_details"] for each in choices] == [each["stop_details"] for each in alone]
    assert len({tuple(each["token_ids"]) for each in choices}) > 1, "the seeds make a difference"


def test_several_answers_share_the_prompt_in_the_usage(answers: dict[str, Line]) -> None:
    usage, alone = body(answers["three"])["usage"], body(answers[f"seed-{SEED}"])["usage"]

    assert usage["prompt_tokens"] == alone["prompt_tokens"]
    assert usage["completion_tokens"] == sum(len(each["token_ids"]) for each in body(answers["three"])["choices"])


def test_the_scored_tokens_of_a_chat_join_to_its_text(answers: dict[str, Line]) -> None:
    tokens = choice(answers["scored"])["logprobs"]["content"]

    text = b"".join(bytes(token["bytes"]) for token in tokens).decode()
    assert text.removesuffix("<|eot_id|>") == text_of(answers["scored"])
    for token in tokens:
        tops = [top["logprob"] for top in token["top_logprobs"]]
        assert len(tops) == 3
        assert tops == sorted(tops, reverse=True)
        assert token["logprob"] == tops[0] <= 0, "a greedy answer takes the best token"


def test_a_completions_scores_stand_beside_its_tokens_and_those_of_its_prompt(answers: dict[str, Line]) -> None:
    scored = choice(answers["scored-text"])

    num_tokens = body(answers["scored-text"])["usage"]["completion_tokens"]
    assert "".join(scored["logprobs"]["tokens"]) == scored["text"]
    assert len(scored["logprobs"]["token_logprobs"]) == len(scored["logprobs"]["top_logprobs"]) == num_tokens
    first, *others = scored["prompt_logprobs"]
    assert first is None
    assert len(others) == body(answers["scored-text"])["usage"]["prompt_tokens"] - 1


def test_a_frequency_penalty_makes_tokens_rarer(answers: dict[str, Line]) -> None:
    most_often = {
        custom_id: max(Counter(choice(answers[custom_id])["token_ids"]).values())
        for custom_id in ("plain", "penalised")
    }

    assert most_often["penalised"] < most_often["plain"]


def test_forbidden_words_and_allowed_ids_are_kept(answers: dict[str, Line]) -> None:
    assert "3" not in text_of(answers["without-3"]).split()
    assert text_of(answers["without-3"]).split()[:2] == ["1", "2"]
    (word,) = set(text_of(answers["only-one-id"]).split())
    assert text_of(answers["only-one-id"]) == f" {word}" * 5


def test_a_beam_search_returns_its_best_answers_best_first(answers: dict[str, Line]) -> None:
    first, second = body(answers["beams"])["choices"]

    assert (first["index"], second["index"]) == (0, 1)
    assert first["beam_score"] >= second["beam_score"]
    assert first["token_ids"] == choice(answers["greedy"])["token_ids"], "the demo model is sure of how to count"
    assert first["stop_details"]["type"] == "eos_token"
    assert body(answers["beams"])["usage"]["completion_tokens"] == len(first["token_ids"]) + len(second["token_ids"])


def test_answers_fit_the_schema_or_the_expression_that_holds_them(answers: dict[str, Line]) -> None:
    for each in body(answers["schema"])["choices"]:
        assert each["stop_details"]["type"] == "eos_token"
        city = json.loads(each["message"]["content"])
        assert city.keys() == {"city", "size"}
        assert city["city"] in ("Paris", "Rome")
        assert 0 <= city["size"] <= 99
    assert re.fullmatch("[0-9]{3}-[a-f]{2}", text_of(answers["regex"]))


def calls(line: Line) -> list[tuple[str, Any]]:
    """Name and arguments of each call."""
    found = choice(line)["message"].get("tool_calls") or []
    return [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in found]


def test_a_call_that_the_model_makes_is_a_tool_call(answers: dict[str, Line]) -> None:
    found = choice(answers["call"])

    assert calls(answers["call"]) == [("get_weather", {"city": "Paris"})]
    assert (found["finish_reason"], found["message"]["content"]) == ("tool_calls", None)
    assert found["stop_details"]["token"] == "<|eom_id|>"
    assert (choice(answers["no-call"])["finish_reason"], calls(answers["no-call"])) == ("stop", [])


def test_a_call_that_the_limit_cuts_off_is_kept_as_text(answers: dict[str, Line]) -> None:
    assert (choice(answers["cut-call"])["finish_reason"], calls(answers["cut-call"])) == ("length", [])
    assert text_of(answers["cut-call"]).startswith('{"name": "get_weather"')


def test_a_demanded_call_is_made_whatever_the_model_would_say(answers: dict[str, Line]) -> None:
    for custom_id, names in (("must-call", {"get_weather", "clock"}), ("must-call-one", {"clock"})):
        ((name, arguments),) = calls(answers[custom_id])
        assert name in names
        assert arguments.keys() == {"city"} or arguments["zone"] in ("CET", "UTC")
        assert choice(answers[custom_id])["finish_reason"] == "tool_calls"


def test_a_loop_ends_as_such(answers: dict[str, Line]) -> None:
    found = choice(answers["loop"])

    assert (found["finish_reason"], found["stop_details"]["type"]) == ("repetition", "repetition")
    assert found["stop_details"]["token_index"] == 3, "four copies of one token"


@pytest.mark.slow
def test_a_job_of_four_rows_whose_worker_is_killed_has_one_line_with_all_four(
    connection: Redis, redis_url: str, tmp_path: Path
) -> None:
    lines = [endless("four", max_tokens=NUM_LONG, n=4, seed=1), endless("beside", max_tokens=20)]
    source = write_lines(tmp_path / "in.jsonl", lines)
    worker = (*MLXQ, "worker", "--model", "demo", "--url", redis_url)
    alone = {"MLXQ_LEASE_S": "2", "MLXQ_MAINTENANCE_S": "0.5", "MLXQ_PARENT_PID": str(os.getpid())}
    batch = Client(connection).batch(run(*MLXQ, "enqueue", "-i", str(source), "--url", redis_url).stdout.strip())
    job_id = batch.job_id("four")

    with running(*worker, **alone) as victim:
        wait_until(lambda: batch.counts().num_ended, "the row beside it to end, which began no earlier")
        victim.kill()
        ended(victim)
    was_started = fetch(connection, job_id).get_status().value
    with running(*worker, **alone):
        collect = (*MLXQ, "collect", batch.id, "-o", str(tmp_path / "out.jsonl"), "--follow", "--url", redis_url)
        assert run(*collect).returncode == 0

    assert (victim.returncode, was_started) == (-signal.SIGKILL, "started")
    choices = read_lines(tmp_path / "out.jsonl")["four"]["response"]["body"]["choices"]
    assert [each["index"] for each in choices] == [0, 1, 2, 3]
    assert all(each["stop_details"]["token_index"] == NUM_LONG - 1 for each in choices)
