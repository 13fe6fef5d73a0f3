"""A worker with a real engine over a tiny model, in which some requests go wrong: one in each place where one can.

Nothing of it is in the product: model, sampler, tokenizer and preparer are test objects, put in by `load_backend`.
"""

from __future__ import annotations

import os
import string
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tests.support.fake_engine import width_of
from tests.support.small_tokenizers import FakeTokenizer

from mlxq.contract import Request, Result
from mlxq_worker.backend import Backend
from mlxq_worker.blas import preload_openblas
from mlxq_worker.config import WorkerConfig
from mlxq_worker.engine.api import Engine
from mlxq_worker.model.eos import EosSet, EosToken
from mlxq_worker.text.prepare import ModelPreparer
from mlxq_worker.worker import BatchWorker

VOCAB_SIZE = 64
WORDS = ("<undecodable>", "<boom>", "<huge>", "<nan>", "<die>")
"""Their ids are the last ones; see `poisoned_model`."""
UNENCODABLE_PROMPT = "~"
UNWRITABLE_ID = "unwritable"
MAX_BATCH_VARIABLE = "POISON_MAX_BATCH"
_EOS_ID = VOCAB_SIZE - len(WORDS) - 1


class PoisonedTokenizer(FakeTokenizer):
    """One token per letter or digit; has a prompt that it can't encode and a token that it can't decode."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        if UNENCODABLE_PROMPT in text:
            raise OverflowError("the tokenizer can't encode this")
        return super().encode(text, add_special_tokens=add_special_tokens)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool, clean_up_tokenization_spaces: bool) -> str:
        if VOCAB_SIZE - len(WORDS) in token_ids:
            raise OverflowError("the tokenizer can't decode this")
        return super().decode(
            token_ids,
            skip_special_tokens=skip_special_tokens,
            clean_up_tokenization_spaces=clean_up_tokenization_spaces,
        )


class PoisonedPreparer(ModelPreparer):
    """Builds an answer that no JSON can hold, for one request."""

    def finish(self, request: Request, *args: Any, **kwargs: Any) -> Result:
        result = super().finish(request, *args, **kwargs)
        if request.custom_id == UNWRITABLE_ID:
            return replace(result, created=float("nan"))  # type: ignore[arg-type]
        return result


def load_poisoned(width: int) -> Backend:
    """The model, on this thread."""
    preload_openblas()
    from tests.support.poisoned_model import poisoned_engine, poisoned_llama

    letters = {letter: i for i, letter in enumerate((string.ascii_letters + string.digits)[:_EOS_ID])}
    poison = {word: _EOS_ID + 1 + i for i, word in enumerate(WORDS)}
    tokenizer = PoisonedTokenizer(words=letters | poison, added={"</s>": _EOS_ID}, eos_token="</s>")
    eos = EosSet(tokens=(EosToken(_EOS_ID, "</s>", ("test",)),), primary_id=_EOS_ID, chat_only=frozenset())
    preparer = PoisonedPreparer(
        tokenizer, eos, vocab_size=VOCAB_SIZE, context_length=512, default_max_tokens=8, model_name="poison"
    )
    model = poisoned_llama(int(os.environ.get(MAX_BATCH_VARIABLE, 10**9)))

    def new_engine() -> Engine:
        return poisoned_engine(model, preparer.decode, width)

    return Backend(preparer, new_engine, width, "model poison")


class PoisonWorker(BatchWorker):
    """Everything real but model, tokenizer and preparer."""

    def load_backend(self, config: WorkerConfig) -> Backend:
        return load_poisoned(width_of(config))
