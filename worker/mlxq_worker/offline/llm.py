"""vLLM's `LLM` class over MLX: a model in this process, prompts in, outputs out.

    from mlxq import LLM, SamplingParams

    llm = LLM("demo")
    for output in llm.generate(["Count from 1 to 5:"], SamplingParams(temperature=0, max_tokens=20)):
        print(output.outputs[0].text)

A script that was written for vLLM runs with its import changed; docs/vllm.md has what is taken and what is refused.
"""

from __future__ import annotations

import logging
import random
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

import msgspec

from mlxq.contract import COMPLETIONS, Failure, Request, Result
from mlxq.errors import ConfigError
from mlxq.offline.arguments import CHAT_ARGUMENTS, GENERATE_ARGUMENTS, read_options, refuse_others
from mlxq.offline.outputs import RequestOutput, answered, failed
from mlxq.offline.prompts import AskedPrompt, Message, Prompt, chats, completions
from mlxq.offline.sampling_params import SamplingParams
from mlxq_worker.backend import Backend, default_memory_limit, load_backend
from mlxq_worker.config import EngineConfig, WorkerConfig
from mlxq_worker.engine.api import RowResult, RowSpec
from mlxq_worker.messages import Preparer
from mlxq_worker.model.generation import DEFAULT_MAX_TOKENS
from mlxq_worker.model.load import DescribedModel
from mlxq_worker.offline.bars import bar
from mlxq_worker.offline.in_process import InProcess

logger = logging.getLogger("mlxq")

Params = SamplingParams | Sequence[SamplingParams]
UseTqdm = bool | Callable[..., Any]

_WORKERS_SHARE = 0.9
"""The `gpu_memory_utilization` that stands for what a worker takes by itself."""
_SEEDS = 2**53
_OF_GENERATION_CONFIG = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "max_new_tokens": "max_tokens",
}
"""What vLLM takes of a generation_config.json, and the parameter that it becomes."""


class LLM:
    """A model in this process. Belongs to the thread that makes it.

    Args:
        model: a directory in Hugging Face layout, a repository on the Hub, or ``demo``.
        options: vLLM's further arguments; docs/vllm.md lists them.

    Raises:
        ConfigError: an option is unknown, has a wrong value, or can't be honoured; names it. Or a package is missing
            that ``pip install "mlxq[worker]"`` brings.
        ModelError: the model can't be loaded.
    """

    def __init__(self, model: str, **options: Any) -> None:
        given = read_options({"model": model, **options})
        self._uses_generation_config = given.get("generation_config", "auto") == "auto"
        self._random = random.Random(given.get("seed", 0))
        config = _config(given)
        try:
            backend = load_backend(config, max_model_len=given.get("max_model_len"))
        except ModuleNotFoundError as error:
            if (error.name or "mlxq").startswith("mlxq"):
                raise
            raise ConfigError(f'LLM needs {error.name}: install "mlxq[worker]"') from error
        self._model = _described(backend)
        self._runner = InProcess(backend, _TextAsWritten(backend.preparer), config)
        self._thread = threading.get_ident()
        self._close = weakref.finalize(self, _close, self._runner, backend)
        self._close.atexit = False

    def __repr__(self) -> str:
        return f"LLM({self._model.name!r})"

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt] | None = None,
        sampling_params: Params | None = None,
        *,
        prompt_token_ids: Sequence[int] | Sequence[Sequence[int]] | None = None,
        use_tqdm: UseTqdm = True,
        **others: Any,
    ) -> list[RequestOutput]:
        """The answers to prompts, in their order.

        What is wrong with arguments is raised before anything runs. What only the model can tell of one prompt (that it
        is too long, say) costs that prompt, whose output has the finish reason ``error`` and an `error`; so does
        whatever kills its rows. The log says how many.

        Args:
            prompts: a text, token ids, or an object with `prompt` or `prompt_token_ids`; or a list of these.
            sampling_params: for all prompts, or one for each; `get_default_sampling_params` by default.
            prompt_token_ids: prompts that are token ids, in vLLM's earlier way.
            use_tqdm: whether to show progress on stderr, or a class that is called as tqdm's to do so.
            others: what else vLLM has; refused unless it is `None`.

        Raises:
            RequestError: a prompt or a parameter can't be used; says which.
            ConfigError: another argument can't be honoured.
            KeyboardInterrupt: as ever; what was running is dropped, and the next call begins anew.
        """
        refuse_others(others, GENERATE_ARGUMENTS, "generate")
        if (prompts is None) == (prompt_token_ids is None):
            raise ConfigError("generate: give prompts, or prompt_token_ids without prompts")
        asked = completions(prompts if prompts is not None else prompt_token_ids or [], self._params(sampling_params))
        return self._run(asked, use_tqdm)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: Params | None = None,
        use_tqdm: UseTqdm = True,
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        **others: Any,
    ) -> list[RequestOutput]:
        """The next messages of conversations, in their order. The text is as the model wrote it: reasoning and calls of
        tools are in it. Arguments and errors are otherwise those of `generate`.

        Args:
            messages: one conversation, a list of messages in OpenAI's form, or a list of conversations.
            add_generation_prompt: open the assistant's turn.
            continue_final_message: go on with the last message instead of answering it.
            tools: what the chat template shows as functions that may be called.
            chat_template_kwargs: variables for the chat template.
        """
        refuse_others(others, CHAT_ARGUMENTS, "chat")
        turn = {
            "add_generation_prompt": None if add_generation_prompt else False,
            "continue_final_message": continue_final_message or None,
            "tools": None if tools is None else list(tools),
            "chat_template_kwargs": None if chat_template_kwargs is None else dict(chat_template_kwargs),
        }
        return self._run(chats(messages, self._params(sampling_params), turn), use_tqdm)

    def get_default_sampling_params(self) -> SamplingParams:
        """The parameters of prompts that are given none: what the model's generation_config.json says, unless
        ``generation_config="vllm"`` was given, over vLLM's defaults."""
        said = self._model.generation_config if self._uses_generation_config else {}
        values = {ours: said[theirs] for theirs, ours in _OF_GENERATION_CONFIG.items() if said.get(theirs) is not None}
        return SamplingParams(**values)

    def get_tokenizer(self) -> Any:
        """The model's tokenizer, as transformers made it."""
        return self._model.tokenizer

    def close(self) -> None:
        """Free the model's memory for other uses. Also done when the object is gone."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _params(self, given: Params | None) -> Params:
        return self.get_default_sampling_params() if given is None else given

    def _run(self, asked: Sequence[AskedPrompt], use_tqdm: UseTqdm) -> list[RequestOutput]:
        if not self._close.alive:
            raise ConfigError("this LLM is closed")
        if threading.get_ident() != self._thread:
            raise ConfigError("an LLM can only be used in the thread that has made it")
        outputs: list[RequestOutput | None] = [None] * len(asked)
        failures: list[Failure] = []
        with bar(use_tqdm, len(asked)) as show:
            for ended in self._runner.run(map(self._with_seed, asked)):
                number = int(ended.custom_id)
                outputs[number] = self._output(asked[number], ended)
                if isinstance(ended, Failure):
                    failures.append(ended)
                show(ended)
        if failures:
            first = failures[0]
            logger.warning(
                "%d of %d prompts failed, prompt %s first: %s",
                len(failures),
                len(asked),
                first.custom_id,
                first.message,
            )
        return [output for output in outputs if output is not None]

    def _with_seed(self, asked: AskedPrompt) -> Request:
        """The request with a seed: where none is given, the next one of this object's."""
        sampling = asked.request.sampling
        if sampling.seed is not None:
            return asked.request
        seed = self._random.randrange(_SEEDS)
        return msgspec.structs.replace(asked.request, sampling=msgspec.structs.replace(sampling, seed=seed))

    def _output(self, asked: AskedPrompt, ended: Result | Failure) -> RequestOutput:
        if isinstance(ended, Result):
            return answered(ended, self._prompt_of(asked, ended.prompt_token_ids or ()))
        prompt = asked.request.prompt
        return failed(ended, asked.text, prompt if isinstance(prompt, tuple) else None, asked.request.sampling.n)

    def _prompt_of(self, asked: AskedPrompt, token_ids: Sequence[int]) -> str | None:
        """A chat's is what its template made."""
        if asked.request.messages is None:
            return asked.text
        return self._model.tokenizer.decode(
            list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )


class _TextAsWritten:
    """Prepares as a worker does, and answers with all that the model wrote as text, without reading reasoning and tool
    calls out of it: so does vLLM's class, and so scripts expect it."""

    def __init__(self, preparer: Preparer) -> None:
        self._preparer = preparer

    def prepare(self, request: Request, request_id: str) -> tuple[RowSpec, ...]:
        return self._preparer.prepare(request, request_id)

    def finish(
        self, request: Request, specs: tuple[RowSpec, ...], results: tuple[RowResult, ...], **about: Any
    ) -> Result:
        if request.messages is not None:
            request = msgspec.structs.replace(request, endpoint=COMPLETIONS, messages=None, tools=None, prompt=())
            specs = tuple(replace(spec, reasoning=None) for spec in specs)
        return self._preparer.finish(request, specs, results, **about)

    def streaming(self, request: Request, specs: tuple[RowSpec, ...]) -> tuple[RowSpec, ...]:
        return self._preparer.streaming(request, specs)


def _config(given: Mapping[str, Any]) -> WorkerConfig:
    """What a worker would be told."""
    engine = {name: given[name] for name in ("max_num_seqs", "max_num_batched_tokens") if name in given}
    if not given.get("enable_prefix_caching", True):
        engine["max_prefix_bytes"] = 0
    share = given.get("gpu_memory_utilization")
    return WorkerConfig(
        model=given["model"],
        default_max_tokens=given.get("max_model_len", DEFAULT_MAX_TOKENS),
        generation_config="off",  # `get_default_sampling_params` is the place for it, as in vLLM
        extra_eos_tokens=given.get("extra_eos_tokens", ()),
        allow_no_eos=given.get("allow_no_eos", False),
        reasoning_parser=given.get("reasoning_parser"),
        memory_limit_bytes=None if share is None else round(default_memory_limit() * share / _WORKERS_SHARE),
        engine=EngineConfig(**engine),
    )


def _described(backend: Backend) -> DescribedModel:
    if backend.model is None:
        raise TypeError("the backend doesn't say which model it has")
    return backend.model


def _close(runner: InProcess, backend: Backend) -> None:
    runner.close()
    backend.close()
