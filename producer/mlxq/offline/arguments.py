"""What of the arguments of vLLM's `LLM`, `LLM.generate` and `LLM.chat` is taken, each listed once.

An argument is taken, or may be anything since it can't change an answer, or is refused by its name unless it asks for
what happens anyway. Those of `SamplingParams` are in `sampling_params`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlxq.errors import ConfigError, RequestError
from mlxq.requests import checks
from mlxq.requests.checks import Check
from mlxq.requests.field import Field, honoured, label, refused, table
from mlxq.requests.fields import FIELDS

_ANYTHING = Check("anything", lambda value, param: value)
_SEED = Check("an integer, or None for another one each time", lambda value, param: _seed(value, param))
_positive = checks.integer(1)
_texts = checks.list_of(checks.filled_string, "strings")
_SHARE = checks.number(0, 1, above_low=True)

LLM_ARGUMENTS = table(
    honoured("model", checks.filled_string, "a directory, a repository on the Hub, or demo"),
    honoured("seed", _SEED, "what the seeds of prompts without one are drawn from; 0 if absent"),
    honoured("max_num_seqs", _positive, "prompts answered at once; what fits into memory and pays if absent"),
    honoured("max_num_batched_tokens", _positive, "tokens in a step; measured if absent"),
    honoured("max_model_len", _positive, "tokens of prompt and answer together; the model's own length if absent"),
    honoured("gpu_memory_utilization", _SHARE, "0.9 is what a worker takes by itself, other shares in proportion"),
    honoured("enable_prefix_caching", checks.boolean, "whether prompts share what they begin with; true if absent"),
    honoured("reasoning_parser", checks.filled_string, "how the model marks its reasoning; by its files if absent"),
    honoured(
        "generation_config",
        checks.one_of({name: name for name in ("auto", "vllm")}),
        "where parameters come from if none are given: the model's generation_config.json, or vLLM's defaults alone",
    ),
    honoured("extra_eos_tokens", _texts, "further end tokens (not in vLLM)"),
    honoured("allow_no_eos", checks.boolean, "whether a model may have no end token (not in vLLM)"),
    label("trust_remote_code", checks.boolean, "code that comes with a model is never run"),
    label("enforce_eager", checks.boolean, "nothing is captured"),
    label("enable_chunked_prefill", checks.boolean, "long prompts are always taken in pieces"),
    label("swap_space", _ANYTHING, "nothing is swapped"),
    label("block_size", _ANYTHING, "keys and values lie in slots"),
    label("max_seq_len_to_capture", _ANYTHING, "nothing is captured"),
    label("compilation_config", _ANYTHING, "how vLLM compiles"),
    label("disable_custom_all_reduce", checks.boolean, "there is one device"),
    label("disable_async_output_proc", checks.boolean, "where vLLM reads tokens"),
    label("async_scheduling", checks.boolean, "steps overlap where that pays"),
    label("disable_log_stats", checks.boolean, "nothing is logged"),
    label("distributed_executor_backend", _ANYTHING, "there is one process"),
    label("allowed_local_media_path", checks.string, "no files are read for prompts"),
    label("limit_mm_per_prompt", _ANYTHING, "prompts are text"),
    label("served_model_name", _ANYTHING, "outputs don't name the model"),
    label("hf_token", _ANYTHING, "the Hub's own variable HF_TOKEN is used"),
    refused("dtype", "auto", doc="compute in another type; weights are used as they are stored"),
    refused("quantization", doc="quantise or read otherwise; what config.json says is done"),
    refused("tokenizer", doc="another tokenizer"),
    refused("tokenizer_mode", "auto", doc="another kind of tokenizer"),
    refused("tokenizer_revision", doc="another version of the tokenizer"),
    refused("revision", doc="another version of the model", hint="download it, and give its directory"),
    refused("skip_tokenizer_init", False, doc="work without a tokenizer"),
    refused("chat_template", doc="another chat template", hint="write it into the model's directory"),
    refused("tensor_parallel_size", 1, doc="several devices for one model"),
    refused("pipeline_parallel_size", 1, doc="several devices for one model"),
    refused("data_parallel_size", 1, doc="several copies of the model", hint="use a queue with several workers"),
    refused("enable_expert_parallel", False, doc="several devices for one model"),
    refused("cpu_offload_gb", 0, doc="weights in other memory; there is only one"),
    refused("kv_cache_memory_bytes", doc="memory for keys and values", hint="use gpu_memory_utilization"),
    refused("kv_cache_dtype", "auto", doc="quantised keys and values"),
    refused("runner", "auto", "generate", doc="embeddings, scores and classes"),
    refused("task", "auto", "generate", doc="embeddings, scores and classes"),
    refused("convert", "auto", "none", doc="embeddings, scores and classes"),
    refused("pooler_config", doc="embeddings, scores and classes"),
    refused("load_format", "auto", doc="weights from other files"),
    refused("download_dir", doc="another cache", hint="use the Hub's variable HF_HOME"),
    refused("hf_overrides", {}, doc="another config.json"),
    refused("override_generation_config", {}, doc="another generation_config.json", hint="give SamplingParams"),
    refused("mm_processor_kwargs", {}, doc="how to read images"),
    refused("max_logprobs", 20, doc="more alternatives"),
    refused("logits_processors", [], doc="Python classes that change the logits"),
    refused("speculative_config", doc="a model for speculative decoding"),
    refused("structured_outputs_config", {}, {"backend": "auto"}, {"backend": "guidance"}, doc="how to hold answers"),
    refused("guided_decoding_backend", "auto", "guidance", doc="how to hold answers"),
    refused("enable_lora", False, doc="adapters"),
    refused("max_lora_rank", doc="adapters"),
    refused("max_loras", doc="adapters"),
    refused("enable_return_routed_experts", False, doc="which experts tokens went to"),
    refused("attention_config", doc="how attention is computed"),
    refused("profiler_config", doc="vLLM's profiler"),
)
"""Those of the constructor."""

_OF_BOTH = (
    honoured("sampling_params", Check("SamplingParams, one or a list of as many as prompts", _ANYTHING.read), "how"),
    honoured("use_tqdm", Check("true, false or a class such as tqdm", _ANYTHING.read), "a progress bar on stderr"),
    refused("lora_request", doc="adapters"),
    refused("tokenization_kwargs", {}, doc="how to tokenise"),
    refused("priority", doc="order of prompts"),
)

GENERATE_ARGUMENTS = table(
    honoured(
        "prompts",
        Check(
            "a prompt or a list of them: text, token ids, or an object with prompt or prompt_token_ids", _ANYTHING.read
        ),
        "what to go on from",
    ),
    honoured("prompt_token_ids", Check("a list of token ids or of such lists", _ANYTHING.read), "vLLM's earlier name"),
    *_OF_BOTH,
    refused("prompt_adapter_request", doc="adapters"),
    refused("guided_options_request", doc="vLLM's earlier name", hint="use SamplingParams(structured_outputs=...)"),
)
"""Those of `LLM.generate`."""

CHAT_ARGUMENTS = table(
    honoured("messages", Check("a conversation or a list of them", _ANYTHING.read), "what to answer"),
    *_OF_BOTH,
    *(FIELDS[name] for name in ("add_generation_prompt", "continue_final_message", "tools", "chat_template_kwargs")),
    label("chat_template_content_format", _ANYTHING, "messages get the shape that the template wants"),
    refused("chat_template", doc="another chat template", hint="write it into the model's directory"),
    refused("mm_processor_kwargs", {}, doc="how to read images"),
)
"""Those of `LLM.chat`."""


def read_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """The constructor's arguments that are honoured, checked; those that are `None` count as not given.

    Raises:
        ConfigError: one is unknown, has a wrong value, or can't be honoured; names it.
    """
    read = {}
    for name, value in given.items():
        field = _known(name, LLM_ARGUMENTS, "LLM")
        if value is not None or name == "seed":
            read[name] = _read(field, list(value) if isinstance(value, tuple) else value, name)
    return {name: value for name, value in read.items() if LLM_ARGUMENTS[name].check and not LLM_ARGUMENTS[name].label}


def refuse_others(given: Mapping[str, Any], arguments: Mapping[str, Field], method: str) -> None:
    """Look at the arguments of a call that have no name of their own in its signature.

    Raises:
        ConfigError: one is unknown or asks for something; names it.
    """
    for name, value in given.items():
        field = _known(name, arguments, method)
        if value is not None:
            _read(field, value, name)


def _known(name: str, arguments: Mapping[str, Field], method: str) -> Field:
    if name not in arguments:
        error = checks.unknown_field(name, arguments)
        raise ConfigError(f"{method}: {error.message}")
    return arguments[name]


def _read(field: Field, value: Any, name: str) -> Any:
    try:
        return field.read(value, name)
    except RequestError as error:
        raise ConfigError(error.message) from error


def _seed(value: Any, param: str) -> int | None:
    return None if value is None else checks.integer(0, 2**63 - 1)(value, param)
