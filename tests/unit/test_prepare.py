"""From a request to a row and from a row's end to an answer, over small tokenizers and without a model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import msgspec
import pytest
from tests.support.row_results import row_result
from tests.support.row_specs import name_of
from tests.support.small_tokenizers import ASCII, FakeTokenizer, llama_3, qwen, real_tokenizer

from mlxq.contract import (
    FINISH_REASONS,
    Alternative,
    EosEntry,
    Request,
    Sampling,
    StopDetails,
    StopType,
    Structure,
    TokenLogprob,
)
from mlxq.errors import RequestError
from mlxq.requests.openai import parse_object
from mlxq_worker.dialects.registry import dialect_named
from mlxq_worker.dialects.tool_format import ToolFormat
from mlxq_worker.engine.api import RowId, RowResult, RowSpec, TokenScores
from mlxq_worker.model.eos import EosSet, resolve_eos
from mlxq_worker.model.tokenizer import Tokenizer
from mlxq_worker.text.prepare import ModelPreparer, draw_seed

VOCAB_SIZE = 152_000
ENDOFTEXT, IM_END = 151643, 151645
DRAWN_SEED = 41
NO_EOS = EosSet(tokens=(), primary_id=None, chat_only=frozenset())


LFM2 = dialect_named("lfm2")
assert LFM2 is not None
NO_CALLS = ToolFormat(dialect=LFM2, added={}, specials=frozenset())


def preparer(
    tokenizer: Tokenizer | None = None,
    eos: EosSet | None = None,
    *,
    vocab_size: int = VOCAB_SIZE,
    context_length: int = 1000,
    default_max_tokens: int = 256,
    tool_format: ToolFormat | None = None,
) -> ModelPreparer:
    tokenizer = tokenizer or qwen()
    return ModelPreparer(
        tokenizer,
        eos or resolve_eos(tokenizer, {}, {}, vocab_size=vocab_size, allow_no_eos=True),
        vocab_size=vocab_size,
        context_length=context_length,
        default_max_tokens=default_max_tokens,
        model_name="tiny",
        tool_format=tool_format,
        draw_seed=lambda: DRAWN_SEED,
    )


def completion(prompt: str | tuple[int, ...] = "Hi", **sampling: Any) -> Request:
    return Request(
        custom_id="c1",
        endpoint="/v1/completions",
        prompt=prompt,
        sampling=Sampling(**sampling),
        content_hash="ab" * 32,
    )


def chat(
    *messages: dict[str, Any],
    tools: tuple[dict[str, Any], ...] | None = None,
    chat_template_kwargs: dict[str, Any] | None = None,
    **sampling: Any,
) -> Request:
    return Request(
        custom_id="c1",
        endpoint="/v1/chat/completions",
        messages=messages or ({"role": "user", "content": "Hi"},),
        tools=tools,
        chat_template_kwargs=chat_template_kwargs or {},
        sampling=Sampling(**sampling),
        content_hash="ab" * 32,
    )


def shown(tokenizer: Tokenizer, spec: RowSpec) -> str:
    """The prompt as text, special tokens included."""
    return tokenizer.decode(spec.prompt_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def echo(template: str) -> FakeTokenizer:
    """A tokenizer whose chat template is `template`."""
    return FakeTokenizer(words=ASCII, chat_template=template)


def only_row(prepare: ModelPreparer, request: Request) -> RowSpec:
    """The row of a request that has one."""
    (spec,) = prepare.prepare(request, "r1")
    return spec


def rejected(prepare: ModelPreparer, request: Request) -> RequestError:
    with pytest.raises(RequestError) as caught:
        prepare.prepare(request, "r1")
    return caught.value


# --- Prompts --------------------------------------------------------------------------------------------------


def test_a_chat_is_rendered_by_the_models_template_up_to_the_models_turn() -> None:
    tokenizer = qwen()

    spec = only_row(
        preparer(tokenizer), chat({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"})
    )

    assert shown(tokenizer, spec) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert name_of(spec.row_id) == "r1"


def test_a_chat_begins_with_the_templates_bos_and_no_second_one() -> None:
    tokenizer = real_tokenizer()
    bos = tokenizer.bos_token_id

    spec = only_row(preparer(tokenizer), chat())

    assert spec.prompt_ids.count(bos) == 1
    assert spec.prompt_ids[0] == bos


def test_a_plain_prompt_gets_the_special_tokens_that_its_tokenizer_adds() -> None:
    tokenizer = real_tokenizer()

    spec = only_row(preparer(tokenizer), completion("Hi"))

    assert shown(tokenizer, spec) == "<|begin_of_text|>Hi"


def test_a_prompt_of_token_ids_is_taken_as_it_is() -> None:
    assert only_row(preparer(), completion((0, 7, 151_999))).prompt_ids == (0, 7, 151_999)


def test_template_arguments_and_tools_reach_the_template() -> None:
    tokenizer = echo("{{ tone }}{% for t in tools or [] %}{{ t.function.name }}{% endfor %}{{ messages[0].content }}")
    request = chat(
        {"role": "user", "content": "?"},
        tools=({"type": "function", "function": {"name": "clock"}},),
        chat_template_kwargs={"tone": "calm "},
    )

    assert shown(tokenizer, only_row(preparer(tokenizer, tool_format=NO_CALLS), request)) == "calm clock?"


def test_text_parts_reach_the_template_as_lines_and_a_pure_tool_call_as_no_text() -> None:
    calls = "{% for c in m.tool_calls %}{{ c.function.name }}{{ c.function.arguments | tojson }}{% endfor %}"
    tokenizer = echo("{% for m in messages %}[{{ m.content }}]" + calls + "{% endfor %}")
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    call = {"type": "function", "function": {"name": "clock", "arguments": "{}"}}
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "tool_calls": [call]}]

    request = parse_object({"messages": messages}, default_custom_id="c1").request
    spec = only_row(preparer(tokenizer), request)

    assert shown(tokenizer, spec) == "[one\ntwo][]clock{}"


@pytest.mark.parametrize(
    ("arguments", "rendered"),
    [('{"city": "Rome"}', '{"city": "Rome"}'), ({"city": "Rome"}, '{"city": "Rome"}'), ("{oops", '"{oops"')],
    ids=["JSON in a string", "an object", "no JSON"],
)
def test_the_arguments_of_tool_calls_reach_the_template_as_an_object(arguments: Any, rendered: str) -> None:
    function = "messages[0].tool_calls[0].function"
    tokenizer = echo("{{ " + function + ".name }}{{ " + function + ".arguments | tojson }}")
    call = {"type": "function", "function": {"name": "weather", "arguments": arguments}}

    spec = only_row(preparer(tokenizer), chat({"role": "assistant", "content": None, "tool_calls": [call]}))

    assert shown(tokenizer, spec) == f"weather{rendered}"


# --- Prompts that this model can't run ------------------------------------------------------------------------


USER = {"role": "user", "content": "?"}


def test_an_effort_is_refused_by_a_template_that_would_leave_it_aside() -> None:
    request = parse_object({"messages": [USER], "reasoning_effort": "low"}, default_custom_id="c")

    error = rejected(preparer(echo("{{ messages[0].content }}")), request.request)

    assert (error.param, error.code) == ("reasoning_effort", "unsupported")


@pytest.mark.parametrize(("name", "written"), [("reasoning_effort", "low"), ("enable_thinking", "True")])
def test_an_effort_goes_to_a_template_that_reads_one_of_its_names(name: str, written: str) -> None:
    tokenizer = echo("{{ " + name + " }}{{ messages[0].content }}")
    request = parse_object({"messages": [USER], "reasoning_effort": "low"}, default_custom_id="c")

    assert shown(tokenizer, only_row(preparer(tokenizer), request.request)) == f"{written}?"


def test_more_messages_than_tokens_fit_are_refused_before_anything_is_rendered() -> None:
    tokenizer = echo("{{ raise_exception('rendered') }}")

    error = rejected(preparer(tokenizer, NO_EOS, context_length=8), chat(*[{"role": "user", "content": "a"}] * 8))

    assert (error.param, error.code) == ("messages", "context_length_exceeded")


def test_a_model_without_a_chat_template_refuses_messages_and_says_what_it_takes() -> None:
    error = rejected(preparer(llama_3(chat_template=None)), chat())

    assert (error.param, error.code) == ("messages", "no_chat_template")
    assert "tiny has no chat template" in error.message
    assert "/v1/completions" in error.message


@pytest.mark.parametrize(
    "template",
    ["{{ raise_exception('roles must alternate') }}", "{{ messages[0].content + 1 }}", "{{ 1 // 0 }}", "{% if %}"],
    ids=["it refuses", "it fails on a type", "it fails on a number", "it does not compile"],
)
def test_a_template_that_fails_is_the_requests_error(template: str) -> None:
    error = rejected(preparer(echo(template), NO_EOS), chat())

    assert (error.param, error.code, error.status_code) == ("messages", "chat_template_error", 400)


def test_the_templates_own_words_are_kept() -> None:
    error = rejected(preparer(echo("{{ raise_exception('roles must alternate') }}"), NO_EOS), chat())

    assert "roles must alternate" in error.message


@pytest.mark.parametrize("name", ["chat_template", "tokenize", "add_generation_prompt", "tools"])
def test_template_arguments_can_not_steer_the_rendering_itself(name: str) -> None:
    error = rejected(preparer(), chat(chat_template_kwargs={name: "x"}))

    assert error.param == f"chat_template_kwargs.{name}"


def test_tools_that_the_template_would_drop_are_refused() -> None:
    error = rejected(preparer(), chat(tools=({"type": "function", "function": {"name": "clock"}},)))

    assert (error.param, error.code) == ("tools", "unsupported")


@pytest.mark.parametrize(
    ("request_", "param"),
    [(completion("a\ud800b"), "prompt"), (chat({"role": "user", "content": "a\udfffb"}), "messages")],
    ids=["prompt", "messages"],
)
def test_a_lone_surrogate_is_the_requests_error(request_: Request, param: str) -> None:
    error = rejected(preparer(real_tokenizer()), request_)

    assert (error.param, error.code) == (param, "invalid_unicode")
    assert error.message.isascii(), "the message itself must survive being written"


@pytest.mark.parametrize("prompt", ["", ()], ids=["no text", "no ids"])
def test_an_empty_prompt_is_refused(prompt: str | tuple[int, ...]) -> None:
    error = rejected(preparer(), completion(prompt))

    assert (error.param, error.code) == ("prompt", "empty_prompt")


@pytest.mark.parametrize("token_id", [-1, VOCAB_SIZE])
def test_a_prompt_id_outside_the_vocabulary_is_refused(token_id: int) -> None:
    error = rejected(preparer(), completion((5, token_id)))

    assert (error.param, error.code) == ("prompt", "out_of_range")
    assert f"{token_id} at index 1" in error.message


def test_a_text_whose_tokens_the_model_does_not_have_is_refused() -> None:
    error = rejected(preparer(eos=NO_EOS, vocab_size=100), completion("z"))

    assert (error.param, error.code) == ("prompt", "out_of_range")


def test_a_prompt_must_leave_room_for_one_token() -> None:
    longest = only_row(preparer(context_length=8), completion("a" * 7))
    error = rejected(preparer(context_length=8), completion("a" * 8))

    assert longest.max_tokens == 1
    assert (error.param, error.code) == ("prompt", "context_length_exceeded")
    assert "8 tokens" in error.message
    assert "8 at most" in error.message


@dataclass
class CountingTokenizer(FakeTokenizer):
    """Remembers how many characters it was given."""

    num_chars: int = 0

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        self.num_chars += len(text)
        return super().encode(text, add_special_tokens=add_special_tokens)


def test_of_a_text_that_is_far_too_long_only_the_start_is_tokenised() -> None:
    tokenizer = CountingTokenizer(words=ASCII)
    error = rejected(preparer(tokenizer, NO_EOS, context_length=8), completion("a" * 1_000_000))
    assert (error.param, error.code) == ("prompt", "context_length_exceeded")
    assert tokenizer.num_chars < 20_000


def test_a_text_of_many_characters_and_few_tokens_is_not_too_long() -> None:
    tokenizer = FakeTokenizer(words={**ASCII, " " * 1000: 500})
    spec = only_row(preparer(tokenizer, NO_EOS, context_length=100), completion(" " * 50_000))
    assert spec.prompt_ids == (500,) * 50


# --- Limits, seeds and end tokens -----------------------------------------------------------------------------


def test_sampling_parameters_are_carried_over() -> None:
    spec = only_row(
        preparer(),
        completion(
            max_tokens=9,
            min_tokens=2,
            temperature=0.5,
            top_p=0.9,
            top_k=40,
            min_p=0.1,
            seed=7,
            stop=("\n\n",),
            include_stop_str_in_output=True,
            timeout_s=1.5,
        ),
    )

    assert spec == RowSpec(
        row_id=RowId("r1"),
        prompt_ids=(ord("H"), ord("i")),
        max_tokens=9,
        min_tokens=2,
        context_length=1000,
        end_tokens={ENDOFTEXT: "<|endoftext|>"},
        eos_ids=frozenset({ENDOFTEXT}),
        seed=7,
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        min_p=0.1,
        stop=("\n\n",),
        include_stop_str_in_output=True,
        timeout_s=1.5,
    )


@pytest.mark.parametrize(("context_length", "expected"), [(1000, 256), (100, 98)])
def test_without_a_limit_the_default_holds_as_far_as_the_context_goes(context_length: int, expected: int) -> None:
    assert only_row(preparer(context_length=context_length), completion("ab")).max_tokens == expected


def test_a_limit_of_its_own_is_kept_even_beyond_the_context() -> None:
    assert only_row(preparer(context_length=100), completion(max_tokens=5000)).max_tokens == 5000


@pytest.mark.parametrize("sampling", [{"max_tokens": 3, "min_tokens": 4}, {"min_tokens": 257}])
def test_more_tokens_can_not_be_demanded_than_allowed(sampling: dict[str, int]) -> None:
    error = rejected(preparer(), completion(**sampling))

    assert (error.param, error.code) == ("min_tokens", "out_of_range")


@pytest.mark.parametrize(("seed", "expected"), [(0, 0), (7, 7), (-1, 2**64 - 1), (2**64 + 5, 5), (None, DRAWN_SEED)])
def test_any_integer_is_a_seed_and_one_is_drawn_for_none(seed: int | None, expected: int) -> None:
    assert only_row(preparer(), completion(seed=seed)).seed == expected


def test_each_of_several_answers_is_a_row_with_a_seed_of_its_own() -> None:
    first, second, third = preparer().prepare(completion(n=3, seed=2**64 - 2), "r1")

    assert [name_of(row.row_id) for row in (first, second, third)] == ["r1", "r1#1", "r1#2"]
    assert [row.seed for row in (first, second, third)] == [2**64 - 2, 2**64 - 1, 0]
    assert first == replace(third, row_id=first.row_id, seed=first.seed), "all else is the same"


def test_each_of_several_answers_has_its_own_state_of_the_grammar() -> None:
    request = msgspec.structs.replace(
        completion(n=2), structure=Structure(kind="regex", value="ab", param="structured_outputs.regex")
    )

    first, second = preparer(real_tokenizer()).prepare(request, "r1")
    (a,) = real_tokenizer().encode("a", add_special_tokens=False)

    assert first.constraint is not None
    assert second.constraint is not None
    first.constraint.advance(a)
    assert first.constraint.allowed_ids() != second.constraint.allowed_ids()


def test_a_drawn_seed_survives_a_reader_that_keeps_numbers_as_doubles() -> None:
    seeds = {draw_seed() for _ in range(50)}

    assert len(seeds) == 50
    assert all(0 <= seed == int(float(seed)) for seed in seeds)


def test_a_chat_ends_on_the_turn_end_and_a_completion_does_not() -> None:
    assert only_row(preparer(), chat()).eos_ids == {ENDOFTEXT, IM_END}
    assert only_row(preparer(), completion()).eos_ids == {ENDOFTEXT}


def test_stop_ids_end_the_row_beside_the_eos_set() -> None:
    spec = only_row(preparer(), completion(stop_token_ids=(ord("."), IM_END)))

    assert spec.end_tokens == {ENDOFTEXT: "<|endoftext|>", ord("."): ".", IM_END: "<|im_end|>"}
    assert spec.eos_ids == {ENDOFTEXT}


def test_ignoring_eos_leaves_the_stop_ids() -> None:
    spec = only_row(preparer(), chat(ignore_eos=True, stop_token_ids=(ENDOFTEXT,)))

    assert spec.end_tokens == {ENDOFTEXT: "<|endoftext|>"}
    assert spec.eos_ids == frozenset()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("stop_token_ids", (5, VOCAB_SIZE)),
        ("logit_bias", {5: 1.0, VOCAB_SIZE: 1.0}),
        ("allowed_token_ids", (5, VOCAB_SIZE)),
    ],
)
def test_an_id_outside_the_vocabulary_is_refused_by_its_field(field: str, value: Any) -> None:
    error = rejected(preparer(), completion(**{field: value}))

    assert (error.param, error.code) == (field, "out_of_range")


# --- Answers --------------------------------------------------------------------------------------------------


def result_of(spec: RowSpec, token_ids: tuple[int, ...], text: str, details: StopDetails) -> RowResult:
    return row_result(
        row_id=spec.row_id,
        token_ids=token_ids,
        text=text,
        stop_details=details,
        num_prompt_tokens=len(spec.prompt_ids),
        seed=spec.seed,
        prefill_s=0.25,
        decode_s=0.5,
    )


def finished(details: StopDetails, request: Request | None = None) -> Any:
    prepare = preparer()
    request = request or chat()
    spec = only_row(prepare, request)
    result = result_of(spec, (72, 105, IM_END), "Hi", details)
    return prepare.finish(request, (spec,), (result,), request_id="q1", created=1_700_000_000, queue_s=2.0)


STOP_REASONS: list[tuple[StopDetails, int | str | None]] = [
    (StopDetails(type="eos_token", token_id=ENDOFTEXT, token="<|endoftext|>", token_index=2), None),
    (StopDetails(type="eos_token", token_id=IM_END, token="<|im_end|>", token_index=2), IM_END),
    (StopDetails(type="stop_token", token_id=46, token=".", token_index=2), 46),
    (StopDetails(type="stop_token", token_id=ENDOFTEXT, token="<|endoftext|>", token_index=2), ENDOFTEXT),
    (StopDetails(type="stop_string", string="\n\n", token_index=2), "\n\n"),
    (StopDetails(type="repetition", token_index=2), "repetition_detected"),
    (StopDetails(type="max_tokens", token_index=2), None),
    (StopDetails(type="context_length", token_index=2), None),
    (StopDetails(type="cancelled", token_index=2), None),
    (StopDetails(type="deadline"), None),
]


@pytest.mark.parametrize(("details", "stop_reason"), STOP_REASONS, ids=lambda value: getattr(value, "type", None))
def test_the_stop_reason_has_vllms_meaning(details: StopDetails, stop_reason: int | str | None) -> None:
    (choice,) = finished(details).choices

    assert choice.stop_reason == stop_reason
    assert choice.stop_details == details


FINISHED_AS: dict[StopType, str] = {
    "eos_token": "stop",
    "stop_token": "stop",
    "stop_string": "stop",
    "max_tokens": "length",
    "context_length": "length",
    "repetition": "repetition",
    "cancelled": "abort",
    "deadline": "abort",
    "error": "error",
}


@pytest.mark.parametrize("stop_type", FINISH_REASONS)
def test_every_kind_of_stop_has_its_finish_reason(stop_type: StopType) -> None:
    (choice,) = finished(StopDetails(type=stop_type)).choices

    assert choice.finish_reason == FINISHED_AS[stop_type]


def test_an_answer_records_what_ran_and_how_long_it_took() -> None:
    result = finished(StopDetails(type="max_tokens", token_index=2), chat(seed=3))

    assert (result.custom_id, result.request_id, result.endpoint) == ("c1", "q1", "/v1/chat/completions")
    assert (result.model, result.created) == ("tiny", 1_700_000_000)
    assert result.choices[0].text == "Hi"
    assert result.usage.completion_tokens == 3, "the end token counts"
    assert result.usage.prompt_tokens > 3
    assert result.run.seed == 3
    assert result.run.content_hash == "ab" * 32
    assert (result.run.queue_s, result.run.prefill_s, result.run.decode_s) == (2.0, 0.25, 0.5)


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (chat(), (EosEntry(id=ENDOFTEXT, token="<|endoftext|>"), EosEntry(id=IM_END, token="<|im_end|>"))),
        (completion(stop_token_ids=(46,)), (EosEntry(id=ENDOFTEXT, token="<|endoftext|>"),)),
        (chat(ignore_eos=True), ()),
    ],
    ids=["chat", "completion", "ignore_eos"],
)
def test_an_answer_records_the_eos_set_that_was_in_force(request_: Request, expected: tuple[EosEntry, ...]) -> None:
    assert finished(StopDetails(type="max_tokens"), request_).run.eos == expected


def test_ids_and_scores_are_reported_to_those_who_ask() -> None:
    prepare = preparer(FakeTokenizer(words=ASCII), NO_EOS, vocab_size=128)
    request = completion("Hi", n=2, return_token_ids=True, logprobs=0, prompt_logprobs=0)
    specs = prepare.prepare(request, "r1")
    place = TokenScores(token_id=ord("a"), logprob=-1.0, rank=1)
    first, second = (
        replace(result_of(spec, (ord("a"),), "a", StopDetails(type="max_tokens", token_index=0)), logprobs=(place,))
        for spec in specs
    )
    first = replace(first, prompt_logprobs=(None, place))

    result = prepare.finish(request, specs, (first, second), request_id="q1", created=0, queue_s=0.0)

    shown = TokenLogprob(chosen=Alternative(token_id=ord("a"), token="a", logprob=-1.0, rank=1))
    assert [spec.num_prompt_logprobs for spec in specs] == [0, None], "the prompt is scored once"
    assert [choice.logprobs for choice in result.choices] == [(shown,), (shown,)]
    assert [choice.token_ids for choice in result.choices] == [(ord("a"),), (ord("a"),)]
    assert result.prompt_token_ids == tuple(b"Hi")
    assert result.prompt_logprobs == (None, shown)
    assert (result.usage.prompt_tokens, result.usage.completion_tokens) == (2, 2)


@pytest.mark.parametrize("end", [StopDetails(type="eos_token"), StopDetails(type="stop_token")])
def test_the_log_probabilities_of_a_chat_leave_the_end_token_out_as_openais_do(end: StopDetails) -> None:
    assert scored_tokens(chat(logprobs=0), end) == ["H", "i"]
    assert scored_tokens(completion(logprobs=0), end) == ["H", "i", "!"]
    assert scored_tokens(chat(logprobs=0), StopDetails(type="max_tokens")) == ["H", "i", "!"]


def scored_tokens(request: Request, end: StopDetails) -> list[str]:
    """The tokens with scores in an answer of ``Hi!`` that ended so on its last token."""
    prepare = preparer(echo("{{ messages[0].content }}"), NO_EOS, vocab_size=128)
    spec = only_row(prepare, request)
    places = tuple(TokenScores(token_id=ord(char), logprob=-1.0, rank=1) for char in "Hi!")
    ended = row_result(token_ids=tuple(map(ord, "Hi!")), text="Hi", stop_details=end, logprobs=places)
    result = prepare.finish(request, (spec,), (ended,), request_id="q1", created=0, queue_s=0.0)
    return [each.chosen.token for each in result.choices[0].logprobs or ()]


def test_an_answer_names_the_formats_of_its_schema_that_it_was_not_held_to() -> None:
    schema = {"type": "object", "properties": {"a": {"format": "path"}, "b": {"type": "string", "format": "path"}}}
    structure = Structure(kind="json_schema", value=schema, param="response_format")
    asked = msgspec.structs.replace(chat(), structure=structure)
    answered = row_result(stop_details=StopDetails(type="max_tokens"))
    spec = only_row(preparer(), chat())

    result = preparer().finish(asked, (spec,), (answered,), request_id="q1", created=0, queue_s=0.0)

    assert result.run.ignored_formats == ("path",)
    assert finished(StopDetails(type="max_tokens")).run.ignored_formats == ()


def test_decoding_leaves_special_tokens_out_and_cleans_nothing_up() -> None:
    tokenizer = real_tokenizer()
    ids = tokenizer.encode("Is it ? Yes , don 't\n", add_special_tokens=True)

    text = preparer(tokenizer).decode((*ids, tokenizer.eos_token_id))

    assert text == "Is it ? Yes , don 't\n"
