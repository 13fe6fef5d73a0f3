"""openai-harmony reads the same messages out of gpt-oss' answers as we do, and the calls that we write.

Its vocabulary is a file that it would fetch; the package bpe-openai has the same. Of a final answer that is constrained
it takes the constraint for a recipient, which is left out here.
"""

from __future__ import annotations

import base64
import json
import warnings
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai_harmony import HarmonyEncoding, HarmonyEncodingName, Role, load_harmony_encoding

from mlxq_worker.dialects.calls import Call
from mlxq_worker.dialects.families.harmony import HARMONY, messages

NUM_TOKENS = 199_998


@pytest.fixture(scope="module")
def encoding(tmp_path_factory: pytest.TempPathFactory) -> HarmonyEncoding:
    path = tmp_path_factory.mktemp("harmony")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own imports
        import bpe_openai
    vocabulary = bpe_openai.get_encoding("o200k_base")
    lines = (
        f"{base64.b64encode(vocabulary.decode_single_token_bytes(rank)).decode()} {rank}\n"
        for rank in range(NUM_TOKENS)
    )
    (path / "o200k_base.tiktoken").write_text("".join(lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_ENCODINGS_BASE", str(path))
        return load_harmony_encoding(HarmonyEncodingName.HARMONY_GPT_OSS)


TEXTS = st.sampled_from(
    ["Hi.", "two\nlines", "to=functions.x", "json", "São 北京 🌧", "<b>&", " lead", "trail ", "analysis"]
)
BODIES = st.sampled_from(['{"city": "Paris"}', "{}", "print(1)", '{"q": "a\\nb <|x"}'])
RECIPIENTS = st.sampled_from(["functions.get_weather", "functions.now", "browser.search", "browser.open", "python"])
CONSTRAINTS = st.sampled_from(["", "<|constrain|>json", " <|constrain|>json", " json", " code"])


@st.composite
def said(draw: st.DrawFn) -> str:
    """One message, without what stands before and behind it."""
    channel = draw(st.sampled_from(["analysis", "commentary"]))
    recipient, constraint = draw(RECIPIENTS), draw(CONSTRAINTS)
    return draw(
        st.one_of(
            TEXTS.map(lambda text: f"<|channel|>{channel}<|message|>{text}"),
            TEXTS.map(lambda text: f"<|channel|>final<|message|>{text}"),
            BODIES.map(lambda text: f" to={recipient}<|channel|>{channel}{constraint}<|message|>{text}"),
            BODIES.map(lambda text: f"<|channel|>{channel} to={recipient}{constraint}<|message|>{text}"),
        )
    )


ENDS = st.sampled_from(["<|end|>", "<|call|>"])
LAST_ENDS = st.sampled_from(["<|return|>", "<|call|>", "<|end|>", ""])


@settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck))
@given(parts=st.lists(st.tuples(said(), ENDS), min_size=1, max_size=4), last=LAST_ENDS)
def test_both_read_the_same_messages(encoding: HarmonyEncoding, parts: list[tuple[str, str]], last: str) -> None:
    answer = "<|start|>assistant".join(text + end for text, end in parts)
    answer = answer.removesuffix(parts[-1][1]) + last

    assert [(each.channel, each.recipient, each.text) for each in messages(answer)] == read(encoding, answer)


@pytest.mark.parametrize("arguments", [{}, {"city": "São Paulo 🌧"}, {"where": {"a": [1, None, True, "<|x"]}}])
def test_it_reads_the_calls_that_we_write(encoding: HarmonyEncoding, arguments: dict[str, Any]) -> None:
    [(channel, recipient, text)] = read(encoding, HARMONY.write([Call("get_weather", arguments)]))

    assert (channel, recipient, json.loads(text)) == ("commentary", "functions.get_weather", arguments)


def read(encoding: HarmonyEncoding, answer: str) -> list[tuple[str | None, str | None, str]]:
    ids = encoding.encode(answer, allowed_special="all")
    found = encoding.parse_messages_from_completion_tokens(ids, Role.ASSISTANT)
    return [(each.channel, each.recipient, "".join(part.text for part in each.content)) for each in found]
