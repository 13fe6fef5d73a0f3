"""How a row ends: which of several reasons wins, what its text is, and what the result says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from tests.support.row_specs import name_of, row_spec

from mlxq.contract import RepetitionDetection, StopDetails
from mlxq_worker.engine.api import AbortReason, RowResult
from mlxq_worker.engine.reasoning import Reasoning
from mlxq_worker.engine.rows.row import Row

# Token ids are bytes; the first two are special tokens (no text), and XYZ is one token of three characters.
EOS, TURN_END, XYZ = 0, 1, 256
FULL_STOP = ord(".")
ENDS = {
    "end_tokens": {EOS: "<eos>", TURN_END: "<turn>", FULL_STOP: "."},
    "eos_ids": frozenset({EOS, TURN_END}),
}

TWICE = RepetitionDetection(min_pattern_size=2, max_pattern_size=3, min_count=2)


def decode(token_ids: Sequence[int]) -> str:
    pieces = [b"xyz" if token_id == XYZ else bytes([token_id]) for token_id in token_ids if token_id > TURN_END]
    return b"".join(pieces).decode(errors="replace")


def commit_all(row: Row, token_ids: Sequence[int]) -> RowResult | None:
    """Give the row tokens until it ends; which must be on the last of them, or not at all."""
    row.admit(0.0)
    for count, token_id in enumerate(token_ids, start=1):
        row.commit(token_id, float(count))
        assert not row.finished or count == len(token_ids), f"{row!r} ended early"
    return row.result


def ended(token_ids: Sequence[int], **changes: Any) -> RowResult:
    result = commit_all(Row(row_spec(**{**ENDS, **changes}), decode), token_ids)
    assert result is not None
    return result


def details(kind: Any, index: int | None, **token: Any) -> StopDetails:
    return StopDetails(type=kind, token_index=index, **token)


@pytest.mark.parametrize(
    ("token_ids", "changes", "stop_details", "text"),
    [
        pytest.param([*b"ab", EOS], {}, details("eos_token", 2, token_id=EOS, token="<eos>"), "ab", id="first EOS"),
        pytest.param(
            [*b"ab", TURN_END], {}, details("eos_token", 2, token_id=TURN_END, token="<turn>"), "ab", id="other EOS"
        ),
        pytest.param([*b"ab."], {}, details("stop_token", 2, token_id=FULL_STOP, token="."), "ab", id="stop id"),
        pytest.param([EOS], {}, details("eos_token", 0, token_id=EOS, token="<eos>"), "", id="EOS at once"),
        pytest.param([*b"abc"], {"stop": ("bc",)}, details("stop_string", 2, string="bc"), "a", id="stop string"),
        pytest.param(
            [*b"abc"],
            {"stop": ("bc",), "include_stop_str_in_output": True},
            details("stop_string", 2, string="bc"),
            "abc",
            id="stop string kept",
        ),
        pytest.param(
            [*b"a", XYZ], {"stop": ("y",)}, details("stop_string", 1, string="y"), "ax", id="string inside a token"
        ),
        pytest.param(
            [*b"a", XYZ],
            {"stop": ("y",), "include_stop_str_in_output": True},
            details("stop_string", 1, string="y"),
            "axy",
            id="string inside a token kept",
        ),
        pytest.param([*b"xabab"], {"repetition_detection": TWICE}, details("repetition", 4), "xabab", id="loop"),
        pytest.param(
            [*b"ababcdcd"],
            {"repetition_detection": TWICE, "min_tokens": 5},
            details("repetition", 7),
            "ababcdcd",
            id="loop after min_tokens",
        ),
        pytest.param([*b"abc"], {"max_tokens": 3}, details("max_tokens", 2), "abc", id="max_tokens"),
        pytest.param(
            [*b"abc"],
            {"prompt_ids": (7, 8), "context_length": 5},
            details("context_length", 2),
            "abc",
            id="context length",
        ),
        pytest.param(
            [*b"abc"],
            {"prompt_ids": (7, 8), "context_length": 5, "max_tokens": 3},
            details("max_tokens", 2),
            "abc",
            id="both limits at once are max_tokens",
        ),
    ],
)
def test_each_way_to_end(token_ids: list[int], changes: dict[str, Any], stop_details: StopDetails, text: str) -> None:
    result = ended(token_ids, **changes)

    assert result.stop_details == stop_details
    assert result.text == text
    assert result.token_ids == tuple(token_ids)


@pytest.mark.parametrize(
    ("token_ids", "changes", "stop_details", "text"),
    [
        pytest.param(
            [*b"ab", EOS],
            {"max_tokens": 3},
            details("eos_token", 2, token_id=EOS, token="<eos>"),
            "ab",
            id="EOS before max_tokens",
        ),
        pytest.param(
            [*b"ab."],
            {"context_length": 4},
            details("stop_token", 2, token_id=FULL_STOP, token="."),
            "ab",
            id="stop id before context length",
        ),
        pytest.param(
            [*b"ab"],
            {"max_tokens": 2, "stop": ("b",)},
            details("stop_string", 1, string="b"),
            "a",
            id="stop string before max_tokens",
        ),
        pytest.param(
            [*b"ab."], {"stop": ("b.",)}, details("stop_string", 2, string="b."), "a", id="stop string before stop id"
        ),
        pytest.param(
            [*b"a", 0xC3, EOS],
            {"stop": ("\ufffd",)},
            details("stop_string", 2, string="\ufffd"),
            "a",
            id="stop string that the EOS settles before EOS",
        ),
        pytest.param(
            [*b"a", 0xC3],
            {"stop": ("\ufffd",), "max_tokens": 2},
            details("stop_string", 1, string="\ufffd"),
            "a",
            id="stop string in text held back until the limit",
        ),
        pytest.param(
            [*b"ab."],
            {"eos_ids": frozenset({FULL_STOP})},
            details("eos_token", 2, token_id=FULL_STOP, token="."),
            "ab",
            id="EOS before stop id where an id is both",
        ),
        pytest.param(
            [*b"abab"],
            {"stop": ("bab",), "repetition_detection": TWICE},
            details("stop_string", 3, string="bab"),
            "a",
            id="stop string before a loop",
        ),
        pytest.param(
            [*b"abab"],
            {"max_tokens": 4, "repetition_detection": TWICE},
            details("repetition", 3),
            "abab",
            id="a loop before max_tokens",
        ),
        pytest.param(
            [*b"abc"],
            {"stop": ("c", "abc", "bc")},
            details("stop_string", 2, string="abc"),
            "",
            id="the longest of the stop strings",
        ),
    ],
)
def test_of_several_reasons_on_one_token_one_wins(
    token_ids: list[int], changes: dict[str, Any], stop_details: StopDetails, text: str
) -> None:
    result = ended(token_ids, **changes)

    assert result.stop_details == stop_details
    assert result.text == text


@pytest.mark.parametrize("reason", ["cancelled", "deadline"])
def test_an_abort_keeps_the_partial_text_and_names_the_last_token(reason: AbortReason) -> None:
    row = Row(row_spec(stop=("bcd",)), decode)
    commit_all(row, b"abc")

    row.abort(reason, 4.0)

    assert row.result is not None
    assert row.result.stop_details == details(reason, 2)
    assert row.result.text == "abc"  # also what may have become a stop string


def test_a_row_aborted_before_its_first_token_has_no_text_and_no_index() -> None:
    row = Row(row_spec(), decode)

    row.abort("cancelled", 4.0)

    assert row.result is not None
    assert row.result.stop_details == details("cancelled", None)
    assert (row.result.text, row.result.token_ids) == ("", ())
    assert (row.result.prefill_s, row.result.decode_s) == (0, 0)


@pytest.mark.parametrize(
    ("stop", "min_tokens", "tokens", "text"),
    [
        pytest.param("b", 1, b"ab", "a", id="in the first token after min_tokens"),
        pytest.param("b", 2, b"abcb", "abc", id="not under min_tokens, but again later"),
        pytest.param("bc", 2, b"abc", "a", id="begun under min_tokens and completed after"),
        pytest.param("bc", 3, b"abcabc", "abca", id="completed by the last token under min_tokens"),
    ],
)
def test_stop_strings_count_only_if_completed_after_min_tokens(
    stop: str, min_tokens: int, tokens: bytes, text: str
) -> None:
    result = ended(tokens, stop=(stop,), min_tokens=min_tokens)

    assert result.stop_details == details("stop_string", len(tokens) - 1, string=stop)
    assert result.text == text


THINKING = {"starts": ((ord("<"),),), "ends": ((ord(">"),),)}


@pytest.mark.parametrize(
    ("reasoning", "token_ids", "text"),
    [
        (None, b"<a.", "<a"),
        (Reasoning(**THINKING, is_open=False), b"<a.b>c.", "<a.b>c"),
        (Reasoning(**THINKING, is_open=False), b"c.", "c"),
        (Reasoning(**THINKING, is_open=True), b"a.b>c.", "a.b>c"),
        (Reasoning(**THINKING, is_open=True), b"a.>.", "a.>"),
    ],
    ids=["none known", "begun by the model", "not begun", "opened by the prompt", "at its end"],
)
def test_stop_strings_are_looked_for_behind_the_reasoning_alone(
    reasoning: Reasoning | None, token_ids: bytes, text: str
) -> None:
    result = ended([*token_ids], stop=(".",), reasoning=reasoning, end_tokens={})

    assert (result.text, result.stop_details.string) == (text, ".")


def test_end_tokens_are_masked_for_exactly_min_tokens_tokens() -> None:
    row = Row(row_spec(min_tokens=2), decode)
    masked = []

    for _ in range(4):
        row.num_scheduled += 1
        masked.append(row.masks_end_tokens)

    assert masked == [True, True, False, False]


def test_a_row_ends_exactly_once() -> None:
    row = Row(row_spec(**ENDS), decode)
    commit_all(row, [*b"ab", EOS])
    result = row.result

    with pytest.raises(AssertionError, match="ended twice"):
        row.abort("cancelled", 9.0)
    with pytest.raises(AssertionError, match="ended twice"):
        row.commit(EOS, 9.0)
    assert row.result is result


def test_a_row_goes_on_until_something_ends_it() -> None:
    row = Row(row_spec(**ENDS, stop=("xyz!",)), decode)

    assert commit_all(row, [*b"abc", XYZ]) is None
    assert repr(row) == "Row(row#0 4/100 running)"


def test_the_result_repeats_what_identifies_the_row() -> None:
    result = ended([EOS], row_id="r1", prompt_ids=(4, 5, 6), seed=17)

    assert (name_of(result.row_id), result.num_prompt_tokens, result.seed) == ("r1", 3, 17)


def test_prefill_lasts_from_admission_to_the_first_token_and_decode_from_there() -> None:
    row = Row(row_spec(**ENDS), decode)

    row.admit(10.0)
    row.commit(ord("a"), 12.0)
    row.commit(ord("b"), 13.0)
    row.commit(EOS, 15.5)

    assert row.result is not None
    assert (row.result.prefill_s, row.result.decode_s) == (2.0, 3.5)


def test_a_row_aborted_while_it_is_prefilled_spent_its_time_there() -> None:
    row = Row(row_spec(), decode)

    row.admit(10.0)
    row.abort("deadline", 14.0)

    assert row.result is not None
    assert (row.result.prefill_s, row.result.decode_s) == (4.0, 0.0)


def test_the_deadline_counts_from_admission() -> None:
    row = Row(row_spec(timeout_s=2.0), decode)

    assert not row.overdue(1000.0)
    row.admit(1000.0)
    assert not row.overdue(1001.9)
    assert row.overdue(1002.0)


def test_without_a_deadline_a_row_is_never_overdue() -> None:
    row = Row(row_spec(), decode)

    row.admit(0.0)

    assert not row.overdue(1e9)


def test_no_token_is_wanted_once_the_last_one_is_on_its_way() -> None:
    row = Row(row_spec(max_tokens=2), decode)
    wanted = []

    for _ in range(3):
        wanted.append(row.wants_token)
        row.num_scheduled += 1

    assert wanted == [True, True, False]


def test_a_row_without_stop_strings_is_decoded_once() -> None:
    calls = []

    def counting_decode(token_ids: Sequence[int]) -> str:
        calls.append(tuple(token_ids))
        return decode(token_ids)

    commit_all(Row(row_spec(**ENDS), counting_decode), [*b"abc", EOS])

    assert calls == [tuple(b"abc")]


class TwoLetters:
    """A constraint whose answers are complete with their second token."""

    def __init__(self) -> None:
        self.num_tokens = 0

    @property
    def is_complete(self) -> bool:
        return self.num_tokens >= 2

    def allowed_ids(self) -> bytes:
        return bytes(8)

    def advance(self, token_id: int) -> None:
        self.num_tokens += 1


def test_inside_a_structure_a_stop_token_counts_only_once_the_structure_is_complete() -> None:
    result = ended(b"...", constraint=TwoLetters())

    assert (result.stop_details.type, result.stop_details.token_index, result.text) == ("stop_token", 2, "..")


def test_a_loop_counts_behind_the_reasoning_part_alone() -> None:
    rule = RepetitionDetection(max_pattern_size=2, min_pattern_size=1, min_count=3)
    thinking = Reasoning(**THINKING, is_open=True)

    def end_of(token_ids: bytes) -> StopDetails:
        asked = {"repetition_detection": rule, "reasoning": thinking, "end_tokens": {}, "max_tokens": len(token_ids)}
        return ended([*token_ids], **asked).stop_details

    assert (end_of(b"aaaa>aabbb").type, end_of(b"aaaa>aabbb").token_index) == ("repetition", 9)
    assert [end_of(token_ids).type for token_ids in (b"aaaaaa", b"aa>aac")] == ["max_tokens", "max_tokens"]
