"""Where a reasoning part begins and ends, token by token and in the finished answer, by tokenizers built here."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from tests.support.row_specs import row_spec
from tests.support.small_tokenizers import CHATML_TEMPLATE, real_tokenizer

from mlxq.contract import Request, Sampling, Structure
from mlxq_worker.dialects.reasoning import ReasoningMarkers, reasoning_markers_of, split_reasoning
from mlxq_worker.engine.api import RowSpec
from mlxq_worker.engine.reasoning import Reasoning, ReasoningState
from mlxq_worker.engine.rows.row import Row
from mlxq_worker.model.eos import resolve_eos
from mlxq_worker.text.prepare import ModelPreparer


@cache
def tokenizer(*, special: bool = False) -> Any:
    """Qwen 3's way: the think tokens are added ones, and have a text unless they are `special`."""
    thinking = real_tokenizer(chat_template=CHATML_TEMPLATE)
    thinking.add_tokens(["<think>", "</think>"], special_tokens=special)
    return thinking


def encode(text: str, *, special: bool = False) -> tuple[int, ...]:
    return tuple(tokenizer(special=special).encode(text, add_special_tokens=False))


def decode(token_ids: Any, *, special: bool = False) -> str:
    return str(tokenizer(special=special).decode(list(token_ids), skip_special_tokens=True))


@cache
def markers() -> ReasoningMarkers:
    found = reasoning_markers_of(tokenizer())
    assert found is not None
    return found


OPEN = Reasoning(starts=((7, 8),), ends=((9, 9),), is_open=True)
POSSIBLE = Reasoning(starts=((7, 8),), ends=((9, 9),), is_open=False)


def belongs(reasoning: Reasoning, token_ids: list[int]) -> list[bool]:
    state = ReasoningState(reasoning)
    return [state.push(token_id) for token_id in token_ids]


@pytest.mark.parametrize(
    ("reasoning", "token_ids", "expected"),
    [
        (OPEN, [1, 9, 2, 9, 9, 3, 9, 9], "TTTTTFFF"),
        (POSSIBLE, [7, 8, 1, 9, 9, 3], "TTTTTF"),
        (POSSIBLE, [1, 7, 8, 9, 9], "FFFFF"),
        (POSSIBLE, [7, 1, 8, 9, 9], "TFFFF"),
        (OPEN, [9, 9, 7, 8, 1], "TTFFF"),
    ],
)
def test_each_token_belongs_to_the_reasoning_part_or_not(
    reasoning: Reasoning, token_ids: list[int], expected: str
) -> None:
    assert belongs(reasoning, token_ids) == [letter == "T" for letter in expected]


def test_markers_are_found_in_the_vocabulary_or_there_are_none() -> None:
    assert (markers().starts, markers().ends) == ((encode("<think>"),), (encode("</think>"),))
    assert reasoning_markers_of(real_tokenizer()) is None


@pytest.mark.parametrize(
    ("prompt", "is_open"),
    [
        ("Why?<think>\n", True),
        ("Why?<think>", True),
        ("Why?", False),
        ("What does <think> mean?", False),
        ("What does <think> x </think> mean?", False),
    ],
)
def test_a_prompt_has_opened_the_part_only_if_it_ends_with_the_marker(prompt: str, is_open: bool) -> None:
    reasoning = markers().after_prompt(encode(prompt), decode)

    assert reasoning is not None
    assert reasoning.is_open == is_open


@pytest.mark.parametrize("special", [False, True])
def test_a_prompt_that_has_closed_the_part_leaves_no_reasoning(special: bool) -> None:
    prompt_ids = encode("Why?<think>\n\n</think>\n\n", special=special)

    def decode_these(token_ids: Any) -> str:
        return decode(token_ids, special=special)

    assert markers().after_prompt(prompt_ids, decode_these) is None


@pytest.mark.parametrize(
    ("is_open", "answer", "reasoning", "text"),
    [
        (True, "\nHm, é.\n</think>\n\nYes.", "Hm, é.", "Yes."),
        (False, "<think>\nHm.\n</think>\n\nYes.", "Hm.", "Yes."),
        (False, "Yes, </think> no.", None, "Yes, </think> no."),
        (True, "Hm, and", "Hm, and", ""),
        (False, "<think>Hm", "Hm", ""),
        (True, "</think>Yes.", "", "Yes."),
    ],
)
@pytest.mark.parametrize("special", [False, True])
def test_an_answer_is_split_at_its_markers(
    is_open: bool, answer: str, reasoning: str | None, text: str, special: bool
) -> None:
    def decode_these(token_ids: Any) -> str:
        return decode(token_ids, special=special)

    ids = encode(answer, special=special)
    marked = Reasoning(starts=markers().starts, ends=markers().ends, is_open=is_open)
    whole = decode_these(ids)

    parts = split_reasoning(marked, ids, whole, decode_these)

    assert parts.reasoning == reasoning
    assert parts.text == (whole if reasoning is None else text)


def test_a_model_without_markers_keeps_its_text_whole() -> None:
    parts = split_reasoning(None, encode("\nYes."), "\nYes.", decode)

    assert (parts.reasoning, parts.text) == (None, "\nYes.")


def stopped(answer: str, stop: str, *, is_open: bool = True) -> tuple[str, str | None]:
    """Text and stop string of a row that generates `answer`."""
    reasoning = Reasoning(starts=markers().starts, ends=markers().ends, is_open=is_open)
    ids = encode(answer)
    row = Row(row_spec(stop=(stop,), reasoning=reasoning, max_tokens=len(ids)), decode)
    for token_id in ids:
        if not row.finished:
            row.commit(token_id, now=0.0)
    assert row.result is not None
    return row.result.text, row.result.stop_details.string


def test_a_stop_string_counts_behind_the_reasoning_part_only() -> None:
    assert stopped("a. b.</think>c. d", ".") == ("a. b.</think>c", ".")


def test_a_stop_string_does_not_begin_inside_the_reasoning_part() -> None:
    assert stopped("ab</think>cd", "</think>cd") == ("ab</think>cd", None)


def test_a_stop_string_counts_from_the_start_of_an_answer_without_reasoning() -> None:
    assert stopped("a. b", ".", is_open=False) == ("a", ".")


# --- Through the preparer -------------------------------------------------------------------------------------


def prepared(request: Request, template: str = CHATML_TEMPLATE) -> tuple[ModelPreparer, RowSpec]:
    model = tokenizer()
    model.chat_template = template
    prepare = ModelPreparer(
        model,
        resolve_eos(model, {}, {}, vocab_size=len(model)),
        vocab_size=len(model),
        context_length=1000,
        default_max_tokens=100,
        model_name="tiny",
        markers=markers(),
    )
    (spec,) = prepare.prepare(request, "row")
    return prepare, spec


def asked(**fields: Any) -> Request:
    chat = {"endpoint": "/v1/chat/completions", "messages": ({"role": "user", "content": "Why?"},)}
    return Request(**{"custom_id": "r", "content_hash": "", "sampling": Sampling(), **chat, **fields})


def test_a_chat_whose_template_opens_the_part_is_answered_with_its_reasoning_apart() -> None:
    request = asked()
    prepare, spec = prepared(request, CHATML_TEMPLATE + "<think>\n")
    ids = encode("Hm.</think>\n\nYes.")
    row = Row(spec, decode)
    for token_id in (*ids, *spec.eos_ids):
        row.commit(token_id, now=0.0)
    assert row.result is not None

    result = prepare.finish(request, (spec,), (row.result,), request_id="q", created=0, queue_s=0.0)

    (choice,) = result.choices
    assert (choice.reasoning_content, choice.text, choice.finish_reason) == ("Hm.", "Yes.", "stop")


def test_a_structure_holds_the_answer_behind_its_reasoning() -> None:
    _, spec = prepared(asked(structure=Structure(kind="choice", value=["Yes"], param="p")), CHATML_TEMPLATE + "<think>")
    assert spec.constraint is not None

    inside = spec.constraint.allowed_ids()
    spec.constraint.advance(*encode("</think>"))
    behind = spec.constraint.allowed_ids()

    assert (bits(inside) > 200, bits(behind)) == (True, 1)


def bits(mask: bytes) -> int:
    return sum(byte.bit_count() for byte in mask)


def test_a_completion_has_no_reasoning_part() -> None:
    _, spec = prepared(asked(endpoint="/v1/completions", messages=None, prompt="Why?<think>"))

    assert spec.reasoning is None
