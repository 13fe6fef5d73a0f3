"""`mlxq.LLM` with the demo model: what vLLM's scripts ask of the class, and the same answers as `mlxq run`."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
from click.testing import CliRunner
from tests.support.documents import ROOT
from tests.support.processes import MLXQ, run

from mlxq import LLM, ConfigError, ModelError, RequestError, SamplingParams, StructuredOutputsParams

GREEDY = SamplingParams(temperature=0, max_tokens=24)
COUNTING = [f"Count from {start} to {start + length}:" for start in range(1, 30, 3) for length in (2, 6)]
FRANCE = [{"role": "user", "content": "What is the capital of France?"}]
TOO_LONG = "word " * 2000


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM("demo", max_num_seqs=8) as llm:
        yield llm


def texts(outputs: list[Any]) -> list[str]:
    return [output.outputs[0].text for output in outputs]


@pytest.mark.slow
def test_greedy_answers_are_those_of_a_run_over_the_same_prompts(llm: LLM, tmp_path: Path) -> None:
    lines = [{"custom_id": str(i), "prompt": prompt} for i, prompt in enumerate(COUNTING)]
    lines.append({"custom_id": str(len(COUNTING)), "messages": FRANCE})
    body = {"temperature": 0, "max_tokens": 24}
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({**line, **body}) + "\n" for line in lines))

    done = run(*MLXQ, "run", "-i", str(tmp_path / "in.jsonl"), "-o", str(tmp_path / "out.jsonl"), "--ordered")
    ours = llm.generate(COUNTING, GREEDY, use_tqdm=False) + llm.chat(FRANCE, GREEDY, use_tqdm=False)

    assert done.returncode == 0, done.stderr
    choices = [
        json.loads(line)["response"]["body"]["choices"][0] for line in (tmp_path / "out.jsonl").read_text().splitlines()
    ]
    assert texts(ours) == [choice.get("text", choice.get("message", {}).get("content")) for choice in choices]
    for output, choice in zip(ours, choices, strict=True):
        [answer] = output.outputs
        assert (answer.finish_reason, answer.stop_reason) == (choice["finish_reason"], choice["stop_reason"])
        assert len(answer.token_ids) == choice["stop_details"]["token_index"] + 1


def test_a_script_for_vllm_runs_with_its_import_changed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = (ROOT / "tests" / "corpus" / "vllm_offline.py").read_text()
    ported = re.sub(r"from vllm(\.\w+)? import", "from mlxq import", script)
    monkeypatch.setattr(sys, "argv", ["script", "demo"])

    exec(compile(ported, "script", "exec"), {"__name__": "__main__"})

    assert capsys.readouterr().out.splitlines() == [
        "Prompt: 'Count from 1 to 5:', Generated text: ' 1 2 3 4 5'",
        "Prompt: 'Count from 11 to 14:', Generated text: ' 11 12 13 14'",
        "Prompt: 'Count from 21 to 23:', Generated text: ' 21 22 23'",
        "3 [0, 1, 2]",
        "stop ' 4'  1 2 3 4",
        " 11 1",
        " 12 1",
        "length None 7",
        "The capital of France is Paris. True",
        "The capital of Greece is Athens. True",
        "The capital of France is",
        "['n']",
    ]


def test_seeds_make_answers_that_come_again_however_prompts_are_batched(llm: LLM) -> None:
    warm = SamplingParams(temperature=3, max_tokens=12, seed=5)

    together = texts(llm.generate(COUNTING[:4], warm, use_tqdm=False))
    alone = [texts(llm.generate(prompt, warm, use_tqdm=False))[0] for prompt in COUNTING[:4]]

    assert together == alone
    assert len(set(together)) > 1


def test_prompts_without_a_seed_get_those_of_the_object() -> None:
    warm = SamplingParams(temperature=3, max_tokens=12)

    def drawn(**options: Any) -> list[str]:
        with LLM("demo", **options) as llm:
            return texts(llm.generate(["Hello"] * 2, warm, use_tqdm=False))

    first, again, other = drawn(), drawn(max_num_seqs=1), drawn(seed=1)

    assert first == again
    assert first[0] != first[1]
    assert first != other


def test_several_answers_have_seeds_of_their_own_and_scores_of_every_token(llm: LLM) -> None:
    params = SamplingParams(n=3, temperature=2, max_tokens=6, seed=1, logprobs=2)

    [output] = llm.generate("Hello", params, use_tqdm=False)

    assert len({answer.text for answer in output.outputs}) == 3
    for answer in output.outputs:
        assert answer.logprobs is not None
        assert answer.cumulative_logprob == pytest.approx(
            sum(place[token].logprob for place, token in zip(answer.logprobs, answer.token_ids, strict=True))
        )
        assert all(2 <= len(place) <= 3 for place in answer.logprobs)


def test_a_chat_has_its_rendered_prompt_and_scores_of_the_end_token_too(llm: LLM) -> None:
    [output] = llm.chat(FRANCE, SamplingParams(temperature=0, max_tokens=24, logprobs=0), use_tqdm=False)

    rendered = llm.get_tokenizer().apply_chat_template(FRANCE, tokenize=False, add_generation_prompt=True)
    assert output.prompt == rendered
    assert output.prompt_token_ids == llm.get_tokenizer().encode(rendered, add_special_tokens=False)
    [answer] = output.outputs
    assert answer.logprobs is not None
    assert len(answer.logprobs) == len(answer.token_ids)
    assert answer.finish_reason == "stop"


def test_calls_of_tools_stay_in_the_text(llm: LLM) -> None:
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    tool = {"type": "function", "function": {"name": "get_weather", "parameters": parameters}}
    ask = [{"role": "user", "content": "What is the weather in Paris?"}]

    [output] = llm.chat(ask, SamplingParams(temperature=0, max_tokens=60), tools=[tool], use_tqdm=False)

    [answer] = output.outputs
    assert json.loads(answer.text) == {"name": "get_weather", "parameters": {"city": "Paris"}}
    assert answer.finish_reason == "stop"


def test_a_prompt_that_only_the_model_can_refuse_costs_itself(llm: LLM, caplog: pytest.LogCaptureFixture) -> None:
    held = StructuredOutputsParams(grammar="start: (")
    params = [GREEDY, SamplingParams(n=2), SamplingParams(structured_outputs=held), GREEDY]

    with caplog.at_level(logging.WARNING, "mlxq"):
        outputs = llm.generate([COUNTING[0], TOO_LONG, "Hello", COUNTING[1]], params, use_tqdm=False)

    assert [output.error.code if output.error else None for output in outputs] == [
        None,
        "context_length_exceeded",
        "invalid_grammar",
        None,
    ]
    assert [(answer.text, answer.finish_reason) for answer in outputs[1].outputs] == [("", "error")] * 2
    assert all(output.finished for output in outputs)
    assert "2 of 4 prompts failed, prompt 1 first: prompt has" in caplog.text


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda llm: llm.generate(["a", ""], GREEDY), RequestError, "prompt 1"),
        (lambda llm: llm.generate("a", lora_request="x"), ConfigError, "lora_request is not available"),
        (lambda llm: llm.generate("a", temperature=0), ConfigError, "generate: unknown field temperature"),
        (lambda llm: llm.generate(), ConfigError, "give prompts"),
        (lambda llm: llm.chat(FRANCE, GREEDY, chat_template="x"), ConfigError, "chat_template is not available"),
        (lambda llm: llm.chat("hello", GREEDY), RequestError, "messages must be a conversation"),
    ],
)
def test_wrong_arguments_are_errors_before_anything_runs(
    llm: LLM, call: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        call(llm)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"model": "demo", "tensor_parallel_size": 2}, ConfigError, "tensor_parallel_size is not available"),
        ({"model": "demo", "max_model_len": 10**6}, ConfigError, "max_model_len is 1000000, but mlxq-demo can have"),
        ({"model": "/nowhere/at/all"}, ModelError, "there is no directory"),
    ],
)
def test_a_model_that_can_not_be_had_is_an_error_that_says_why(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        LLM(**options)


class Tqdm:
    """As a script would hand in tqdm's class."""

    made: list[Tqdm]

    def __init__(self, total: int, **_: Any) -> None:
        self.total, self.num_done = total, 0
        Tqdm.made = [*getattr(Tqdm, "made", []), self]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        pass

    def update(self, num: int) -> None:
        self.num_done += num


def test_progress_goes_to_a_class_that_is_given_or_to_stderr(llm: LLM) -> None:
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()) as printed:
        llm.generate(COUNTING[:3], GREEDY, use_tqdm=Tqdm)
        llm.generate(COUNTING[:3], GREEDY)

    assert [(bar.total, bar.num_done) for bar in Tqdm.made] == [(3, 3)]
    assert printed.getvalue() == ""


def test_an_interrupted_call_leaves_an_object_that_can_be_used_again(llm: LLM) -> None:
    class Interrupting(Tqdm):
        def update(self, num: int) -> None:
            raise KeyboardInterrupt

    before = texts(llm.generate(COUNTING[:4], GREEDY, use_tqdm=False))
    with pytest.raises(KeyboardInterrupt):
        llm.generate(COUNTING, GREEDY, use_tqdm=Interrupting)

    assert texts(llm.generate(COUNTING[:4], GREEDY, use_tqdm=False)) == before


def test_an_object_that_is_closed_or_another_thread_s_says_so(llm: LLM) -> None:
    caught: list[Exception] = []

    def elsewhere() -> None:
        try:
            llm.generate("Hello")
        except ConfigError as error:
            caught.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    closed = LLM("demo")
    closed.close()
    closed.close()

    assert "only be used in the thread that has made it" in str(caught[0])
    with pytest.raises(ConfigError, match="closed"):
        closed.generate("Hello")


def test_parameters_that_are_not_given_are_those_of_the_model_s_files(llm: LLM, tmp_path: Path) -> None:
    from mlxq_worker.demo import MODEL_PATH

    for file in MODEL_PATH.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "generation_config.json").unlink(missing_ok=True)
    said = {"temperature": 0.25, "top_k": 3, "max_new_tokens": 4, "eos_token_id": [1699]}
    (tmp_path / "generation_config.json").write_text(json.dumps(said))

    with LLM(str(tmp_path), gpu_memory_utilization=0.5) as other:
        params = other.get_default_sampling_params()
        [output] = other.generate("Count from 1 to 9:", use_tqdm=False)

    assert (params.temperature, params.top_k, params.max_tokens) == (0.25, 3, 4)
    assert output.outputs[0].finish_reason == "length"
    assert llm.get_default_sampling_params() == SamplingParams()


def test_what_a_text_may_have_is_no_more_than_max_model_len() -> None:
    with LLM("demo", max_model_len=12) as short:
        [output] = short.generate("Count from 1 to 9:", SamplingParams(temperature=0, max_tokens=None), use_tqdm=False)

    assert output.outputs[0].finish_reason == "length"
    assert len(output.prompt_token_ids or []) + len(output.outputs[0].token_ids) == 12


@pytest.mark.slow
def test_the_benchmark_finds_the_engine_s_own_answers() -> None:
    from tests.bench.offline import main

    small = ["--model", "1m", "--requests", "4", "--runs", "1", "--width", "4"]
    done = CliRunner().invoke(main, small, catch_exceptions=False)

    figures = json.loads(done.output.splitlines()[-1])
    assert figures["tokens_per_s"].keys() == {"engine", "llm"}
