"""A model: its files, what `mlxq inspect` makes of them, and one tiny generation."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxq.errors import EosError, MlxqError, RequestError
from mlxq.requests.openai import text_request
from mlxq_worker.commands.doctor.finding import Finding, in_words, note, ok, problem, warning

if TYPE_CHECKING:
    from mlxq_worker.backend import Backend

_POINTER = b"version https://git-lfs"
_SAMPLE_TOKENS = 8


def look_at_files(folder: Path) -> Iterator[Finding]:
    """Whether the files are those of a model, and whole. The weights' headers are read, and nothing else of them."""
    from mlxq_worker.model.safetensors import WEIGHT_FILES, weights_bytes

    pointers = [file.name for file in sorted(folder.iterdir()) if _is_pointer(file)]
    if pointers:
        what = f"{', '.join(pointers)} in {folder} are pointers of Git LFS, not the files themselves"
        yield problem("model_files", what, "run git lfs pull in that folder, or download the model with `hf download`")
        return
    if not list(folder.glob(WEIGHT_FILES)):
        others = [file.name for pattern in ("*.bin", "*.gguf", "*.pt", "*.npz") for file in folder.glob(pattern)]
        has = f"; it has {', '.join(others[:3])}" if others else ""
        todo = "convert it with `mlx_lm.convert`, or download it again: a model has model*.safetensors"
        yield problem("model_files", f"{folder} has no weights that can be read{has}", todo)
        return
    try:
        num_bytes = weights_bytes(folder)
    except MlxqError as error:
        yield problem("model_files", str(error), "download the file again: it is damaged, or its download was cut off")
    else:
        yield ok("model_files", f"{folder} has weights of {in_words(num_bytes)}")


def look_at_description(inspected: Callable[[], Mapping[str, Any]]) -> Iterator[Finding]:
    """What the other files say.

    Args:
        inspected: gives what `mlxq inspect --json` prints; raises its errors.
    """
    try:
        found = inspected()
    except EosError as error:
        yield problem("model_eos", str(error), "name the end token with --extra-eos-token, for the worker too")
        return
    except MlxqError as error:
        yield problem(
            "model", str(error), "take the folder from a model in Hugging Face layout, whole: mlxq inspect MODEL"
        )
        return
    yield from _on_batching(found["architecture"], found["batching"])
    tokens = [f"{token['id']} {token['token']} ({', '.join(token['sources'])})" for token in found["eos"]["tokens"]]
    yield (
        ok("model_eos", f"answers end on {'; '.join(tokens)}")
        if tokens
        else warning("model_eos", "no token ends an answer", "name one with --extra-eos-token")
    )
    if broken := found["sampling_defaults_error"]:
        yield problem("model_sampling", broken, "mend generation_config.json, or --generation-config off for workers")
    yield from _on_chats(found["chat_templates"], found["chats"])
    calls, reasoning = found["tool_calls"], found["reasoning"]
    yield (
        ok("model_tools", f"tool calls are written as {calls['parser']}")
        if calls
        else note(
            "model_tools",
            "no form of tool calls is known: tools are refused",
            "--tool-call-parser NAME, if you know it",
        )
    )
    yield (
        ok("model_reasoning", f"reasoning is marked as {reasoning['parser']}")
        if reasoning
        else note("model_reasoning", "no reasoning is told apart", "--reasoning-parser NAME, if the model reasons")
    )


def look_at_generation(load: Callable[[], Backend]) -> Iterator[Finding]:
    """Load the model and let it say a few words."""
    began = time.perf_counter()
    try:
        backend = load()
    except MlxqError as error:
        yield problem("generation", f"the model can't be loaded: {error}", "see the findings on the model and memory")
        return
    loaded_s = time.perf_counter() - began
    try:
        num_tokens = _generate(backend)
    except RequestError as error:
        yield problem("generation", f"the model refuses the simplest request: {error.message}", "mlxq inspect MODEL")
    except Exception as error:  # noqa: BLE001  whatever MLX raises is the finding
        what = f"the model is loaded, and a step raises {type(error).__name__}: {error}"
        yield problem("generation", what, "update mlx and mlx-lm to the versions that mlxq asks for, and report it")
    else:
        seconds = time.perf_counter() - began - loaded_s
        yield ok(
            "generation", f"the model was loaded in {loaded_s:.1f} s and gave {num_tokens} tokens in {seconds:.1f} s"
        )
    finally:
        backend.close()


def _generate(backend: Backend) -> int:
    """How many tokens came."""
    line = text_request("Hello", custom_id="doctor", defaults={"max_tokens": _SAMPLE_TOKENS, "temperature": 0})
    engine = backend.new_engine()
    try:
        for spec in backend.preparer.prepare(line.request, "doctor"):
            engine.admit(spec)
        for _ in range(100 * _SAMPLE_TOKENS):
            if finished := engine.step(time.monotonic()).finished:
                return len(finished[0].token_ids)
    finally:
        engine.close()
    raise RuntimeError("it never comes to an end")


def _on_batching(architecture: str, batching: Mapping[str, str]) -> Iterator[Finding]:
    what = f"{architecture}: {batching['kind']}, {batching['why']}"
    match batching["kind"]:
        case "refused":
            yield problem(
                "model_batching", what, "take a model of an architecture that mlx-lm has (docs/architectures.md)"
            )
        case "one at a time":
            yield warning("model_batching", what, "expect one row at a time; docs/architectures.md has faster ones")
        case _:
            yield ok("model_batching", what)


def _on_chats(templates: list[str], chats: Mapping[str, str]) -> Iterator[Finding]:
    if not templates:
        todo = "send prompts instead of messages, or add chat_template.jinja from the model's instruct version"
        yield warning("model_chat", "there is no chat template: requests with messages are refused", todo)
        return
    refused = {name: outcome for name, outcome in chats.items() if outcome != "rendered"}
    if "plain" in refused:
        yield problem(
            "model_chat", f"the chat template renders no chat: {refused['plain']}", "take the model's own template"
        )
        return
    yield ok("model_chat", f"the chat template renders {', '.join(name for name in chats if name not in refused)}")
    for name, outcome in refused.items():
        yield note("model_chat", f"a chat with {name} is refused: {outcome}", "leave that out of requests")


def _is_pointer(file: Path) -> bool:
    if not file.is_file():
        return False
    with file.open("rb") as stream:
        return stream.read(len(_POINTER)) == _POINTER
