"""How models mark the part in which they think: the spellings, which of them a model has, and the split of an answer.

A spelling is told by its tokens, or by its texts in the chat template. Where the vocabulary has tokens for both
markers, text is cut by token ids, so that a marker that somebody merely writes about is none.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from mlxq.errors import ConfigError
from mlxq_worker.engine.api import Decode, Reasoning, ReasoningState, TextMarkers
from mlxq_worker.model.tokenizer import Tokenizer, find_token

_BLANK_TEXTS = ("\n", "\n\n", "\n\n\n", " ", "  ", "   ", " \n", "\t", "\r\n", "\n ", " \n\n", "\n\n\n\n", "    ")
_PROMPT_WINDOW = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Spelling:
    """One way of marking the reasoning part.

    Args:
        names: vLLM's names of the parsers that read it, the first one ours.
        start: its start marker.
        end: its end marker.
        more_ends: further texts that close it.
        is_text: the markers are never single tokens, so texts in the template are enough to tell it.
        wrappers: texts before and behind the answer proper, which are no part of it.
    """

    names: tuple[str, ...]
    start: str
    end: str
    more_ends: tuple[str, ...] = ()
    is_text: bool = False
    wrappers: tuple[tuple[str, str], ...] = ()


SPELLINGS = (
    Spelling(names=("mistral",), start="[THINK]", end="[/THINK]"),
    Spelling(
        names=("cohere_command3", "cohere_command4"),
        start="<|START_THINKING|>",
        end="<|END_THINKING|>",
        wrappers=(("<|START_RESPONSE|>", "<|END_RESPONSE|>"), ("<|START_TEXT|>", "<|END_TEXT|>")),
    ),
    Spelling(names=("seed_oss",), start="<seed:think>", end="</seed:think>"),
    Spelling(names=("gemma4",), start="<|channel>thought", end="<channel|>"),
    Spelling(names=("apertus", "apertus2509"), start="<|inner_prefix|>", end="<|inner_suffix|>"),
    Spelling(names=("longcat",), start="<longcat_think>", end="</longcat_think>"),
    Spelling(names=("hy_v4",), start="<|think:start|>", end="<|think:end|>"),
    Spelling(names=("kimi_vl",), start="◁think▷", end="◁/think▷"),
    Spelling(names=("minimax_m3",), start="<mm:think>", end="</mm:think>"),
    Spelling(
        names=(
            "qwen3",
            "deepseek_r1",
            "deepseek_v3",
            "deepseek_v4",
            "glm45",
            "glm47",
            "kimi_k2",
            "minimax_m2",
            "nemotron_v3",
            "olmo3",
            "step3",
            "step3p5",
            "ernie45",
            "hunyuan_a13b",
            "holo2",
            "mimo",
        ),
        start="<think>",
        end="</think>",
    ),
    Spelling(names=("hy_v3",), start="<think:opensource>", end="</think:opensource>"),
    Spelling(names=("exaone_deep",), start="<thought>", end="</thought>"),
    Spelling(names=("reasoning_tags",), start="<reasoning>", end="</reasoning>"),
    Spelling(names=("granite",), start="Here is my thought process:", end="Here is my response:", is_text=True),
    Spelling(
        names=("apriel",),
        start="Here are my reasoning steps:",
        end="[BEGIN FINAL RESPONSE]",
        is_text=True,
        wrappers=(("", "[END FINAL RESPONSE]"),),
    ),
)
ALWAYS_OPEN = frozenset({"deepseek_r1", "step3"})
"""Parsers that users name for models which think at once, without any start marker."""
CHANNELS = ("openai_gptoss", "gpt-oss", "harmony")
"""Names of the reasoning part that channels are: analysis and all else before the final channel."""
_FINAL_HEADERS = (
    "<|channel|>final<|message|>",
    "<|channel|>final <|constrain|>json<|message|>",
    "<|channel|>final<|constrain|>json<|message|>",
    "<|channel|>final json<|message|>",
)


@dataclass(frozen=True, slots=True)
class ReasoningMarkers:
    """How one model marks its reasoning part. With `texts` that is its markers, else `starts` and `ends` are ids. A
    model that is `always_open` thinks from its first token on unless the prompt has closed the part. `closing_ids`
    close a part by force; `wrappers` stand around the answer proper. Before forced `calls` the part may be another
    one."""

    name: str
    start: str
    end: str
    starts: tuple[tuple[int, ...], ...]
    ends: tuple[tuple[int, ...], ...]
    blank_ids: frozenset[int] = frozenset()
    texts: TextMarkers | None = None
    always_open: bool = False
    is_channelled: bool = False
    closing_ids: tuple[int, ...] = ()
    wrappers: tuple[tuple[str, str], ...] = ()
    calls: Reasoning | None = None

    def after_prompt(
        self, prompt_ids: Sequence[int], decode: Decode, *, calls_are_forced: bool = False
    ) -> Reasoning | None:
        """How an answer to this prompt may begin; `None` if the prompt has closed the reasoning part already. Where
        channels are, forced calls are not in the final one: there the part is the first message.

        Only markers at the very end of the prompt count, blanks aside: those before are somebody's text.
        """
        marked = Reasoning(starts=self.starts, ends=self.ends, is_open=True, blank_ids=self.blank_ids, texts=self.texts)
        if self.is_channelled:
            return self.calls if calls_are_forced else marked
        if self.texts:
            tail_text = decode(prompt_ids[-_PROMPT_WINDOW:]).rstrip()
            is_closed, is_open = tail_text.endswith(self.texts.end), tail_text.endswith(self.texts.start)
        else:
            tail = _without_blanks(prompt_ids, decode)
            is_closed = any(tail[-len(end) :] == end for end in self.ends)
            is_open = any(tail[-len(start) :] == start for start in self.starts)
        if is_closed:
            return None
        return replace(marked, is_open=is_open or self.always_open)


def reasoning_markers_of(tokenizer: Any, name: str | None = None) -> ReasoningMarkers | None:
    """The markers of this model, or `None` if it has none.

    Args:
        tokenizer: a transformers tokenizer.
        name: the parser that the user names, in vLLM's words; ``none`` for no reasoning part at all.

    Raises:
        ConfigError: there is no such parser.
    """
    template = _template_text(tokenizer)
    if name is None:
        if _has_channels(tokenizer):
            return _channels(tokenizer)
        found = next((each for each in SPELLINGS if _is_told(each, tokenizer, template)), None)
        return None if found is None else _marked(found, tokenizer, found.names[0])
    if name == "none":
        return None
    if name in CHANNELS:
        return _channels(tokenizer)
    named = next((each for each in SPELLINGS if name in each.names), None)
    if named is None:
        known = ", ".join(sorted({CHANNELS[0], "none", *(each for spelling in SPELLINGS for each in spelling.names)}))
        raise ConfigError(f"--reasoning-parser (MLXQ_REASONING_PARSER) is one of {known}, not {name!r}")
    return _marked(named, tokenizer, name)


def _template_text(tokenizer: Any) -> str:
    template = tokenizer.chat_template
    return "\n".join(template.values()) if isinstance(template, dict) else template or ""


def _is_told(spelling: Spelling, tokenizer: Tokenizer, template: str) -> bool:
    if spelling.is_text:
        return spelling.start in template and spelling.end in template
    if spelling.end in template:
        return True
    return find_token(tokenizer, _first_part(spelling.start)) is not None and (
        find_token(tokenizer, spelling.end) is not None
    )


def _first_part(start: str) -> str:
    """The token of a marker of which the rest is ordinary text."""
    return start.removesuffix("thought") if start.startswith("<|channel>") else start


def _has_channels(tokenizer: Tokenizer) -> bool:
    return all(find_token(tokenizer, token) is not None for token in ("<|channel|>", "<|message|>", "<|start|>"))


def _channels(tokenizer: Tokenizer) -> ReasoningMarkers:
    ends = tuple(dict.fromkeys(_encode(tokenizer, header) for header in _FINAL_HEADERS))
    return ReasoningMarkers(
        name=CHANNELS[0],
        start="<|channel|>analysis<|message|>",
        end=_FINAL_HEADERS[0],
        starts=(),
        ends=ends,
        is_channelled=True,
        closing_ids=_encode(tokenizer, f"<|end|><|start|>assistant{_FINAL_HEADERS[0]}"),
        calls=Reasoning(
            starts=(_encode(tokenizer, "<|channel|>analysis<|message|>"),),
            ends=(_encode(tokenizer, "<|end|><|start|>assistant"),),
            is_open=False,
        ),
    )


def _marked(spelling: Spelling, tokenizer: Tokenizer, name: str) -> ReasoningMarkers:
    always_open = name in ALWAYS_OPEN
    has_tokens = all(
        find_token(tokenizer, marker) is not None for marker in (_first_part(spelling.start), spelling.end)
    )
    if spelling.is_text or not has_tokens:

        def decode(token_ids: Sequence[int]) -> str:
            return tokenizer.decode(list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)

        texts = TextMarkers(start=spelling.start, end=spelling.end, decode=decode)
        closing = _encode(tokenizer, spelling.end)
        return ReasoningMarkers(
            name,
            spelling.start,
            spelling.end,
            (_encode(tokenizer, spelling.start),),
            (),
            texts=texts,
            always_open=always_open,
            closing_ids=closing,
            wrappers=spelling.wrappers,
        )
    starts = _encodings(tokenizer, spelling.start)
    ends = tuple(ids for end in (spelling.end, *spelling.more_ends) for ids in _encodings(tokenizer, end))
    return ReasoningMarkers(
        name,
        spelling.start,
        spelling.end,
        starts,
        ends,
        blank_ids=_blank_ids(tokenizer),
        always_open=always_open,
        closing_ids=ends[0],
        wrappers=spelling.wrappers,
    )


def _encodings(tokenizer: Tokenizer, marker: str) -> tuple[tuple[int, ...], ...]:
    token_id = find_token(tokenizer, marker)
    return ((token_id,),) if token_id is not None else (_encode(tokenizer, marker),)


def _encode(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    return tuple(tokenizer.encode(text, add_special_tokens=False))


def _blank_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """The tokens that blanks are usually written with."""
    ids = {each for text in _BLANK_TEXTS for each in tokenizer.encode(text, add_special_tokens=False)}
    return frozenset(each for each in ids if _is_blank(tokenizer, each))


def _is_blank(tokenizer: Tokenizer, token_id: int) -> bool:
    # Behind another one, since some tokenizers leave out the blank with which a text begins.
    text = tokenizer.decode([token_id, token_id], skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return bool(text) and not text.strip()


@dataclass(frozen=True, slots=True)
class ReasonedAnswer:
    """`reasoning` is `None` if there is no such part; `text` and `token_ids` are the rest. `num_tokens` counts the
    tokens of the reasoning part, its markers included."""

    reasoning: str | None
    text: str
    token_ids: tuple[int, ...]
    num_tokens: int = 0


def split_reasoning(reasoning: Reasoning | None, token_ids: Sequence[int], text: str, decode: Decode) -> ReasonedAnswer:
    """Cut the reasoning part off an answer. Newlines around the cut are the template's, and belong to neither side.

    Args:
        token_ids: the generated tokens.
        text: what the answer's text is, maybe cut at a stop string.
    """
    if reasoning is not None and reasoning.texts is not None:
        return _split_text(reasoning.texts, reasoning.is_open, token_ids, text, decode)
    state = ReasoningState.after(reasoning, token_ids) if reasoning else None
    if reasoning is None or state is None or not state.has_begun:
        return ReasonedAnswer(None, text, tuple(token_ids))
    start = state.num_opening or _repeated_start(reasoning, token_ids)
    if state.is_inside:
        return ReasonedAnswer(decode(token_ids[start:]).strip("\n"), "", (), state.num_tokens)
    thought = decode(token_ids[start : max(start, state.num_tokens - state.num_closing)])
    rest = text.removeprefix(decode(token_ids[: state.num_tokens]))
    behind = tuple(token_ids[state.num_tokens :])
    return ReasonedAnswer(thought.strip("\n"), rest.lstrip("\n"), behind, state.num_tokens)


def unclosed_thought(reasoning: Reasoning | None, token_ids: Sequence[int], decode: Decode) -> str:
    """The text of an answer that is all one thought, behind its start marker."""
    if reasoning is not None and reasoning.texts is not None:
        whole = decode(token_ids)
        opened = whole.lstrip()
        return opened.removeprefix(reasoning.texts.start) if opened.startswith(reasoning.texts.start) else whole
    state = ReasoningState.after(reasoning, token_ids) if reasoning else None
    start = state.num_opening or _repeated_start(reasoning, token_ids) if reasoning and state else 0
    return decode(token_ids[start:])


def _repeated_start(reasoning: Reasoning, token_ids: Sequence[int]) -> int:
    """How many tokens of an open part are a start marker once more: some models write it although the prompt has."""
    opened = ReasoningState.after(replace(reasoning, is_open=False), token_ids) if reasoning.starts else None
    return opened.num_opening if opened else 0


def _split_text(
    texts: TextMarkers, is_open: bool, token_ids: Sequence[int], text: str, decode: Decode
) -> ReasonedAnswer:
    """The same by the texts of the markers."""
    whole = decode(token_ids)
    opened = whole.lstrip().startswith(texts.start)
    if not (is_open or opened):
        return ReasonedAnswer(None, text, tuple(token_ids))
    thinking = whole.lstrip().removeprefix(texts.start) if opened else whole
    thought, end, _ = thinking.partition(texts.end)
    if not end:
        return ReasonedAnswer(thought.strip("\n"), "", (), len(token_ids))
    # The fewest tokens that spell the end marker out.
    num_tokens = bisect_left(
        range(len(token_ids) + 1), True, key=lambda length: texts.end in decode(token_ids[:length])
    )
    rest = text.partition(texts.end)[2]
    return ReasonedAnswer(thought.strip("\n"), rest.lstrip("\n"), tuple(token_ids[num_tokens:]), num_tokens)


def unwrapped(text: str, wrappers: Sequence[tuple[str, str]]) -> str:
    """The answer proper, without what its family puts around it."""
    for start, end in wrappers:
        stripped = text.strip()
        if (start and stripped.startswith(start)) or (not start and stripped.endswith(end)):
            text = stripped.removeprefix(start).removesuffix(end).strip()
    return text


def _without_blanks(prompt_ids: Sequence[int], decode: Decode) -> tuple[int, ...]:
    """The ids up to the last one that is no blank. A special token has no text, so it is told by an empty one."""
    end = len(prompt_ids)
    while end and (text := decode(prompt_ids[end - 1 : end])) and not text.strip():
        end -= 1
    return tuple(prompt_ids[:end])
