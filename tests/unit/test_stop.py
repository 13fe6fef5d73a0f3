"""Text that arrives in tokens, and stop strings in it: nothing may depend on where the tokens cut."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate

from hypothesis import example, given
from hypothesis import strategies as st
from tests.support.small_vocabularies import (
    BYTE_LEVEL,
    NUM_PIECES,
    SENTENCEPIECE,
    decode_byte_level,
    decode_sentencepiece,
)

from mlxq_worker.engine.api import Decode
from mlxq_worker.engine.rows.stop import MAX_PENDING, StopMatch, StopScanner, TextStream


def stream_pieces(decode: Decode, token_ids: Sequence[int]) -> list[str]:
    stream = TextStream(decode)
    return [*[stream.push(token_id) for token_id in token_ids], stream.flush()]


def byte_tokens(character: str) -> list[int]:
    return [NUM_PIECES + byte for byte in character.encode()]


byte_level_ids = st.lists(st.integers(0, len(BYTE_LEVEL) - 1)) | st.text().map(lambda text: list(text.encode()))
sentencepiece_ids = st.lists(
    st.integers(0, NUM_PIECES - 1).map(lambda token_id: [token_id]) | st.characters(codec="utf-8").map(byte_tokens)
).map(lambda groups: [token_id for group in groups for token_id in group])


class TestTextStream:
    @given(token_ids=byte_level_ids)
    def test_the_pieces_join_to_the_decoded_whole(self, token_ids: list[int]) -> None:
        assert "".join(stream_pieces(decode_byte_level, token_ids)) == decode_byte_level(token_ids)

    @given(token_ids=sentencepiece_ids)
    @example(token_ids=byte_tokens("🙂"))
    def test_they_do_so_for_a_decoder_with_byte_tokens_that_strips_the_first_space(self, token_ids: list[int]) -> None:
        assert "".join(stream_pieces(decode_sentencepiece, token_ids)) == decode_sentencepiece(token_ids)

    @given(token_ids=byte_level_ids)
    def test_no_piece_is_ever_taken_back(self, token_ids: list[int]) -> None:
        pieces = stream_pieces(decode_byte_level, token_ids)

        for text in accumulate(pieces[:-1]):
            assert decode_byte_level(token_ids).startswith(text)

    def test_a_split_character_is_held_back_until_its_last_byte(self) -> None:
        assert stream_pieces(decode_byte_level, list("€!".encode())) == ["", "", "€", "!", ""]
        assert stream_pieces(decode_sentencepiece, byte_tokens("€")) == ["", "", "€", ""]

    def test_text_before_a_split_character_is_not_held_back(self) -> None:
        cut_inside = BYTE_LEVEL.index(b"\xaca")

        assert stream_pieces(decode_byte_level, [0xE2, 0x82, cut_inside, 0xC3, 0xA9]) == ["", "", "€a", "", "é", ""]
        assert stream_pieces(decode_byte_level, [*b"a", BYTE_LEVEL.index("é".encode()), 0xC3]) == [
            "a",
            "é",
            "",
            "\ufffd",
        ]

    def test_an_unfinished_character_comes_out_as_a_replacement_at_the_end(self) -> None:
        assert stream_pieces(decode_byte_level, [0x61, 0xE2, 0x82]) == ["a", "", "", "\ufffd"]

    def test_special_tokens_give_no_text_and_break_no_character(self) -> None:
        special = BYTE_LEVEL.index(b"")

        assert stream_pieces(decode_byte_level, [special, 0xC3, special, 0xA9, special]) == ["", "", "", "é", "", ""]

    def test_spaces_of_a_sentencepiece_decoder_stay_where_they_are(self) -> None:
        hello, world, space = (SENTENCEPIECE.index(token) for token in ("▁Hello", "▁world", "▁"))

        assert stream_pieces(decode_sentencepiece, [hello, world, space, hello]) == [
            "Hello",
            " world",
            " ",
            " Hello",
            "",
        ]

    def test_a_push_decodes_only_a_short_window(self) -> None:
        longest = 0

        def decode(token_ids: Sequence[int]) -> str:
            nonlocal longest
            longest = max(longest, len(token_ids))
            return decode_byte_level(token_ids)

        stream_pieces(decode, list("naïve café, 5 €. ".encode() * 20))

        assert longest <= 6


# Few letters, so that matches, overlaps and near misses are common.
short_texts = st.text(alphabet="ab", max_size=3)
stop_strings = st.lists(st.text(alphabet="ab", min_size=1, max_size=4), min_size=1, max_size=3)


def matches(text: str, strings: Sequence[str]) -> list[StopMatch]:
    """Every occurrence of every string, the one that completes first in front, the longest of several first."""
    found = [
        StopMatch(string, start, start + len(string))
        for string in strings
        for start in range(len(text))
        if text.startswith(string, start)
    ]
    return sorted(found, key=lambda match: (match.end, match.start))


def scan(pieces: Iterable[tuple[str, bool]], strings: Sequence[str]) -> tuple[StopMatch | None, StopScanner]:
    scanner = StopScanner(strings)
    for piece, armed in pieces:
        if match := scanner.push(piece, armed=armed):
            return match, scanner
    return None, scanner


class TestStopScanner:
    @given(pieces=st.lists(short_texts), strings=stop_strings)
    def test_the_match_is_the_same_however_the_text_is_cut(self, pieces: list[str], strings: list[str]) -> None:
        text = "".join(pieces)

        match, _ = scan([(piece, True) for piece in pieces], strings)

        assert match == next(iter(matches(text, strings)), None)

    @given(pieces=st.lists(short_texts), strings=stop_strings)
    def test_the_text_before_a_match_contains_no_stop_string(self, pieces: list[str], strings: list[str]) -> None:
        match, scanner = scan([(piece, True) for piece in pieces], strings)

        before = scanner.text if match is None else scanner.text[: match.start]

        assert not any(string in before for string in strings)
        assert match is None or scanner.text[match.start : match.end] == match.string

    @given(pieces=st.lists(st.tuples(short_texts, st.booleans())), strings=stop_strings)
    def test_strings_that_complete_in_an_unarmed_piece_do_not_count(
        self, pieces: list[tuple[str, bool]], strings: list[str]
    ) -> None:
        text = "".join(piece for piece, _ in pieces)
        armed_characters = [armed for piece, armed in pieces for _ in piece]
        counting = [match for match in matches(text, strings) if armed_characters[match.end - 1]]

        match, _ = scan(pieces, strings)

        assert match == next(iter(counting), None)

    def test_the_string_that_completes_first_wins_over_one_that_begins_earlier(self) -> None:
        assert StopScanner(["abcd", "c"]).push("abcd") == StopMatch("c", 2, 3)

    def test_of_strings_that_complete_together_the_longest_wins_in_any_order(self) -> None:
        assert StopScanner(["b", "ab"]).push("xab") == StopMatch("ab", 1, 3)
        assert StopScanner(["ab", "b"]).push("xab") == StopMatch("ab", 1, 3)

    def test_a_match_may_begin_in_an_unarmed_piece(self) -> None:
        scanner = StopScanner(["ab"])

        assert scanner.push("ab a", armed=False) is None
        assert scanner.push("b") == StopMatch("ab", 3, 5)


def test_a_push_costs_the_same_however_long_the_noise_lasts() -> None:
    longest = 0

    def decode_nothing(token_ids: Sequence[int]) -> str:
        nonlocal longest
        longest = max(longest, len(token_ids))
        return "\ufffd" * sum(token_id == 1 for token_id in token_ids)

    for token_id, kind in ((0, "special"), (1, "undecodable")):
        stream = TextStream(decode_nothing)
        text = "".join(stream.push(token_id) for _ in range(1_000)) + stream.flush()

        assert longest <= 2 * MAX_PENDING, kind
        assert text == "\ufffd" * 1_000 * token_id


def test_what_is_passed_over_is_no_part_of_a_stop_string() -> None:
    scanner = StopScanner(("ab", "b", "bc"))

    scanner.push("x", armed=False)
    scanner.pass_over("ab a")

    assert scanner.push("bc") == StopMatch("b", 5, 6)
    assert scanner.text == "xab abc"
