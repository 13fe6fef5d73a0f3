"""Of what pydantic and zod write of types, only what can't be enforced is refused, and every answer fits its schema."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from typing import Any

import pytest
from jsonschema import Draft4Validator, Draft202012Validator
from jsonschema.validators import validator_for
from tests.support.held_answers import demo, eos_ids, made, request
from tests.support.random_walks import corpus_schemas, walk
from tests.support.thorough import sample_of
from tests.support.wild_schemas import wild_schema

from mlxq.errors import RequestError
from mlxq_worker.engine.constraint import Constraint
from mlxq_worker.schema.rule import guided
from mlxq_worker.text.compiler import TokenizerData, compile_grammar
from mlxq_worker.text.structure import GrammarConstraint, GrammarMasks

CORPUS = corpus_schemas()
REFUSED = {
    "set[str]": "uniqueItems",
    "frozenset[int]": "uniqueItems",
    "set of Literals": "uniqueItems",
    "zod 3: set": "uniqueItems",
    "zod 3, named: set": "uniqueItems",
    "dict of at least two": "minProperties 2",
    "zod 4: never": "schema is false",
    "zod 4, draft 7: never": "schema is false",
    "zod 3: never": "schema is false",
    "zod 4: duration": "pattern: look-around",
    "zod 4, draft 7: duration": "pattern: look-around",
    "zod 4, input: xor of objects": "oneOf: .*coerce_one_of",
}
"""What can't be enforced, by name, and what the refusal says."""
NUM_WILD = sample_of(1800, 150)
"""Of 1,800 more than 500 are accepted."""
WALKS = sample_of(4, 1)


@contextmanager
def refusals() -> Iterator[list[str]]:
    """The messages of what is refused inside."""
    found: list[str] = []
    try:
        yield found
    except RequestError as error:
        found.append(error.message)


def test_the_corpus_is_large_enough_and_of_both_makers() -> None:
    assert len(CORPUS) >= 400
    assert sum(name.startswith("zod") for name in CORPUS) >= 100
    assert sum(not name.startswith("zod") for name in CORPUS) >= 100


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_generator_writes_and_nothing_can_enforce_is_refused_by_name(name: str) -> None:
    with refusals() as found:
        made(request("json_schema", CORPUS[name]))

    assert [re.search(REFUSED[name], message) is not None for message in found] == [True]


def test_all_else_that_generators_write_is_accepted() -> None:
    refused: dict[str, str] = {}
    for name in CORPUS.keys() - REFUSED.keys():
        with refusals() as found:
            made(request("json_schema", CORPUS[name]))
        refused |= dict.fromkeys([name] * len(found), "".join(found))

    assert refused == {}


def violations(schema: dict[str, Any], text: str) -> list[str]:
    """What is wrong with an answer by its schema."""
    try:
        kind = validator_for(schema, default=Draft202012Validator)
        if not kind(kind.META_SCHEMA).is_valid(schema):
            kind = (
                Draft4Validator  # zod-to-json-schema can write its `exclusiveMinimum: true` under a later draft's name
            )
        return [error.message for error in kind(schema).iter_errors(json.loads(text))]
    except (re.error, RecursionError):  # the validator knows no \p, and goes round where a schema refers to itself
        return []


@pytest.mark.slow
@pytest.mark.thorough
def test_every_walk_through_what_generators_write_ends_in_an_answer_that_fits() -> None:
    random = Random(7)
    wrong: dict[str, Any] = {}
    num_complete = 0
    names = sorted(CORPUS.keys() - REFUSED.keys())[:: sample_of(1, 2)]
    for name in names:
        for _ in range(WALKS):
            end = walk(made(request("json_schema", CORPUS[name])), random)
            num_complete += end.end == "complete"
            if end.end == "dead" or (end.end == "complete" and violations(CORPUS[name], end.text)):
                wrong[name] = end

    assert wrong == {}
    assert num_complete > len(names) * WALKS / 2


@pytest.mark.slow
@pytest.mark.thorough
def test_no_walk_through_a_wild_schema_comes_to_a_dead_end() -> None:
    wrong: dict[int, Any] = {}
    num_accepted = num_complete = 0
    for seed in range(NUM_WILD):
        random = Random(seed)
        schema = wild_schema(random)
        with refusals() as refused:
            made(request("json_schema", schema))
        if refused:
            continue
        num_accepted += 1
        for _ in range(WALKS):
            end = walk(made(request("json_schema", schema)), random)
            num_complete += end.end == "complete"
            if end.end == "dead" or (end.end == "complete" and violations(schema, end.text)):
                wrong[seed] = (end, schema)

    assert wrong == {}
    assert num_accepted > sample_of(500, NUM_WILD / 3)
    assert num_complete > num_accepted * WALKS / 2


# --- They can fail --------------------------------------------------------------------------------------------


def as_it_stands(schema: dict[str, Any]) -> Constraint:
    """The constraint that the compiler makes of a schema that nobody has looked at."""

    tokenizer = TokenizerData.of(demo().tokenizer, eos_ids(), demo().vocab_size).build()
    masks = GrammarMasks(tokenizer, eos_ids(), demo().vocab_size)
    matcher = compile_grammar(tokenizer, f"start: %json {guided(schema, {'whitespace_flexible': False})}")
    return GrammarConstraint(matcher, masks.bits(eos_ids()), None, masks)


def test_a_walk_finds_the_dead_end_of_a_schema_that_nobody_has_looked_at() -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "null"}},
        "patternProperties": {"^a$": {"type": "null"}},
        "additionalProperties": False,
    }

    assert "dead" in {walk(as_it_stands(schema), Random(seed)).end for seed in range(20)}
