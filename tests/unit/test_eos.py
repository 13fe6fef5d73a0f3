"""The EOS set: a table of real models' files and a table of mistakes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from tests.support.small_tokenizers import FakeTokenizer, gemma, gpt_oss, llama_3, qwen
from tests.support.waiting import DEADLINE_S

from mlxq.errors import EosError, ModelError
from mlxq_worker.model.eos import (
    CHAT_TEMPLATE,
    CONFIG,
    GENERATION_CONFIG,
    OPTION,
    TEXT_CONFIG,
    TOKENIZER,
    EosSet,
    EosToken,
    resolve_eos,
)

VOCAB_SIZE = 300_000


def plain(eos_token: str | None = None, unk_token: str | None = None) -> FakeTokenizer:
    """No chat; ids 0 to 9 are tokens, and the words "2" and "5" are tokens as well."""
    added = {"<unk>": 0, "<s>": 1, "</s>": 2, "<a>": 3, "<b>": 4, "<c>": 5, "<d>": 6, "<e>": 7}
    return FakeTokenizer(added=added, words={"2": 8, "5": 9}, eos_token=eos_token, unk_token=unk_token)


def resolve(
    config: Mapping[str, Any] | None = None,
    generation_config: Mapping[str, Any] | None = None,
    tokenizer: FakeTokenizer | None = None,
    extra: Sequence[int | str] = (),
    *,
    vocab_size: int = VOCAB_SIZE,
    allow_no_eos: bool = False,
) -> EosSet:
    return resolve_eos(
        tokenizer or plain(),
        config or {},
        generation_config or {},
        vocab_size=vocab_size,
        extra=extra,
        allow_no_eos=allow_no_eos,
    )


def sources(eos: EosSet) -> dict[int, tuple[str, ...]]:
    return {token.id: token.sources for token in eos.tokens}


@dataclass(frozen=True)
class Model:
    """What a model's files say, and the set that follows."""

    expected: dict[int, tuple[str, ...]]
    primary: int
    config: dict[str, Any] = field(default_factory=dict)
    generation_config: dict[str, Any] = field(default_factory=dict)
    tokenizer: FakeTokenizer = field(default_factory=plain)
    extra: tuple[int | str, ...] = ()
    chat_only: frozenset[int] = frozenset()


MODELS = {
    "Llama 3.1 Instruct": Model(
        config={"model_type": "llama", "vocab_size": 128256, "eos_token_id": [128001, 128008, 128009]},
        generation_config={"bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009]},
        tokenizer=llama_3(),
        expected={
            128001: (CONFIG, GENERATION_CONFIG),
            128008: (CONFIG, GENERATION_CONFIG),
            128009: (CONFIG, GENERATION_CONFIG, TOKENIZER, CHAT_TEMPLATE),
        },
        primary=128009,
    ),
    "gemma 3": Model(
        config={"model_type": "gemma3", "eos_token_id": [1, 106]},
        generation_config={"eos_token_id": [1, 106]},
        tokenizer=gemma(),
        expected={
            1: (CONFIG, GENERATION_CONFIG, TOKENIZER),
            106: (CONFIG, GENERATION_CONFIG, CHAT_TEMPLATE),
        },
        primary=1,
    ),
    "gemma with 50 in generation_config only": Model(
        config={"model_type": "gemma3", "eos_token_id": [1, 106]},
        generation_config={"eos_token_id": [1, 106, 50]},
        tokenizer=gemma(),
        expected={
            1: (CONFIG, GENERATION_CONFIG, TOKENIZER),
            106: (CONFIG, GENERATION_CONFIG, CHAT_TEMPLATE),
            50: (GENERATION_CONFIG,),
        },
        primary=1,
    ),
    "gpt-oss": Model(
        config={"model_type": "gpt_oss", "vocab_size": 201088, "eos_token_id": 200002},
        generation_config={"eos_token_id": [200002, 199999, 200012]},
        tokenizer=gpt_oss(),
        expected={
            200002: (CONFIG, GENERATION_CONFIG, TOKENIZER, CHAT_TEMPLATE),
            199999: (GENERATION_CONFIG,),
            200012: (GENERATION_CONFIG,),
        },
        primary=200002,
    ),
    "Qwen whose files list only <|endoftext|>": Model(
        config={"model_type": "qwen2", "eos_token_id": 151643},
        generation_config={"eos_token_id": 151643},
        tokenizer=qwen(),
        expected={151643: (CONFIG, GENERATION_CONFIG, TOKENIZER), 151645: (CHAT_TEMPLATE,)},
        primary=151643,
        chat_only=frozenset({151645}),
    ),
    "generation_config adds to config, and replaces nothing": Model(
        config={"eos_token_id": [5, 6]},
        generation_config={"eos_token_id": [5]},
        expected={5: (CONFIG, GENERATION_CONFIG), 6: (CONFIG,)},
        primary=5,
    ),
    "id 0": Model(
        config={"eos_token_id": 0},
        generation_config={"eos_token_id": 0},
        expected={0: (CONFIG, GENERATION_CONFIG)},
        primary=0,
    ),
    "a token's text": Model(config={"eos_token_id": "</s>"}, expected={2: (CONFIG,)}, primary=2),
    "nested lists": Model(
        config={"eos_token_id": [[5], [[6], "<e>"]]}, expected={5: (CONFIG,), 6: (CONFIG,), 7: (CONFIG,)}, primary=5
    ),
    "text_config": Model(
        config={"eos_token_id": None, "text_config": {"eos_token_id": [5, 6]}},
        expected={5: (TEXT_CONFIG,), 6: (TEXT_CONFIG,)},
        primary=5,
    ),
    "config and text_config": Model(
        config={"eos_token_id": 6, "text_config": {"eos_token_id": [5, 6]}},
        expected={6: (CONFIG, TEXT_CONFIG), 5: (TEXT_CONFIG,)},
        primary=6,
    ),
    "the tokenizer alone": Model(tokenizer=plain("</s>"), expected={2: (TOKENIZER,)}, primary=2),
    "the tokenizer's own is primary though config comes first": Model(
        config={"eos_token_id": [5]}, tokenizer=plain("</s>"), expected={5: (CONFIG,), 2: (TOKENIZER,)}, primary=2
    ),
    "one token as unk and as EOS": Model(
        config={"eos_token_id": "<|endoftext|>"},
        tokenizer=FakeTokenizer(added={"<|endoftext|>": 50256}, eos_token="<|endoftext|>", unk_token="<|endoftext|>"),
        expected={50256: (CONFIG, TOKENIZER)},
        primary=50256,
    ),
    "options: an id, digits, a text": Model(
        config={"eos_token_id": 5},
        extra=(6, "7", "</s>"),
        expected={5: (CONFIG,), 6: (OPTION,), 7: (OPTION,), 2: (OPTION,)},
        primary=5,
    ),
    "an option's digits are an id, though there is such a word": Model(
        extra=("5",), expected={5: (OPTION,)}, primary=5
    ),
    "an option that is known already": Model(
        config={"eos_token_id": 5}, extra=("<c>", "5"), expected={5: (CONFIG, OPTION)}, primary=5
    ),
    "an option makes a chat's turn end count for completions": Model(
        config={"eos_token_id": 151643},
        tokenizer=qwen(),
        extra=("<|im_end|>",),
        expected={151643: (CONFIG, TOKENIZER), 151645: (CHAT_TEMPLATE, OPTION)},
        primary=151643,
    ),
}


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())
def test_the_set_is_the_union_of_all_sources(model: Model) -> None:
    eos = resolve(model.config, model.generation_config, model.tokenizer, model.extra)

    assert sources(eos) == model.expected
    assert list(sources(eos)) == list(model.expected), "in the order they were found"
    assert eos.primary_id == model.primary
    assert eos.chat_only == model.chat_only


MISTAKES = {
    "a float": ({"eos_token_id": 2.0}, "config.json:eos_token_id: 2.0 is a float"),
    "a bool": ({"eos_token_id": True}, "config.json:eos_token_id: True is a bool"),
    "a bool in a list": ({"eos_token_id": [5, False]}, "config.json:eos_token_id: False is a bool"),
    "an object": ({"eos_token_id": {"id": 5}}, "is a dict"),
    "a negative id": ({"eos_token_id": -1}, "config.json:eos_token_id: id -1 is outside"),
    "the first id past the vocabulary": (
        {"eos_token_id": 10},
        "id 10 is outside the model's vocabulary, which ends at 9",
    ),
    "digits in quotes": ({"eos_token_id": "2"}, 'config.json:eos_token_id: "2" is a string'),
    "an empty string": ({"eos_token_id": ""}, "the tokenizer has no token ''"),
    "a typo": (
        {"eos_token_id": "</S>"},
        "config.json:eos_token_id: the tokenizer has no token '</S>'; did you mean '</s>'?",
    ),
    "the unk token itself": ({"eos_token_id": "<unk>"}, "the tokenizer has no token '<unk>'"),
    "a typo in text_config": ({"text_config": {"eos_token_id": "nope"}}, "config.json:text_config.eos_token_id: "),
}


@pytest.mark.parametrize(("config", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_value_that_cannot_be_right_is_an_error_that_names_its_source(config: dict[str, Any], message: str) -> None:
    with pytest.raises(EosError) as caught:
        resolve(config, tokenizer=plain(unk_token="<unk>"), vocab_size=10)

    assert message in str(caught.value)


def test_a_mistake_in_generation_config_is_told_from_one_in_config() -> None:
    with pytest.raises(EosError, match=r"^generation_config\.json:eos_token_id: "):
        resolve({"eos_token_id": 5}, {"eos_token_id": [5, 1.5]})


@pytest.mark.parametrize("option", ["typo", "999999", "-1", 999999])
def test_a_wrong_option_is_an_error_that_names_the_option(option: int | str) -> None:
    with pytest.raises(EosError, match=r"^--extra-eos-token: "):
        resolve({"eos_token_id": 5}, tokenizer=plain(unk_token="<unk>"), extra=[option])


def test_a_tokenizer_that_lacks_its_own_eos_is_an_error_instead_of_the_unk_id() -> None:
    tokenizer = plain(eos_token="<|missing|>", unk_token="<unk>")
    assert tokenizer.eos_token_id == tokenizer.unk_token_id

    with pytest.raises(EosError, match=r"^tokenizer: the tokenizer has no token '<\|missing\|>'"):
        resolve({"eos_token_id": 5}, tokenizer=tokenizer)


def test_a_model_without_any_eos_is_an_error_that_names_both_ways_out() -> None:
    with pytest.raises(ModelError, match=r"--extra-eos-token.*--allow-no-eos"):
        resolve({"eos_token_id": None}, {"eos_token_id": []})


def test_no_eos_at_all_can_be_allowed() -> None:
    eos = resolve(allow_no_eos=True)

    assert eos == EosSet(tokens=(), primary_id=None, chat_only=frozenset())
    assert eos.ids(chat=True) == frozenset()


def test_allowing_no_eos_does_not_allow_a_wrong_one() -> None:
    with pytest.raises(EosError):
        resolve({"eos_token_id": 1.0}, allow_no_eos=True)


def test_a_chats_turn_end_ends_no_completion() -> None:
    eos = resolve({"eos_token_id": 151643}, tokenizer=qwen())

    assert eos.ids(chat=True) == {151643, 151645}
    assert eos.ids(chat=False) == {151643}


def test_every_member_has_its_text() -> None:
    eos = resolve({"eos_token_id": [151643, 151700]}, tokenizer=qwen())

    assert eos.tokens[0] == EosToken(151643, "<|endoftext|>", (CONFIG, TOKENIZER))
    assert [token.token for token in eos.tokens] == ["<|endoftext|>", "<id 151700>", "<|im_end|>"]


def test_members_are_found_by_their_ids_in_the_order_of_the_set() -> None:
    eos = resolve({"eos_token_id": [151700, 151643]}, tokenizer=qwen())

    assert [token.id for token in eos.members(frozenset({151643, 151700, 7}))] == [151700, 151643]


def test_a_turn_end_that_the_model_cannot_produce_is_left_out() -> None:
    eos = resolve({"eos_token_id": 151643}, tokenizer=qwen(), vocab_size=151645)

    assert eos.ids(chat=True) == {151643}


def test_resolving_an_eos_set_needs_no_mlx_and_no_transformers() -> None:
    check = "import sys, mlxq_worker.model.eos; print({'mlx', 'mlx_lm', 'transformers', 'numpy'} & set(sys.modules))"

    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True, timeout=DEADLINE_S)

    assert done.stdout.strip() == "set()"
