"""Every field that the body of a request may have, each listed once: `FIELDS`.

A field is honoured, or is a label, or is refused; `openai` refuses what is not listed at all. The names and meanings
are OpenAI's, with vLLM's extras under vLLM's names. Knows the fields one by one; how they go together is for
`assemble`.
"""

from __future__ import annotations

from typing import Any, Literal

from mlxq.contract import RepetitionDetection
from mlxq.errors import RequestError
from mlxq.requests import checks, conversation, structures
from mlxq.requests.checks import Check
from mlxq.requests.field import honoured, label, read_object, refused, table

MAX_ANSWERS = 64
MAX_BEAM_WIDTH = 32
MAX_ALTERNATIVES = 20
MAX_BIASES = 1024
MAX_BAD_WORDS = 256
MAX_ALLOWED_TOKENS = 262_144
MAX_PATTERN = 256
MAX_SCORED_TOKENS = 128


def _prompt(value: Any, param: str) -> str | tuple[int, ...]:
    """One prompt, also in OpenAI's list of prompts, where one line can have one only."""
    if type(value) is not list or not value or type(value[0]) not in (str, list):
        return _text_or_ids(value, param)
    if len(value) > 1:
        message = f"{param} must be one prompt, not a list of {len(value)}: write one line per prompt"
        raise RequestError(message, param=param, code="invalid_type")
    return _text_or_ids(value[0], f"{param}[0]")


def _text_or_ids(value: Any, param: str) -> str | tuple[int, ...]:
    if type(value) is str:
        return checks.filled_string(value, param)
    if type(value) is not list:
        raise checks.wrong_type(param, _A_PROMPT, value)
    return _prompt_ids(value, param)


def _stop(value: Any, param: str) -> tuple[str, ...]:
    if type(value) is str:
        return (checks.filled_string(value, param),)
    if type(value) is not list:
        raise checks.wrong_type(param, "a string or a list of strings", value)
    return _stop_strings(value, param)


def _top_k(value: Any, param: str) -> int:
    return max(0, _at_least_minus_one(value, param))


def _seed(value: Any, param: str) -> int | None:
    """As in vLLM, -1 is no seed (`SamplingParams.__post_init__` in vllm/sampling_params.py)."""
    seed = _any_seed(value, param)
    return None if seed == -1 else seed


def _thinking_token_budget(value: Any, param: str) -> int | None:
    budget = _at_least_minus_one(value, param)
    return None if budget == -1 else budget


def _early_stopping(value: Any, param: str) -> bool | Literal["never"]:
    if value == "never":
        return "never"
    if type(value) is not bool:
        raise checks.wrong_type(param, _EARLY_STOPPING, value)
    return value


def _logprobs(value: Any, param: str) -> bool | int:
    return value if type(value) is bool else _alternatives(value, param)


def _logit_bias(value: Any, param: str) -> dict[int, float]:
    biases = checks.an_object(value, param)
    if len(biases) > MAX_BIASES:
        text = f"{param} must be an object of at most {MAX_BIASES} token ids, not of {len(biases)}"
        raise RequestError(text, param=param, code="out_of_range")
    return {_id_in_text(name, param): _bias(bias, f"{param}.{_shortened(name)}") for name, bias in biases.items()}


def _id_in_text(name: str, param: str) -> int:
    """The token id that JSON has as a string: digits only, so that no id has two names."""
    number = int(name) if len(name) <= 10 and name.isascii() and name.isdigit() else None
    if str(number) != name or number is None or number > checks.MAX_INT32:
        raise checks.out_of_range(f"{param}.{_shortened(name)}", "named by a token id, such as 42", name)
    return number


def _shortened(name: str) -> str:
    return name[: checks.MAX_SHOWN_CHARS]


def _repetition_detection(value: Any, param: str) -> RepetitionDetection | None:
    """vLLM's defaults: no largest size switches it off, and no smallest size is 1."""
    given = {"max_pattern_size": 0, "min_pattern_size": 0, "min_count": 0}
    given |= read_object(REPETITION_DETECTION_FIELDS, value, param)
    largest, smallest, count = given.values()
    if smallest > largest:
        raise checks.out_of_range(f"{param}.min_pattern_size", f"at most max_pattern_size ({largest})", smallest)
    if largest == 0:
        return None
    if count < 2:
        raise checks.out_of_range(f"{param}.min_count", "at least 2", count)
    return RepetitionDetection(max_pattern_size=largest, min_pattern_size=smallest or 1, min_count=count)


_A_PROMPT = "a non-empty string or a list of token ids, maybe as the only one in a list"
_EARLY_STOPPING = 'true, false or "never"'
_token_id = checks.integer(0)
# OpenAI's are those below 2**63; a negative one is reported as what it is modulo 2**64.
_any_seed = checks.integer(-(2**63), 2**64 - 1)
_at_least_minus_one = checks.integer(-1)
_alternatives = checks.integer(0, MAX_ALTERNATIVES)
_bias = checks.number(-100, 100)
_prompt_ids = checks.list_of(_token_id, "token ids", at_least=1)
_stop_strings = checks.list_of(checks.filled_string, "strings", at_most=16)
_bad_words = checks.list_of(checks.filled_string, "strings", at_most=MAX_BAD_WORDS)
_allowed_token_ids = checks.list_of(_token_id, "token ids", at_least=1, at_most=MAX_ALLOWED_TOKENS)
_logprob_token_ids = checks.list_of(_token_id, "token ids", at_least=1, at_most=MAX_SCORED_TOKENS)
_EFFORTS = {effort: effort for effort in ("none", "minimal", "low", "medium", "high", "xhigh", "max")}

REPETITION_DETECTION_FIELDS = table(
    honoured("max_pattern_size", checks.integer(0, MAX_PATTERN), "most tokens in the pattern; 0 is off"),
    honoured("min_pattern_size", checks.integer(0, MAX_PATTERN), "fewest tokens in the pattern; 0 is 1"),
    honoured("min_count", checks.integer(0, MAX_PATTERN), "how often the pattern must come, at least 2"),
)

FIELDS = table(
    honoured(
        "messages",
        conversation.messages,
        "the conversation; makes it a chat request",
        chat_only=True,
        inside=conversation.MESSAGE_FIELDS,
    ),
    honoured("prompt", Check(_A_PROMPT, _prompt), "makes it a completion request"),
    honoured("model", checks.filled_string, "any name: a worker serves one model, and the answer says which"),
    honoured(
        "max_tokens",
        checks.integer(0),
        "most tokens to generate; the worker's default or the model's if absent; 0 only with echo",
        fills="max_tokens",
    ),
    honoured("max_completion_tokens", checks.integer(0), "the same as max_tokens", fills="max_tokens"),
    honoured("min_tokens", checks.integer(0), "no end of text before this many tokens", fills="min_tokens"),
    honoured("temperature", checks.number(0), "0 is greedy; the model's or 1 if absent", fills="temperature"),
    honoured("top_p", checks.number(0, 1, above_low=True), "1 is off", fills="top_p"),
    honoured("top_k", Check(_at_least_minus_one.expected, _top_k), "0 and -1 are off", fills="top_k"),
    honoured("min_p", checks.number(0, 1), "0 is off", fills="min_p"),
    honoured(
        "seed",
        Check(_any_seed.expected, _seed),
        "same seed, same answer; drawn and reported if absent or -1; answer i has seed + i",
        fills="seed",
    ),
    honoured(
        "stop",
        Check("a non-empty string or a list of at most 16 strings", _stop),
        "strings that end the text",
        fills="stop",
    ),
    honoured(
        "stop_token_ids",
        checks.list_of(_token_id, "token ids", at_most=64),
        "more end tokens",
        fills="stop_token_ids",
    ),
    honoured("ignore_eos", checks.boolean, "generate past the end of text", fills="ignore_eos"),
    honoured(
        "include_stop_str_in_output",
        checks.boolean,
        "keep the stop string in the text",
        fills="include_stop_str_in_output",
    ),
    honoured("timeout", checks.number(0, above_low=True), "seconds of decoding", fills="timeout_s"),
    honoured("presence_penalty", checks.number(-2, 2), "against tokens of the answer", fills="presence_penalty"),
    honoured(
        "frequency_penalty", checks.number(-2, 2), "against tokens of the answer, by count", fills="frequency_penalty"
    ),
    honoured(
        "repetition_penalty",
        checks.number(0.01, 100),
        "against tokens of prompt and answer; 1 is off",
        fills="repetition_penalty",
    ),
    honoured(
        "repetition_detection",
        Check("an object", _repetition_detection),
        "end a text that ends with copies of one pattern of tokens",
        fills="repetition_detection",
        inside=REPETITION_DETECTION_FIELDS,
    ),
    honoured(
        "logit_bias",
        Check(f"an object of at most {MAX_BIASES} token ids, each with {_bias.expected}", _logit_bias),
        "added to the logits of these tokens",
        fills="logit_bias",
    ),
    honoured("bad_words", _bad_words, "words never to generate", fills="bad_words"),
    honoured("allowed_token_ids", _allowed_token_ids, "the only tokens to generate", fills="allowed_token_ids"),
    honoured("n", checks.integer(1, MAX_ANSWERS), "number of answers; 1 if absent", fills="n"),
    honoured("best_of", checks.integer(1, MAX_ANSWERS), "1 or the same as n: no answers are thrown away"),
    honoured("use_beam_search", checks.boolean, "the n best hypotheses instead of n samples"),
    honoured(
        "beam_width",
        checks.integer(1, MAX_BEAM_WIDTH),
        "hypotheses that are followed: n or more; n if absent",
        neutral=(1,),
    ),
    honoured(
        "length_penalty",
        checks.number(-10, 10),
        "beams score their log probability / length ** length_penalty",
        neutral=(1,),
    ),
    honoured(
        "early_stopping",
        Check(_EARLY_STOPPING, _early_stopping),
        "when a beam search ends, as in transformers",
        neutral=(False,),
    ),
    honoured(
        "logprobs",
        Check(f"true or false; in a completion also {_alternatives.expected}", _logprobs),
        "log probabilities of the answer's tokens; a number is that of the alternatives",
    ),
    honoured("top_logprobs", _alternatives, "alternatives to report for each token, beside logprobs"),
    honoured(
        "prompt_logprobs",
        _alternatives,
        "log probabilities of the prompt's tokens, with so many alternatives",
        fills="prompt_logprobs",
    ),
    honoured(
        "logprob_token_ids",
        _logprob_token_ids,
        "tokens to report in each place of the answer, beside the most probable ones",
        fills="logprob_token_ids",
    ),
    honoured(
        "echo",
        checks.boolean,
        "begin the text with the prompt, and the log probabilities with those of the prompt (completions only)",
        neutral=(False,),
    ),
    honoured("return_token_ids", checks.boolean, "report the ids of prompt and answer", fills="return_token_ids"),
    honoured(
        "response_format",
        structures.response_format,
        "hold the answer to JSON",
        inside=structures.RESPONSE_FORMAT_FIELDS,
    ),
    honoured(
        "structured_outputs",
        structures.structured_outputs,
        "hold the answer to a grammar",
        inside=structures.STRUCTURED_OUTPUTS_FIELDS,
    ),
    honoured(
        "tools",
        conversation.tools,
        f"functions that the model may call, their names {conversation.TOOL_NAMES};"
        " the arguments of a strict one fit its schema",
        neutral=([],),
        chat_only=True,
    ),
    honoured(
        "tool_choice",
        conversation.tool_choice,
        "whether a tool may or must be called, and which; none hides them",
        neutral=("auto", "none"),
        chat_only=True,
        inside=conversation.TOOL_CHOICE_FIELDS,
    ),
    honoured(
        "parallel_tool_calls", checks.boolean, "whether one answer may have many calls", neutral=(True,), chat_only=True
    ),
    honoured(
        "add_generation_prompt",
        checks.boolean,
        "whether to open the assistant's turn; true if absent",
        neutral=(True,),
        chat_only=True,
    ),
    honoured(
        "continue_final_message",
        checks.boolean,
        "go on with the last message instead of answering it",
        neutral=(False,),
        chat_only=True,
    ),
    honoured("chat_template_kwargs", checks.an_object, "variables for the chat template", chat_only=True),
    honoured(
        "reasoning_effort",
        checks.one_of(_EFFORTS),
        "sets reasoning_effort and enable_thinking for the chat template",
        chat_only=True,
    ),
    honoured(
        "thinking_token_budget",
        Check(_at_least_minus_one.expected, _thinking_token_budget),
        "most tokens of reasoning, which is closed by force there; -1 is off",
        fills="thinking_token_budget",
    ),
    label("user", checks.string, "who asked"),
    label("metadata", checks.an_object, "anything worth noting"),
    label("safety_identifier", checks.string, "who asked, as a hash"),
    label("session_id", checks.string, "which requests belong together"),
    label("prompt_cache_key", checks.string, "which prompts are alike; shared prefixes are found without it"),
    label("prompt_cache_retention", checks.string, "how long to keep prefixes"),
    refused("guided_json", doc="vLLM's earlier name", hint="use structured_outputs with json"),
    refused("guided_regex", doc="vLLM's earlier name", hint="use structured_outputs with regex"),
    refused("guided_choice", doc="vLLM's earlier name", hint="use structured_outputs with choice"),
    refused("guided_grammar", doc="vLLM's earlier name", hint="use structured_outputs with grammar"),
    refused("functions", doc="replaced by tools", hint="use tools"),
    refused("function_call", "auto", "none", doc="replaced by tool_choice", hint="use tool_choice"),
    refused("include_reasoning", True, doc="leave the reasoning out of the answer"),
    refused("return_tokens_as_token_ids", False, doc="ids in the place of tokens", hint="use return_token_ids"),
    refused("return_prompt_text", False, doc="report what the chat template made"),
    refused("return_token_offsets", False, doc="report where tokens begin in the prompt"),
    refused("verbosity", "medium", doc="how much to say", droppable=True),
    refused("modalities", ["text"], doc="kinds of answers"),
    refused("audio", doc="audio answers"),
    refused("prediction", doc="predicted answer", droppable=True),
    refused("web_search_options", doc="web search"),
    refused("suffix", doc="text after the gap to fill"),
    refused("stream", False, doc="answers in pieces", droppable=True),
    refused("stream_options", doc="how to stream", droppable=True),
    refused("stream_interval", doc="tokens in each piece", droppable=True),
    refused("store", False, doc="keep the answer on the server", droppable=True),
    refused("service_tier", "auto", "default", doc="OpenAI's price class", droppable=True),
    refused("priority", 0, doc="order in vLLM's waiting queue", droppable=True),
    refused("request_id", doc="vLLM's name of the request", hint="use custom_id", droppable=True),
    refused("cache_salt", doc="keep others from sharing a prefix", droppable=True),
    refused("kv_transfer_params", doc="keys and values from another vLLM", droppable=True),
    refused("ec_transfer_params", doc="encoded images from another vLLM", droppable=True),
    refused("truncate_prompt_tokens", doc="cut long prompts"),
    refused("truncation_side", doc="where to cut long prompts"),
    refused("skip_special_tokens", True, doc="keep special tokens in the text"),
    refused("spaces_between_special_tokens", True, doc="no spaces between special tokens"),
    refused("add_special_tokens", doc="special tokens around the prompt"),
    refused("chat_template", doc="another chat template"),
    refused("documents", doc="documents for the chat template"),
    refused("mm_processor_kwargs", doc="how to read images"),
    refused("media_io_kwargs", doc="how to load images"),
    refused("vllm_xargs", doc="for extensions of vLLM"),
    refused("repetition_context_size", doc="mlx_lm.server's reach of repetition_penalty, which here is all"),
    refused("presence_context_size", doc="mlx_lm.server's reach of presence_penalty, which here is the answer"),
    refused("frequency_context_size", doc="mlx_lm.server's reach of frequency_penalty, which here is the answer"),
    refused("xtc_probability", 0, doc="how often mlx_lm.server leaves out the top choices"),
    refused("xtc_threshold", doc="which choices those are"),
    refused("adapters", doc="an adapter of the model"),
    refused("draft_model", doc="a model for speculative decoding", droppable=True),
    refused("num_draft_tokens", doc="how far to speculate", droppable=True),
    refused("role_mapping", doc="prefixes of roles without a chat template"),
)
"""Every field of the body, once, so that documentation can be generated from it."""
