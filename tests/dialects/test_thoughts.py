"""Thoughts in every spelling: split off, closed at their budget, counted, and out of the way of stop strings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.support.scripted_models import Folder, answer, followed, preparer_of, request_of

from mlxq.errors import ConfigError, RequestError
from mlxq_worker.dialects.reasoning import SPELLINGS, Spelling, reasoning_markers_of
from mlxq_worker.model.load import load_tokenizer_only

ASK = {"role": "user", "content": "What is two and two?"}
PLAIN = (
    "{% for m in messages %}{{ '<|'+m.role+'|>'+m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
ROLES = ("<|user|>", "<|system|>", "<|assistant|>")
EACH = pytest.mark.parametrize("spelling", SPELLINGS, ids=lambda spelling: spelling.names[0])


def folder_of(spelling: Spelling, *, opens: bool = False, more: tuple[str, ...] = ()) -> Folder:
    """A model that thinks in this spelling; with `opens` its template opens the thought."""
    opening = f"{{% if add_generation_prompt %}}{spelling.start}\n{{% endif %}}" if opens else ""
    mention = f"{{# {spelling.start} {spelling.end} #}}"
    if spelling.is_text:
        return Folder(template=PLAIN + opening + mention, special=(*ROLES, *more))
    start = spelling.start.removesuffix("thought") if spelling.start.startswith("<|channel>") else spelling.start
    return Folder(template=PLAIN + opening, special=(*ROLES, *more), plain=(start, spelling.end))


def said(path: Path, folder: Folder, script: str, **body: Any) -> dict[str, Any]:
    """Without an engine, which only stop strings need."""
    by = answer if "stop" in body else followed
    return by(path, folder, script, {"messages": [ASK], **body})


def parts(body: dict[str, Any]) -> tuple[str | None, str]:
    [choice] = body["choices"]
    return choice["message"].get("reasoning_content"), choice["message"]["content"]


@EACH
@pytest.mark.parametrize("before", ["", "\n", " \n\n"], ids=["at once", "behind a break", "behind blanks"])
def test_a_thought_that_the_model_opens_is_split_off(tmp_path: Path, spelling: Spelling, before: str) -> None:
    script = f"{before}{spelling.start}\nSo it is.\n{spelling.end}\n\nFour.<end>"

    assert parts(said(tmp_path, folder_of(spelling), script)) == ("So it is.", "Four.")


@EACH
def test_a_thought_that_the_prompt_opens_is_split_off(tmp_path: Path, spelling: Spelling) -> None:
    script = f"So it is.{spelling.end}\n\nFour.<end>"

    assert parts(said(tmp_path, folder_of(spelling, opens=True), script)) == ("So it is.", "Four.")


@EACH
def test_a_thought_that_a_limit_cuts_off_is_all_there_is(tmp_path: Path, spelling: Spelling) -> None:
    body = said(tmp_path, folder_of(spelling, opens=True), "So it goes on and on", max_tokens=8)

    assert parts(body) == ("So it go", "")
    assert body["choices"][0]["finish_reason"] == "length"


@EACH
def test_a_stop_string_counts_behind_the_thought(tmp_path: Path, spelling: Spelling) -> None:
    script = f"One. Two.{spelling.end}Three. Four.<end>"

    body = said(tmp_path, folder_of(spelling, opens=True), script, stop=["."])

    assert parts(body) == ("One. Two.", "Three")


@EACH
def test_a_structure_holds_what_is_behind_the_thought(tmp_path: Path, spelling: Spelling) -> None:
    script = f"Hm.{spelling.end}yes<end>"

    body = said(tmp_path, folder_of(spelling, opens=True), script, structured_outputs={"choice": ["yes", "no"]})

    assert parts(body) == ("Hm.", "yes")


@EACH
@pytest.mark.parametrize("budget", [0, 5])
def test_a_thought_is_closed_at_its_budget_and_counted(tmp_path: Path, spelling: Spelling, budget: int) -> None:
    num_closing = len(folder_of(spelling).tokenizer().encode(spelling.end, add_special_tokens=False).ids)
    script = "abcdefghijklmnopqrstuvwxyz" + "Four" + "." * 40

    body = said(tmp_path, folder_of(spelling, opens=True), script, thinking_token_budget=budget, max_tokens=60)

    assert parts(body)[0] == "abcdefghij"[:budget]
    assert body["usage"]["completion_tokens_details"] == {"reasoning_tokens": budget + num_closing}


def test_a_budget_is_refused_by_a_model_that_does_not_think(tmp_path: Path) -> None:
    preparer = preparer_of(Folder(template=PLAIN, special=ROLES).write(tmp_path))

    with pytest.raises(RequestError) as refused:
        preparer.prepare(request_of({"messages": [ASK], "thinking_token_budget": 5}), "row")

    assert refused.value.param == "thinking_token_budget"


CHANNELS = Folder(
    template="{% for m in messages %}{{ '<|start|>'+m.role+'<|message|>'+m.content+'<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}",
    special=("<|start|>", "<|message|>", "<|end|>", "<|channel|>", "<|constrain|>", "<|call|>"),
    eos="<|return|>",
)
ANALYSIS = "<|channel|>analysis<|message|>One. Two.<|end|><|start|>assistant"
FINAL = "<|channel|>final<|message|>"


def test_stop_strings_and_structures_count_in_the_final_channel(tmp_path: Path) -> None:
    script = f"{ANALYSIS}{FINAL}yes. no.<|return|>"

    stopped = said(tmp_path / "stop", CHANNELS, script, stop=["."])
    held = said(tmp_path / "held", CHANNELS, script, structured_outputs={"choice": ["yes", "no"]})

    assert parts(stopped) == parts(held) == ("One. Two.", "yes")


def test_an_analysis_is_closed_at_its_budget(tmp_path: Path) -> None:
    script = "<|channel|>analysis<|message|>" + "abcdefgh" * 20

    body = said(tmp_path, CHANNELS, script, thinking_token_budget=14, max_tokens=60)

    thought, text = parts(body)
    assert thought == "abcd"  # the header takes ten tokens of a tokenizer that knows bytes alone
    assert text


def test_an_answer_in_the_final_channel_alone_has_no_thought(tmp_path: Path) -> None:
    assert parts(said(tmp_path, CHANNELS, f"{FINAL}Four.<|return|>")) == (None, "Four.")


def test_what_is_said_before_a_call_is_the_text(tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "now"}}]
    template = (CHANNELS.template or "") + "{{ tools|tojson if tools else '' }}"
    folder = Folder(template=template, special=CHANNELS.special, eos=CHANNELS.eos)
    script = (
        f"{ANALYSIS}<|channel|>commentary<|message|>I look.<|end|><|start|>assistant<|channel|>commentary "
        "to=functions.now <|constrain|>json<|message|>{}<|call|>"
    )

    [choice] = said(tmp_path, folder, script, tools=tools)["choices"]

    assert choice["message"]["content"] == "I look."
    assert [call["function"]["name"] for call in choice["message"]["tool_calls"]] == ["now"]


def test_a_parser_can_be_named_in_vllms_words(tmp_path: Path) -> None:
    tokenizer = load_tokenizer_only(str(folder_of(SPELLINGS[0]).write(tmp_path))).tokenizer

    named = {name: reasoning_markers_of(tokenizer, name) for name in ("deepseek_r1", "glm45", "openai_gptoss")}

    assert {name: markers.name for name, markers in named.items() if markers} == {name: name for name in named}
    assert named["deepseek_r1"] is not None
    assert named["deepseek_r1"].always_open
    assert reasoning_markers_of(tokenizer, "none") is None
    with pytest.raises(ConfigError, match="--reasoning-parser"):
        reasoning_markers_of(tokenizer, "nobody")


TOOLS = [{"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}]


def test_a_call_inside_a_thought_that_is_never_closed_ends_it(tmp_path: Path) -> None:
    template = "{{ tools|tojson if tools else '' }}{# <tool_call> tool_call.name #}" + PLAIN + "<think>\n"
    plain = ("<think>", "</think>", "<tool_call>", "</tool_call>")
    script = 'I need the time.\n<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call><end>'

    [choice] = said(tmp_path, Folder(template=template, special=ROLES, plain=plain), script, tools=TOOLS)["choices"]

    assert choice["message"]["reasoning_content"] == "I need the time."
    assert [call["function"]["name"] for call in choice["message"]["tool_calls"]] == ["now"]
    assert choice["finish_reason"] == "tool_calls"


def test_what_a_family_puts_around_its_answers_is_no_part_of_them(tmp_path: Path) -> None:
    tokens = ("<|START_THINKING|>", "<|END_THINKING|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>")
    cohere = Folder(template=PLAIN, special=ROLES, plain=tokens)
    script = "<|START_THINKING|>Hm.<|END_THINKING|><|START_RESPONSE|>Four.<|END_RESPONSE|><end>"

    assert parts(said(tmp_path, cohere, script)) == ("Hm.", "Four.")
    assert parts(said(tmp_path, cohere, "<|START_RESPONSE|>Four.<|END_RESPONSE|><end>")) == (None, "Four.")
