"""A completion that repeats its prompt scores it, as lm-evaluation-harness asks; a chat goes on with its last message,
or opens no turn. On the demo model, from the body of a request to that of an answer.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from tests.support.engine_runs import run

from mlxq.requests.openai import parse_object
from mlxq.results.result_lines import result_line
from mlxq_worker.engine.api import RowId
from mlxq_worker.engine.engine import BatchEngine
from mlxq_worker.model.load import load_model
from mlxq_worker.text.prepare import ModelPreparer

TEXT = "Count from 1 to 5:"
LM_EVAL = {"model": "any", "max_tokens": 0, "temperature": 0, "logprobs": 1, "seed": 1234, "echo": True}
"""What lm-evaluation-harness sends beside its prompt to score one."""


@cache
def loaded() -> Any:
    return load_model("demo")


def encode(text: str) -> list[int]:
    ids: list[int] = loaded().tokenizer.encode(text, add_special_tokens=False)
    return ids


@cache
def preparer() -> ModelPreparer:
    model = loaded()
    return ModelPreparer(
        model.tokenizer,
        model.eos,
        vocab_size=model.vocab_size,
        context_length=512,
        default_max_tokens=16,
        model_name="demo",
    )


def answer(**body: Any) -> dict[str, Any]:
    """The body of the answer."""
    request = parse_object({"body": body}, default_custom_id="r").request
    specs = preparer().prepare(request, "r")
    results = run(BatchEngine(loaded().model, preparer().decode, max_num_seqs=4), list(specs)).results
    ended = tuple(results[name] for name in sorted(results))
    done = preparer().finish(request, specs, ended, request_id="r", created=0, queue_s=0.0)
    found: dict[str, Any] = result_line(done)["response"]["body"]
    return found


def logprobs_of(ids: list[int]) -> Any:
    """Of each token after the first, by the model itself: (tokens - 1, V)."""
    logits = loaded().model(mx.array([ids]))[0]
    return np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))[:-1]


@pytest.mark.parametrize("prompt", [encode(TEXT), [encode(TEXT)]], ids=["ids", "ids in a list"])
def test_a_prompt_that_is_echoed_without_an_answer_is_scored_token_by_token(prompt: Any) -> None:
    body = answer(prompt=prompt, **LM_EVAL)

    [choice], ids = body["choices"], encode(TEXT)
    own = logprobs_of(ids)
    scores = choice["logprobs"]
    assert choice["text"] == TEXT == "".join(scores["tokens"])
    assert [len(column) for column in scores.values()] == [len(ids)] * 4
    assert (scores["token_logprobs"][0], scores["top_logprobs"][0]) == (None, None)
    expected = [float(row[token_id]) for row, token_id in zip(own, ids[1:], strict=True)]
    assert scores["token_logprobs"][1:] == pytest.approx(expected, abs=1e-3)
    best = [max(top.values()) for top in scores["top_logprobs"][1:]]
    assert best == pytest.approx(own.max(axis=-1).tolist(), abs=1e-3)
    assert body["usage"] == {"prompt_tokens": len(ids), "completion_tokens": 0, "total_tokens": len(ids)}
    assert (choice["finish_reason"], choice["stop_details"]["type"]) == ("length", "max_tokens")


def test_the_token_that_a_tokenizer_puts_before_a_text_is_no_part_of_its_echo() -> None:
    [choice] = answer(prompt=TEXT, **LM_EVAL)["choices"]

    with_bos = loaded().tokenizer.encode(TEXT, add_special_tokens=True)
    expected = [float(row[each]) for row, each in zip(logprobs_of(with_bos), with_bos[1:], strict=True)]
    assert with_bos[1:] == encode(TEXT)
    assert choice["text"] == TEXT == "".join(choice["logprobs"]["tokens"])
    assert choice["logprobs"]["token_logprobs"] == pytest.approx(expected, abs=1e-3)
    assert choice["logprobs"]["text_offset"][0] == 0


def test_an_answer_behind_an_echo_is_that_of_the_prompt_alone() -> None:
    asked: dict[str, Any] = {"prompt": TEXT, "max_tokens": 6, "temperature": 0, "logprobs": 2}
    [alone], [echoed] = answer(**asked)["choices"], answer(**asked, echo=True)["choices"]

    num_prompt = len(encode(TEXT))
    assert echoed["text"] == TEXT + alone["text"]
    assert echoed["logprobs"]["tokens"][num_prompt:] == alone["logprobs"]["tokens"]
    assert echoed["logprobs"]["text_offset"][num_prompt] == len(TEXT)
    assert len(echoed["logprobs"]["token_logprobs"]) == num_prompt + len(alone["logprobs"]["token_logprobs"])


def test_every_one_of_several_answers_begins_with_the_echo() -> None:
    body = answer(prompt=TEXT, n=3, max_tokens=2, logprobs=0, echo=True, prompt_logprobs=2, temperature=1)

    assert [choice["text"].startswith(TEXT) for choice in body["choices"]] == [True] * 3
    assert [choice["logprobs"]["tokens"][: len(encode(TEXT))] for choice in body["choices"]].count(
        body["choices"][0]["logprobs"]["tokens"][: len(encode(TEXT))]
    ) == 3
    assert len(body["choices"][0]["prompt_logprobs"]) == body["usage"]["prompt_tokens"]


def test_the_tokens_that_are_asked_for_are_reported_in_every_place() -> None:
    ids = [encode("1")[0], encode("z")[0]]
    texts = {preparer().decode([token_id]) for token_id in ids}

    [choice] = answer(prompt=TEXT, max_tokens=3, temperature=0, logprobs=1, logprob_token_ids=ids)["choices"]

    assert all(texts <= top.keys() for top in choice["logprobs"]["top_logprobs"])


def test_the_tokens_that_are_asked_for_need_no_other_switch_in_a_chat() -> None:
    ids = [encode("1")[0], encode("z")[0]]
    messages = [{"role": "user", "content": TEXT}]

    [choice] = answer(messages=messages, max_tokens=2, temperature=0, logprob_token_ids=ids)["choices"]

    for place in choice["logprobs"]["content"]:
        assert [other["token"] for other in place["top_logprobs"]] == [preparer().decode([i]) for i in ids]


def prompt_of(messages: list[dict[str, str]], **body: Any) -> str:
    request = parse_object({"body": {"messages": messages, **body}}, default_custom_id="r").request
    (spec,) = preparer().prepare(request, "r")
    assert spec.row_id == RowId("r")
    return str(loaded().tokenizer.decode(list(spec.prompt_ids), skip_special_tokens=False))


QUESTION = {"role": "user", "content": "Count from 1 to 5"}


def test_a_chat_without_a_generation_prompt_opens_no_turn() -> None:
    opened, closed = prompt_of([QUESTION]), prompt_of([QUESTION], add_generation_prompt=False)

    assert opened.startswith(closed)
    assert len(closed) < len(opened)


@pytest.mark.parametrize("start", ["1, 2,", "1, 2, ", "1", "  1, 2\n"])
def test_a_chat_goes_on_with_its_last_message(start: str) -> None:
    messages = [QUESTION, {"role": "assistant", "content": start}]

    assert prompt_of(messages, continue_final_message=True).endswith(start.strip())  # as this template trims it
    assert (
        prompt_of(messages, continue_final_message=True, add_generation_prompt=False).rstrip().endswith(start.strip())
    )
