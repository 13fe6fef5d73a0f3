"""Which answers a file may hold together: those by one model, with one set of end tokens for each kind of request."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.support.result_files import output_line

from mlxq.errors import ConfigError
from mlxq.files.output.done import load_done
from mlxq.files.output.same_model import EosSets, Expected, SameModel

END, TURN, OTHER = (2, "</s>"), (7, "<|im_end|>"), (5, "&")
NOW = EosSets(chat=frozenset({END, TURN}), completion=frozenset({END}))


def answer(*eos: tuple[int, str], chat: bool = False, model: str = "m", **about: Any) -> dict[str, Any]:
    """An answer whose request let these tokens end it."""
    line = output_line("a")
    body = line["response"]["body"]
    ends = [{"id": number, "token": token} for number, token in eos]
    about = {"content_hash": "c", "eos": ends, **about}
    body |= {"object": "chat.completion" if chat else "text_completion", "model": model, "mlxq": about}
    return line


def in_a_file(folder: Path, expected: Expected | None, *lines: dict[str, Any]) -> SameModel:
    path = folder / "out.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = load_done(path)
    return SameModel("out.jsonl", expected, done.models, done.ends)


TOGETHER: dict[str, dict[str, Any]] = {
    "a completion's set": answer(END),
    "a chat's set": answer(END, TURN, chat=True),
    "in another order": answer(TURN, END, chat=True),
    "none, since the request ignored them": answer(ignore_eos=True),
    "none, in a line of a release that doesn't say why": answer(),
    "some that can't be read": answer(eos=["</s>"]),
}
APART: dict[str, dict[str, Any]] = {
    "one less": answer(END, chat=True),
    "one more": answer(END, TURN),
    "another": answer(OTHER),
    "another text of the same id": answer((2, "</S>")),
    "none, and the request didn't ask for that": answer(ignore_eos=False),
}


@pytest.mark.parametrize("name", TOGETHER)
def test_answers_with_the_end_tokens_that_the_model_has_are_gone_on_from(tmp_path: Path, name: str) -> None:
    in_a_file(tmp_path, Expected("m", lambda: NOW), answer(END), TOGETHER[name]).check(TOGETHER[name])


@pytest.mark.parametrize("name", APART)
def test_answers_with_other_end_tokens_are_not_unless_that_is_accepted(tmp_path: Path, name: str) -> None:
    with pytest.raises(
        ConfigError, match=r"out\.jsonl holds 2 answers by m with the end tokens .*--accept-model-change"
    ):
        in_a_file(tmp_path, Expected("m", lambda: NOW), answer(END), APART[name], APART[name])
    in_a_file(tmp_path, None, answer(END), APART[name]).check(APART[name])


@pytest.mark.parametrize("name", APART)
def test_where_nobody_knows_the_model_its_first_answer_tells(tmp_path: Path, name: str) -> None:
    there = in_a_file(tmp_path, Expected(), answer(END), answer(END, TURN, chat=True))
    there.check(answer(END))
    there.check(answer(OTHER, model="another"))
    with pytest.raises(ConfigError, match=r"holds 1 answers by m with the end tokens 2 '</s>'.*; now it has "):
        there.check(APART[name])


def test_both_sets_are_shown(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        in_a_file(tmp_path, Expected("m", lambda: NOW), answer(END, OTHER, chat=True))
    assert "with the end tokens 2 '</s>', 5 '&'; now it has 2 '</s>', 7 '<|im_end|>': give each" in str(raised.value)


def test_the_model_is_not_asked_for_where_there_is_nothing_to_compare(tmp_path: Path) -> None:
    def ask() -> EosSets:
        raise AssertionError

    in_a_file(tmp_path, Expected("m", ask))
    in_a_file(tmp_path, Expected("m", ask), answer(ignore_eos=True))
    in_a_file(tmp_path, Expected(None, ask), {"custom_id": "b", "response": None, "error": {"code": "x"}})
