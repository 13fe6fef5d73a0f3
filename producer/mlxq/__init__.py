"""mlxq: run LLM prompts in bulk through a Redis queue. What programs use is here; the rest of the package may change.

    from mlxq import Client, request

    with Client("redis://localhost:6379") as client:
        batch = client.submit(request(prompt=text, max_tokens=100) for text in texts)
        for answer in batch.as_completed():
            print(answer.custom_id, answer.text)

A name is imported from its module when it is first asked for, so that importing the package brings nothing heavy.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlxq.aio.client import AsyncBatch, AsyncClient
    from mlxq.errors import (
        BatchNotFound,
        ConfigError,
        EosError,
        FileInUse,
        InputFileError,
        LoginRefused,
        MlxqError,
        ModelError,
        NoSuchFile,
        QueueError,
        QueueNotReady,
        QueueUnavailable,
        RequestError,
        WorkerFailed,
    )
    from mlxq.offline.outputs import CompletionOutput, Logprob, RequestOutput
    from mlxq.offline.sampling_params import GuidedDecodingParams, SamplingParams, StructuredOutputsParams
    from mlxq.queue.batch import Batch
    from mlxq.queue.client import Client
    from mlxq.queue.counts import BatchCounts, StopCount
    from mlxq.requests.build import request
    from mlxq.requests.openai import ParsedLine
    from mlxq.results.answer import Answer, AnswerError
    from mlxq_worker.offline.llm import LLM

__all__ = [
    "LLM",
    "Answer",
    "AnswerError",
    "AsyncBatch",
    "AsyncClient",
    "Batch",
    "BatchCounts",
    "BatchNotFound",
    "Client",
    "CompletionOutput",
    "ConfigError",
    "EosError",
    "FileInUse",
    "GuidedDecodingParams",
    "InputFileError",
    "LoginRefused",
    "Logprob",
    "MlxqError",
    "ModelError",
    "NoSuchFile",
    "ParsedLine",
    "QueueError",
    "QueueNotReady",
    "QueueUnavailable",
    "RequestError",
    "RequestOutput",
    "SamplingParams",
    "StopCount",
    "StructuredOutputsParams",
    "WorkerFailed",
    "request",
]

_MODULES: dict[str, str] = {
    "LLM": "mlxq_worker.offline.llm",
    "Answer": "mlxq.results.answer",
    "AnswerError": "mlxq.results.answer",
    "AsyncBatch": "mlxq.aio.client",
    "AsyncClient": "mlxq.aio.client",
    "Batch": "mlxq.queue.batch",
    "BatchCounts": "mlxq.queue.counts",
    "Client": "mlxq.queue.client",
    "CompletionOutput": "mlxq.offline.outputs",
    "GuidedDecodingParams": "mlxq.offline.sampling_params",
    "Logprob": "mlxq.offline.outputs",
    "ParsedLine": "mlxq.requests.openai",
    "RequestOutput": "mlxq.offline.outputs",
    "SamplingParams": "mlxq.offline.sampling_params",
    "StopCount": "mlxq.queue.counts",
    "StructuredOutputsParams": "mlxq.offline.sampling_params",
    "request": "mlxq.requests.build",
}
"""Public name -> the module that defines it; every other public name is an error."""


if not TYPE_CHECKING:  # hidden from type checkers, to which it would say that every name exists

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(_MODULES.get(name, "mlxq.errors")), name)
        globals()[name] = value  # so that it is looked up once
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
