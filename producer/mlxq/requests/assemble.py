"""From the body of one request to a `Request`: reads every field, and checks what fields say about each other.

All rules of more than one field are here: what needs, excludes or limits what. A request that gets past them is asked
for in full, since nothing that it says is left aside. Knows no lines, no defaults and no model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from mlxq.contract import CHAT, Beam, Endpoint, Request, Sampling, Structure, ToolChoice
from mlxq.errors import RequestError
from mlxq.requests import checks
from mlxq.requests.fields import FIELDS, MAX_BEAM_WIDTH

Tools = Sequence[Mapping[str, Any]]

_ONLY_OF_BEAMS = ("beam_width", "length_penalty", "early_stopping")
"""Fields that only a beam search honours."""
_NOT_OF_BEAMS = (
    "top_p",
    "top_k",
    "min_p",
    "stop",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "repetition_detection",
    "logit_bias",
    "bad_words",
    "allowed_token_ids",
    "logprobs",
    "prompt_logprobs",
    "logprob_token_ids",
    "thinking_token_budget",
)
"""Fields, named like attributes of `Sampling`, that a beam search can't honour."""
_MAX_SHOWN_TOOLS = 10


def request_of(custom_id: str, endpoint: Endpoint, body: Mapping[str, Any], content_hash: str) -> Request:
    """The request that the known fields of a body ask for; none of them is null.

    Raises:
        RequestError: a field has a wrong value, or one that doesn't go with the others.
    """
    asked = body if endpoint == CHAT else _of_completion(body)
    values = {name: FIELDS[name].read(value, name) for name, value in asked.items()}
    sampling = _sampling(values, endpoint)
    _check_echo(sampling, values, endpoint)
    choice = _tool_choice(values)
    structure = _structure(values)
    _check_structure_beside_tools(structure, choice, values)
    _check_beams(sampling, structure, choice, values.get("tools", ()))
    return Request(
        custom_id=custom_id,
        endpoint=endpoint,
        sampling=sampling,
        content_hash=content_hash,
        prompt=values.get("prompt"),
        messages=values.get("messages"),
        tools=None if choice.mode == "none" else values.get("tools") or None,
        tool_choice=choice,
        structure=structure,
        chat_template_kwargs=_template_kwargs(values),
        **_turn(values),
        model=values.get("model"),
    )


def _of_completion(body: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a completion: those of a chat are refused, unless they ask for nothing."""
    for name, value in body.items():
        if FIELDS[name].chat_only and not FIELDS[name].asks_nothing(value):
            raise RequestError(f"{name} only goes with messages", param=name, code="unsupported_field")
    return {name: value for name, value in body.items() if not FIELDS[name].chat_only}


def _conflict(param: str, message: str) -> RequestError:
    return RequestError(message, param=param, code="conflicting_fields")


# --- Sampling -------------------------------------------------------------------------------------------------


def _sampling(values: Mapping[str, Any], endpoint: Endpoint) -> Sampling:
    filled: dict[str, Any] = {}
    for name, value in values.items():
        attribute = FIELDS[name].fills
        if attribute is not None and filled.setdefault(attribute, value) != value:
            names = " and ".join(other for other in values if FIELDS[other].fills == attribute)
            raise RequestError(f"{names} differ; give one of them", param=name)
    sampling = Sampling(**filled, logprobs=_num_logprobs(values, endpoint), beam=_beam(values))
    _check_min_tokens(sampling)
    _check_best_of(sampling, values)
    return sampling


def _check_min_tokens(sampling: Sampling) -> None:
    if sampling.max_tokens is not None and sampling.min_tokens > sampling.max_tokens:
        expected = f"at most max_tokens ({sampling.max_tokens})"
        raise checks.out_of_range("min_tokens", expected, sampling.min_tokens)


def _check_best_of(sampling: Sampling, values: Mapping[str, Any]) -> None:
    if values.get("best_of", 1) not in (1, sampling.n):
        expected = f"1 or n ({sampling.n}), since all answers are returned"
        raise checks.out_of_range("best_of", expected, values["best_of"])


def _num_logprobs(values: Mapping[str, Any], endpoint: Endpoint) -> int | None:
    """How many alternatives to report; `None` for no log probabilities. A completion's `logprobs` may be the number, as
    OpenAI has it, or true beside `top_logprobs`, as mlx_lm.server has it."""
    asked, num_top = values.get("logprobs", False), values.get("top_logprobs", 0)
    if type(asked) is int:
        if endpoint == CHAT:
            raise checks.wrong_type("logprobs", "true or false in a chat (top_logprobs takes the number)", asked)
        if num_top not in (0, asked):
            raise _conflict("top_logprobs", "logprobs and top_logprobs differ; give one of them")
        return asked
    if num_top and not asked:
        raise _conflict("top_logprobs", "top_logprobs needs logprobs; set logprobs to true")
    return num_top if asked or "logprob_token_ids" in values else None


def _check_echo(sampling: Sampling, values: Mapping[str, Any], endpoint: Endpoint) -> None:
    """An answer without a token of its own is for the scores of the prompt that it repeats."""
    echo = values.get("echo", False)
    if echo and endpoint == CHAT:
        raise RequestError("echo only goes with a prompt", param="echo", code="unsupported_field")
    if sampling.max_tokens == 0 and not echo:
        name = "max_tokens" if "max_tokens" in values else "max_completion_tokens"
        raise checks.out_of_range(name, f"an integer from 1 to {checks.MAX_INT32}, or 0 with echo", 0)


# --- Beam search ----------------------------------------------------------------------------------------------


def _beam(values: Mapping[str, Any]) -> Beam | None:
    if not values.get("use_beam_search"):
        for name in _ONLY_OF_BEAMS:
            if name in values and not FIELDS[name].asks_nothing(values[name]):
                raise _conflict(name, f"{name} only goes with use_beam_search")
        return None
    n = values.get("n", 1)
    width = values.get("beam_width", n)
    if n > min(width, MAX_BEAM_WIDTH):
        limit = f"beam_width ({width})" if "beam_width" in values else f"{MAX_BEAM_WIDTH} with use_beam_search"
        raise checks.out_of_range("n", f"at most {limit}", n)
    return Beam(width=width, **{name: values[name] for name in ("length_penalty", "early_stopping") if name in values})


def _check_beams(sampling: Sampling, structure: Structure | None, choice: ToolChoice, tools: Tools) -> None:
    """Nothing that a beam search would have to leave aside is asked of it."""
    if sampling.beam is None:
        return
    for name in _not_of_beams(sampling, structure, choice, tools):
        raise _conflict(name, f"{name} can't be combined with use_beam_search")
    if sampling.temperature not in (0, 1):
        text = "temperature must be 0, 1 or absent with use_beam_search, which does not sample"
        raise _conflict("temperature", text)
    if choice.mode == "required":
        raise _conflict("tool_choice", "tool_choice can't demand a call together with use_beam_search")


def _not_of_beams(sampling: Sampling, structure: Structure | None, choice: ToolChoice, tools: Tools) -> Iterator[str]:
    default = Sampling()
    yield from (name for name in _NOT_OF_BEAMS if getattr(sampling, name) != getattr(default, name))
    if structure is not None:
        yield _field_of(structure)
    if choice.mode == "auto":
        strict = (index for index, tool in enumerate(tools) if tool["function"].get("strict"))
        yield from (f"tools[{index}].function.strict" for index in strict)


# --- Structure, tools and templates ---------------------------------------------------------------------------


def _structure(values: Mapping[str, Any]) -> Structure | None:
    given = [structure for name in ("response_format", "structured_outputs") if (structure := values.get(name))]
    if len(given) > 1:
        text = "response_format and structured_outputs both say what the answer must be; give one of them"
        raise _conflict("structured_outputs", text)
    return given[0] if given else None


def _field_of(structure: Structure) -> str:
    return structure.param.partition(".")[0]


def _tool_choice(values: Mapping[str, Any]) -> ToolChoice:
    choice: ToolChoice = values.get("tool_choice", ToolChoice())
    names = [tool["function"]["name"] for tool in values.get("tools", ())]
    if choice.mode == "required" and not names:
        raise _conflict("tool_choice", "tool_choice demands a call, but there are no tools")
    if choice.name is not None and choice.name not in names:
        param = "tool_choice.function.name"
        shown = ", ".join(names[:_MAX_SHOWN_TOOLS])[:100]
        text = f"{param} must be the name of one of the tools ({shown}), not {checks.show(choice.name)}"
        raise RequestError(text, param=param, code="unknown_tool")
    return msgspec.structs.replace(choice, parallel=values.get("parallel_tool_calls", True)) if names else choice


def _check_structure_beside_tools(structure: Structure | None, choice: ToolChoice, values: Mapping[str, Any]) -> None:
    """A demanded call is the whole answer. Where calls are the model's choice, an answer without any has the form."""
    if structure is None:
        return
    if choice.mode == "required":
        text = f"{_field_of(structure)} gives the answer a form, but tool_choice demands a call; leave one of them out"
        raise _conflict("tool_choice", text)
    if structure.kind in ("grammar", "structural_tag") and choice.mode == "auto" and values.get("tools"):
        text = f'{structure.param} leaves no room for calls; set tool_choice to "none" or use another form'
        raise _conflict(structure.param, text)


def _turn(values: Mapping[str, Any]) -> dict[str, bool]:
    """Whose turn an answer is. The last message is gone on with in its own."""
    goes_on = values.get("continue_final_message", False)
    if goes_on and values.get("add_generation_prompt"):
        text = "continue_final_message goes on with the last turn, add_generation_prompt opens one; set one of them"
        raise _conflict("continue_final_message", text)
    return {
        "echo": values.get("echo", False),
        "add_generation_prompt": values.get("add_generation_prompt", not goes_on),
        "continue_final_message": goes_on,
    }


def _template_kwargs(values: Mapping[str, Any]) -> dict[str, Any]:
    """The template's variables. As in vLLM, `reasoning_effort` is one, and switches thinking on or off where the
    template has a switch and the request doesn't turn it itself."""
    given: dict[str, Any] = values.get("chat_template_kwargs", {})
    effort = values.get("reasoning_effort")
    if effort is None:
        return given
    if given.get("reasoning_effort", effort) != effort:
        text = "reasoning_effort and chat_template_kwargs.reasoning_effort differ; give one of them"
        raise _conflict("reasoning_effort", text)
    return {"enable_thinking": effort != "none", **given, "reasoning_effort": effort}
