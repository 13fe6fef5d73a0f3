"""The part of a Hugging Face tokenizer that mlxq uses, and two questions it leaves open: which token is this text,
and how is this token shown.

Whatever has these members will do, so tests bring small ones of their own. Imports no tokenizer library and no mlx.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol


class Tokenizer(Protocol):
    """What mlxq asks of a tokenizer; `transformers.PreTrainedTokenizerBase` has all of it."""

    @property
    def bos_token(self) -> str | None: ...

    @property
    def eos_token(self) -> str | None: ...

    @property
    def unk_token_id(self) -> int | None: ...

    @property
    def eos_token_id(self) -> int | None: ...

    @property
    def chat_template(self) -> str | Mapping[str, str] | None: ...

    @property
    def model_max_length(self) -> int: ...

    def __len__(self) -> int: ...

    def get_added_vocab(self) -> Mapping[str, int]:
        """The special and the added tokens."""

    def convert_tokens_to_ids(self, tokens: str) -> int | None:
        """The id of one token; an unknown one gives the unk id, or nothing."""

    def convert_ids_to_tokens(self, ids: int) -> str | None:
        """The token of one id, as the vocabulary spells it."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...

    def decode(
        self, token_ids: Sequence[int], *, skip_special_tokens: bool, clean_up_tokenization_spaces: bool
    ) -> str: ...

    def apply_chat_template(
        self,
        conversation: list[dict[str, Any]],
        *,
        tools: list[dict[str, Any]] | None,
        add_generation_prompt: bool,
        tokenize: bool,
        **kwargs: Any,
    ) -> Any:
        """The rendered text, with `tokenize=False`."""


def find_token(tokenizer: Tokenizer, text: str) -> int | None:
    """The id of the token that is spelled exactly `text`, or `None` if there is none.

    Tokenizers answer an unknown text with the unk id. So the id must lead back to the text, and it must not be the
    unk id, unless that serves as EOS as well (GPT-2's ``<|endoftext|>`` is both).
    """
    token_id = tokenizer.convert_tokens_to_ids(text)
    if token_id is None or tokenizer.convert_ids_to_tokens(token_id) != text:
        return None
    if token_id == tokenizer.unk_token_id and token_id != tokenizer.eos_token_id:
        return None
    return token_id


def token_text(tokenizer: Tokenizer, token_id: int) -> str:
    """How results show a token. An id that the model has but the tokenizer does not name becomes ``<id 7>``."""
    text = tokenizer.decode([token_id], skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text or f"<id {token_id}>"
