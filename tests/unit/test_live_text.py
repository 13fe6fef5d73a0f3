"""What is told of an answer while it grows: the chunks join to exactly the answer that a batch line would have.

Rows, the reader of finished answers and the chunks that clients get are the real ones; the vocabularies are small.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from random import Random

import pytest
from tests.support.row_specs import row_spec
from tests.support.small_vocabularies import NUM_PIECES, SENTENCEPIECE, decode_byte_level, decode_sentencepiece

from mlxq.contract import CHAT, Request, Sampling
from mlxq.serve.live.growing import Diverged, GrowingAnswer
from mlxq_worker.engine.api import Decode, RowPiece, RowResult, RowSpec, Streaming
from mlxq_worker.engine.reasoning import Reasoning
from mlxq_worker.engine.rows.live_text import num_held_back
from mlxq_worker.engine.rows.row import Row
from mlxq_worker.text.answer_parts import AnswerReader

EOS = 300
THINK, END_THINK = (301,), (302, 303)
SPELLED = {301: "<think>", 302: "</thi", 303: "nk>"}
ALPHABET = ["a", "b", "ab", " ", "\n", "\n\n", "é", "ß", "日", "本語", "🙂", "👩‍👩‍👧", "\u0301", ". ", "STOP", "<|"]
NUM_CASES = 500


def with_markers(decode: Decode, *, visible: bool) -> Decode:
    """A vocabulary with end token and markers, which have a text or none."""

    def decode_all(token_ids: Sequence[int]) -> str:
        text, run = "", list[int]()
        for token_id in [*token_ids, EOS]:
            if token_id < EOS:
                run.append(token_id)
                continue
            text += decode(run) + (SPELLED.get(token_id, "") if visible else "")
            run.clear()
        return text

    return decode_all


def byte_level(text: str, random: Random) -> list[int]:
    return list(text.encode())


def sentencepiece(text: str, random: Random) -> list[int]:
    """A piece where there is one, else bytes, now and then although there is one."""
    ids: list[int] = []
    for character in text.replace(" ", "▁"):
        if character in SENTENCEPIECE and random.random() < 0.7:
            ids.append(SENTENCEPIECE.index(character))
        else:
            ids += [NUM_PIECES + byte for byte in character.replace("▁", " ").encode()]
    return ids


Spell = Callable[[str, Random], list[int]]
VOCABULARIES: dict[str, tuple[Spell, Decode, frozenset[int]]] = {
    "byte-level": (byte_level, decode_byte_level, frozenset()),
    "byte-fallback": (sentencepiece, decode_sentencepiece, frozenset(range(NUM_PIECES, NUM_PIECES + 256))),
}


def any_text(random: Random, most: int = 14) -> str:
    return "".join(random.choices(ALPHABET, k=random.randint(0, most)))


def stop_strings(random: Random, text: str) -> tuple[str, ...]:
    """Some that are in the text, and some that only begin like something in it."""
    strings = set()
    for _ in range(random.randint(0, 3)):
        start = random.randrange(len(text) + 1)
        cut = text[start : start + random.randint(1, 4)]
        strings.add(random.choice([cut, cut + random.choice(ALPHABET), random.choice(ALPHABET)]))
    return tuple(sorted(strings - {""}))


def streamed(spec: RowSpec, token_ids: Sequence[int], decode: Decode) -> tuple[list[list[RowPiece]], RowResult]:
    """What is told after each token, and how the row ends."""
    row = Row(spec, decode)
    row.admit(0.0)
    told = []
    for token_id in token_ids:
        row.commit(token_id, 1.0)
        told.append(list(row.take_pieces()))
        if row.result is not None:
            return told, row.result
    row.abort("cancelled", 2.0)
    assert row.result is not None
    return told, row.result


def chunks_of(told: Sequence[Sequence[RowPiece]], content: str, reasoning: str | None) -> Iterator[dict[str, str]]:
    """The deltas of all chunks."""
    growing = GrowingAnswer(CHAT, "id", created=0, model="m")
    message = {"content": content} | ({} if reasoning is None else {"reasoning_content": reasoning})
    body = {"model": "m", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
    for pieces in told:
        for chunk in growing.grow([(piece.row_id.index, piece.part, piece.start, piece.text) for piece in pieces]):
            yield chunk["choices"][0]["delta"]
    for chunk in growing.end(body):
        yield chunk["choices"][0]["delta"]


def joined(deltas: Sequence[dict[str, str]], name: str) -> str:
    return "".join(delta.get(name) or "" for delta in deltas)


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_the_chunks_of_any_answer_join_to_the_answer_of_a_batch(vocabulary: str) -> None:
    spell, plain_decode, unsettled_ids = VOCABULARIES[vocabulary]
    num_told_early = num_stopped = num_thoughts = 0
    for case in range(NUM_CASES):
        random = Random(f"{vocabulary}-{case}")
        decode = with_markers(plain_decode, visible=random.random() < 0.5)
        text, thought = any_text(random), any_text(random, 6)
        is_open = random.random() < 0.5
        reasoning = Reasoning(starts=(THINK,), ends=(END_THINK,), is_open=is_open) if random.random() < 0.5 else None
        ids = spell(text, random)
        if reasoning is not None and random.random() < 0.8:
            start = [] if is_open and random.random() < 0.7 else THINK
            ids = [*start, *spell(thought, random), *END_THINK, *ids]
        spec = row_spec(
            stop=stop_strings(random, text),
            include_stop_str_in_output=random.random() < 0.3,
            min_tokens=random.choice([0, 0, 5]),
            max_tokens=random.choice([len(ids) + 1, random.randint(1, len(ids) + 1)]),
            end_tokens={EOS: "<eos>"},
            eos_ids=frozenset({EOS}),
            reasoning=reasoning,
        )
        _, alone = streamed(spec, [*ids, EOS], decode)

        told, result = streamed(replace(spec, streaming=Streaming(unsettled_ids=unsettled_ids)), [*ids, EOS], decode)

        assert result == alone
        request = Request(custom_id="c", endpoint=CHAT, sampling=Sampling(), content_hash="", messages=({},))
        parts = AnswerReader(None, decode, None).read(request, spec, result)  # type: ignore[arg-type]
        deltas = list(chunks_of(told, parts.text, parts.reasoning_content))
        assert joined(deltas, "content").encode() == parts.text.encode()
        assert joined(deltas, "reasoning_content").encode() == (parts.reasoning_content or "").encode()
        num_told_early += any(map(bool, told))
        num_stopped += result.stop_details.type == "stop_string"
        num_thoughts += bool(parts.reasoning_content)
    assert min(num_told_early, num_stopped, num_thoughts) > NUM_CASES // 20


@pytest.mark.parametrize(
    ("text", "strings", "held"),
    [
        ("abc", (), 0),
        ("abc", ("d",), 0),
        ("abST", ("STOP",), 2),
        ("abSTOP", ("STOP",), 0),
        ("aaa", ("aaaa", "ab"), 3),
        ("a\n", ("\n\n",), 1),
        ("👩‍", ("👩‍👧",), 2),
    ],
)
def test_what_may_become_a_stop_string_is_held_back(text: str, strings: tuple[str, ...], held: int) -> None:
    assert num_held_back(text, strings) == held


def test_text_is_told_as_soon_as_it_is_settled() -> None:
    spec = row_spec(streaming=Streaming(), stop=("fun",))

    told, _ = streamed(spec, list("a é fu zfun".encode()), decode_byte_level)

    texts = ["".join(piece.text for piece in pieces) for pieces in told]
    assert texts == ["a", " ", "", "é", " ", "", "", "fu ", "z", "", "", ""]


def test_an_answer_that_was_begun_again_goes_on_where_it_was() -> None:
    growing = GrowingAnswer(CHAT, "id", created=0, model="m")
    told = [*growing.grow([(0, "content", 0, "Hel")]), *growing.grow([(0, "content", 0, "H")])]
    told += [*growing.grow([(0, "content", 1, "ello")]), *growing.grow([(0, "content", 5, " you")])]

    assert joined([chunk["choices"][0]["delta"] for chunk in told], "content") == "Hello you"


def test_a_gap_is_closed_by_the_whole_answer() -> None:
    pieces = [RowPiece(row_id=row_spec().row_id, part="content", start=start, text="ab") for start in (0, 4, 6)]

    assert joined(list(chunks_of([pieces], "abXXabab", None)), "content") == "abXXabab"


def test_an_answer_that_came_out_differently_is_not_passed_off_as_the_one_that_was_told() -> None:
    piece = RowPiece(row_id=row_spec().row_id, part="content", start=0, text="Yes")

    with pytest.raises(Diverged):
        list(chunks_of([[piece]], "No", None))
