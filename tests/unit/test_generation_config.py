"""What a request leaves out and a model's generation_config.json fills in: read, checked, applied and compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.support.result_files import output_line
from tests.support.row_results import row_result
from tests.support.small_tokenizers import qwen

from mlxq.errors import ModelError
from mlxq.files.output.sink import Sink
from mlxq.requests.openai import ParsedLine, parse_object
from mlxq.results.read_back import sampling_defaults_of
from mlxq.results.result_lines import result_line
from mlxq_worker.engine.api import RowSpec
from mlxq_worker.model.eos import resolve_eos
from mlxq_worker.model.generation import OpenFields, sampling_defaults
from mlxq_worker.text.prepare import ModelPreparer

QWEN3 = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "eos_token_id": [151645, 151643]}
OF_QWEN3 = {"temperature": 0.6, "top_k": 20, "top_p": 0.95}
EVERYTHING = {
    "temperature": 0.7,
    "top_p": 0.8,
    "top_k": 9,
    "min_p": 0.05,
    "repetition_penalty": 1.1,
    "max_new_tokens": 64,
}


def line(**body: Any) -> ParsedLine:
    return parse_object({"custom_id": "a", "body": {"prompt": "Hi", **body}}, default_custom_id="none")


def preparer(open_fields: OpenFields) -> ModelPreparer:
    tokenizer = qwen()
    return ModelPreparer(
        tokenizer,
        resolve_eos(tokenizer, {}, {}, vocab_size=152_000, allow_no_eos=True),
        vocab_size=152_000,
        context_length=1000,
        default_max_tokens=open_fields.max_tokens,
        sampling_defaults=open_fields.sampling,
        model_name="tiny",
        draw_seed=lambda: 1,
    )


def sampled(spec: RowSpec) -> dict[str, float]:
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_tokens")
    return {name: getattr(spec, name) for name in names}


# --- The file -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stated", "taken"),
    [
        ({}, {}),
        (QWEN3, OF_QWEN3),
        ({"temperature": None, "top_k": None, "max_length": 20, "num_beams": 4, "penalty_alpha": 0.6}, {}),
        ({"temperature": 1.0, "top_p": 1, "top_k": -1, "min_p": 0, "repetition_penalty": 1.0}, {}),
        ({"do_sample": False, "temperature": 0}, {"temperature": 0}),
        ({"max_new_tokens": 64, "top_k": 50.0}, {"max_tokens": 64, "top_k": 50}),
    ],
)
def test_the_fields_that_vllm_takes_are_taken_where_they_say_something(
    stated: dict[str, Any], taken: dict[str, float]
) -> None:
    assert sampling_defaults(stated) == taken


@pytest.mark.parametrize(
    ("stated", "named"),
    [
        ({"temperature": "0.6"}, 'temperature must be a finite number of at least 0, not "0.6"'),
        ({"temperature": -1}, "temperature must be a finite number of at least 0, not -1"),
        ({"temperature": True}, "temperature must be a finite number of at least 0, not true"),
        ({"top_p": 0}, "top_p must be a finite number above 0 and at most 1, not 0"),
        ({"top_k": 1.5}, "top_k must be an integer from -1"),
        ({"min_p": [0.1]}, "min_p must be a finite number of at least 0 and at most 1, not a list"),
        ({"repetition_penalty": 0}, "repetition_penalty must be a finite number of at least 0.01"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, not 0"),
        ({"max_new_tokens": float("nan")}, "max_new_tokens must be an integer"),
    ],
)
def test_a_broken_value_is_named_with_what_would_be_right_and_the_way_round_it(
    stated: dict[str, Any], named: str
) -> None:
    with pytest.raises(ModelError) as error:
        OpenFields.of({"top_p": 0.9, **stated}, "auto")

    assert str(error.value).startswith(f"generation_config.json: {named}")
    assert str(error.value).endswith("--generation-config off (MLXQ_GENERATION_CONFIG)")
    assert OpenFields.of(stated, "off") == OpenFields(None, 2048)


@pytest.mark.parametrize(
    ("mode", "worker", "sampling", "limit"),
    [
        ("off", None, None, 2048),
        ("off", 7, None, 7),
        ("auto", None, {"top_k": 9, "max_tokens": 64}, 64),
        ("auto", 7, {"top_k": 9}, 7),
    ],
)
def test_the_workers_own_limit_comes_before_the_models_and_that_before_mlxqs(
    mode: Any, worker: int | None, sampling: dict[str, float] | None, limit: int
) -> None:
    assert OpenFields.of({"top_k": 9, "max_new_tokens": 64}, mode, worker) == OpenFields(sampling, limit)


# --- The request ----------------------------------------------------------------------------------------------


def test_what_a_request_leaves_out_is_filled_in_and_the_answer_says_with_what() -> None:
    fill = preparer(OpenFields.of(EVERYTHING, "auto"))
    request = line(temperature=None).request

    (spec,) = fill.prepare(request, "r")
    answer = fill.finish(request, (spec,), (row_result(),), request_id="r", created=0, queue_s=0)
    about = result_line(answer)["response"]["body"]["mlxq"]

    filled = {"max_tokens": 64, **{name: value for name, value in EVERYTHING.items() if name != "max_new_tokens"}}
    assert sampled(spec) == filled
    assert (about["generation_config"], about["sampling_defaults"]) == ("auto", filled)
    assert about["default_max_tokens"] == 64


@pytest.mark.parametrize(
    "said",
    [
        {"temperature": 1, "top_p": 1, "top_k": 0, "min_p": 0, "repetition_penalty": 1, "max_tokens": 5},
        {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
        | {"max_completion_tokens": 5},
    ],
)
def test_what_a_request_says_stays_also_where_it_says_mlxqs_own_default(said: dict[str, float]) -> None:
    fill = preparer(OpenFields.of(EVERYTHING, "auto"))
    request = line(**said).request

    (spec,) = fill.prepare(request, "r")
    answer = fill.finish(request, (spec,), (row_result(),), request_id="r", created=0, queue_s=0)

    own = {"temperature": 1, "top_p": 1, "top_k": 0, "min_p": 0, "repetition_penalty": 1, "max_tokens": 5}
    assert sampled(spec) == own
    assert (answer.run.generation_config, answer.run.sampling_defaults) == ("auto", {})


def test_every_answer_of_several_is_sampled_alike_and_a_beam_search_takes_the_limit_alone() -> None:
    fill = preparer(OpenFields.of(EVERYTHING, "auto"))

    first, second = fill.prepare(line(n=2, temperature=0.2).request, "r")
    (beams,) = fill.prepare(line(n=2, use_beam_search=True).request, "b")

    assert sampled(first) == sampled(second)
    assert (first.temperature, first.top_k) == (0.2, 9)
    assert (beams.temperature, beams.top_k, beams.repetition_penalty, beams.max_tokens) == (1, 0, 1, 64)


def test_switched_off_nothing_is_filled_in_and_the_answer_says_that() -> None:
    fill = preparer(OpenFields.of(EVERYTHING, "off"))
    request = line().request

    (spec,) = fill.prepare(request, "r")
    answer = fill.finish(request, (spec,), (row_result(),), request_id="r", created=0, queue_s=0)
    about = result_line(answer)["response"]["body"]["mlxq"]

    assert (spec.temperature, spec.top_k, about["default_max_tokens"]) == (1, 0, 2048)
    assert about["generation_config"] == "off"
    assert "sampling_defaults" not in about


# --- Runs that go on ------------------------------------------------------------------------------------------

MODEL = {"temperature": 0.6, "max_tokens": 64}
WAS_FILLED = {"generation_config": "auto", "sampling_defaults": MODEL}
WAS_OFF = {"generation_config": "off"}
WAS_EXPLICIT = {"generation_config": "auto"}
OF_AN_EARLIER_RELEASE: dict[str, Any] = {}


@pytest.mark.parametrize(
    ("about", "said", "now", "is_done"),
    [
        (WAS_FILLED, {}, MODEL, True),
        (WAS_FILLED, {}, {**MODEL, "temperature": 0.7}, False),
        (WAS_FILLED, {}, {}, False),
        (WAS_FILLED, {}, None, True),
        (WAS_FILLED, {"temperature": 1.0}, MODEL, False),
        (WAS_FILLED, {"temperature": 1.0}, None, False),
        (WAS_EXPLICIT, {"temperature": 1.0}, {"temperature": 0.6}, True),
        (WAS_EXPLICIT, {}, {"temperature": 0.6}, False),
        (WAS_OFF, {}, {}, True),
        (WAS_OFF, {}, MODEL, False),
        (OF_AN_EARLIER_RELEASE, {}, MODEL, True),
    ],
)
def test_a_run_goes_on_from_answers_that_were_sampled_as_they_would_be_now(
    about: dict[str, Any], said: dict[str, Any], now: dict[str, float] | None, is_done: bool, tmp_path: Path
) -> None:
    # given an answer to a request that is the same to the hash, whether it says a default or not
    asked = line(**said)
    answer = output_line("a", asked.request.content_hash)
    answer["response"]["body"]["mlxq"] |= about
    with Sink(tmp_path / "out.jsonl", tmp_path / "errors.jsonl") as sink:
        sink.write(answer)

    # when, then
    with Sink(tmp_path / "out.jsonl", tmp_path / "errors.jsonl", sampling_defaults=now) as sink:
        assert sink.skip_request(asked) == is_done


@pytest.mark.parametrize(
    ("about", "read"),
    [
        ({}, None),
        ({"generation_config": "auto"}, {}),
        ({"generation_config": "off", "sampling_defaults": None}, {}),
        ({"generation_config": "auto", "sampling_defaults": {"top_k": 3, "min_p": "x"}}, {"top_k": 3}),
    ],
)
def test_what_a_line_says_of_them_is_read_back_whoever_wrote_it(about: dict[str, Any], read: Any) -> None:
    answer = output_line("a")
    answer["response"]["body"]["mlxq"] |= about

    assert sampling_defaults_of(answer) == read
