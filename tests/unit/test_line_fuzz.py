"""Thousands of broken request lines: each is read or refused, none does anything else to whoever reads it.

The lines are those of the corpus, changed at random but seeded: values swapped for hostile ones, fields moved, doubled
and taken away, bytes flipped, cut and put in. `test_openai_fuzz` looks for the same by Hypothesis, in fewer examples.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.thorough import sample_of

from mlxq.contract import CHAT, COMPLETIONS
from mlxq.errors import RequestError
from mlxq.files.input import BadLine, read_requests
from mlxq.requests import openai
from mlxq.requests.fields import FIELDS
from mlxq.requests.openai import LINE_FIELDS, ParsedLine

NUM_LINES = sample_of(50_000, 5_000)
CORPUS = Path(__file__).parents[1] / "corpus"
SEEDS = tuple(
    json.loads(entry)["line"]
    for path in sorted(CORPUS.glob("*.jsonl"))
    for entry in path.read_text(encoding="utf-8").splitlines()
)
HERE = "the hostile value goes here"
VALUES = (
    *(b"null", b"true", b"0", b"1", b"-1", b"-0", b"-0.0", b"0.5", b"1e308", b"5e-324", b'""', b'"x"', b"[]", b"{}"),
    *(b"9" * 400, b"-9223372036854775809", b"18446744073709551616", b"4294967296", b"1.0", rb'"\u0000"', b'"\x7f"'),
    *(rb'"\ud83d\ude00"', '"\u2028\ufeff"'.encode(), b'"' + b"x" * 2000 + b'"', b"[null]", b"[[]]", b"[1,2,3]"),
    *(b'["a","b"]', b'["a",1]', b'{"7":1}', b'{"7":1,"7":2}', b'{"":null}', b'{"a":{}}', b"[" * 99 + b"]" * 99),
    *(b"[" * 200 + b"]" * 200, b'{"a":' * 200 + b"1" + b"}" * 200),
)
BROKEN = (
    *(b"1e999", b"-1e999", b"NaN", b"Infinity", b"-Infinity", b"9" * 5000, b"01", b"1.", b"+1", b"0x10", b"1_000"),
    *(b"True", b"None", b"'x'", rb'"\ud800"', rb'"\udc00\ud800"', b'"\xed\xa0\x80"', b'"\xff"', b'"\xc0\x80"', b""),
    *(b'"a\tb"', b'"a\r"', b'"a\x00"', b"[0," * 20, b'"open', b"[" * 20_000),
)
SPLICES = (
    *(b"\xef\xbb\xbf", b"\xff\xfe", b"\r\n", b"\r", b"\x00", b"\xff", b",", b"}", b"]", b'"', b"\\", b"//", b"\x1a"),
    *(b" ", *VALUES, *BROKEN),
)


def mutants(seed: int, count: int) -> Iterator[bytes]:
    """Changed lines, some of them more than once; they may hold line breaks."""
    rng = random.Random(seed)
    for _ in range(count):
        line = with_hostile_value(rng, rng.choice(SEEDS))
        for _ in range(rng.choice((0, 0, 0, 1, 2))):
            line = rng.choice(BYTE_CHANGES)(rng, line)
        yield line


# --- Changes to the structure ---------------------------------------------------------------------------------


def with_hostile_value(rng: random.Random, line: Any) -> bytes:
    """The line as JSON after one to three changes to its values and names."""
    changed = json.loads(json.dumps(line))
    for _ in range(rng.choice((1, 1, 2, 3))):
        if containers := list(containers_in(changed)):
            rng.choice(STRUCTURE_CHANGES)(rng, rng.choice(containers))
    text = json.dumps(changed, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    values = BROKEN if rng.random() < 0.1 else VALUES
    return text.replace(json.dumps(HERE).encode(), rng.choice(values))


def containers_in(value: Any) -> Iterator[Any]:
    """Every list and object in a value that has something in it, itself included."""
    if isinstance(value, dict | list) and value:
        yield value
        for inner in value.values() if isinstance(value, dict) else value:
            yield from containers_in(inner)


def place_in(rng: random.Random, container: Any) -> Any:
    return rng.choice(list(container) if isinstance(container, dict) else range(len(container)))


def replace(rng: random.Random, container: Any) -> None:
    container[place_in(rng, container)] = HERE


def remove(rng: random.Random, container: Any) -> None:
    del container[place_in(rng, container)]


def wrap(rng: random.Random, container: Any) -> None:
    place = place_in(rng, container)
    container[place] = rng.choice(([container[place]], {"text": container[place]}, [container[place]] * 2))


def borrow(rng: random.Random, container: Any) -> None:
    """A value of another line, wherever it stood there."""
    donor = rng.choice(list(containers_in(rng.choice(SEEDS))))
    container[place_in(rng, container)] = json.loads(json.dumps(donor[place_in(rng, donor)]))


def add_field(rng: random.Random, container: Any) -> None:
    if isinstance(container, dict):
        container[rng.choice((*FIELDS, *LINE_FIELDS, "type", "text", "7", "", "\ud800", "strange"))] = HERE


def set_target(rng: random.Random, container: Any) -> None:
    if isinstance(container, dict):
        container["url"] = rng.choice((CHAT, COMPLETIONS, "/v1/embeddings", HERE))


STRUCTURE_CHANGES: tuple[Callable[[random.Random, Any], None], ...] = (
    *(replace, replace, replace, add_field, add_field),
    *(remove, wrap, borrow, set_target),
)


# --- Changes to the bytes -------------------------------------------------------------------------------------


def span_in(rng: random.Random, line: bytes, length: int) -> tuple[int, int]:
    start = rng.randint(0, len(line))
    return start, min(len(line), start + rng.randint(1, length))


def flip(rng: random.Random, line: bytes) -> bytes:
    at, end = span_in(rng, line, 1)
    return line[:at] + rng.randbytes(end - at) + line[end:]


def cut(rng: random.Random, line: bytes) -> bytes:
    start, end = span_in(rng, line, 40)
    return line[:start] + line[end:]


def double(rng: random.Random, line: bytes) -> bytes:
    start, end = span_in(rng, line, 40)
    return line[:end] + line[start:]


def end_early(rng: random.Random, line: bytes) -> bytes:
    return line[: rng.randint(0, len(line))]


def splice(rng: random.Random, line: bytes) -> bytes:
    at = rng.choice((0, len(line), rng.randint(0, len(line))))
    return line[:at] + rng.choice(SPLICES) + line[at:]


BYTE_CHANGES: tuple[Callable[[random.Random, bytes], bytes], ...] = (flip, cut, double, end_early, splice)


# --- What must come of them -----------------------------------------------------------------------------------


def assert_worker_agrees(line: ParsedLine) -> None:
    travelled = json.loads(json.dumps(line.payload))
    assert openai.parse_object(travelled, default_custom_id="other") == line


def check_refusal(error: RequestError) -> None:
    assert 0 < len(error.message) < 300
    assert 400 <= error.status_code < 500


def outcome(line: bytes) -> str:
    """``accepted`` or the code of the refusal. Any other exception fails the test."""
    try:
        parsed = openai.parse_line(line, default_custom_id="d")
    except RequestError as error:
        check_refusal(error)
        return error.code
    assert_worker_agrees(parsed)
    return "accepted"


@pytest.mark.slow
@pytest.mark.thorough
def test_thousands_of_broken_lines_are_each_read_or_refused() -> None:
    outcomes: Counter[str] = Counter()

    for line in mutants(seed=4, count=NUM_LINES):
        try:
            outcomes[outcome(line)] += 1
        except Exception as error:
            raise AssertionError(f"raised by {line[:1000]!r}") from error

    assert outcomes.total() == NUM_LINES
    assert min(outcomes["accepted"], outcomes["invalid_json"], outcomes["invalid_type"]) > NUM_LINES / 50, outcomes


@pytest.mark.slow
def test_a_file_of_broken_lines_gives_one_answer_for_each_that_is_not_blank(tmp_path: Path) -> None:
    # given lines of which some hold line breaks, and the marks that only count at the start
    content = b"\r\n".join([b"\xef\xbb\xbf{}", *mutants(seed=5, count=5_000)])
    path = tmp_path / "in.jsonl"
    path.write_bytes(content)

    # when
    items = list(read_requests(path))

    # then
    assert len(items) == sum(bool(line.strip()) for line in content.split(b"\n"))
    assert {type(item) for item in items} == {ParsedLine, BadLine}
