"""Small tokenizers with the special tokens, ids and chat templates of real model families; nothing is downloaded.

`FakeTokenizer` has `mlxq_worker.model.tokenizer.Tokenizer`'s members over a plain dict, so that ids such as 128009 cost
nothing. `real_tokenizer` is a byte-level BPE of the `tokenizers` library, for what has to go through transformers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

ASCII = {chr(code): code for code in range(128)}


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


# As transformers sets it up.
_JINJA = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
_JINJA.globals["raise_exception"] = _raise_exception


@dataclass
class FakeTokenizer:
    """One token per known word, longest first; `words` are ordinary, `added` are special tokens."""

    added: Mapping[str, int] = field(default_factory=dict)
    words: Mapping[str, int] = field(default_factory=dict)
    bos_token: str | None = None
    eos_token: str | None = None
    unk_token: str | None = None
    chat_template: str | None = None
    model_max_length: int = 10**30

    def __post_init__(self) -> None:
        self._ids = {**self.words, **self.added}
        self._texts = {token_id: text for text, token_id in self._ids.items()}
        longest_first = sorted(self._ids, key=len, reverse=True)
        self._token = re.compile("|".join(map(re.escape, longest_first)) or "$")

    @property
    def unk_token_id(self) -> int | None:
        return None if self.unk_token is None else self._ids[self.unk_token]

    @property
    def eos_token_id(self) -> int | None:
        return None if self.eos_token is None else self.convert_tokens_to_ids(self.eos_token)

    def __len__(self) -> int:
        return len(self._ids)

    def get_added_vocab(self) -> Mapping[str, int]:
        return self.added

    def convert_tokens_to_ids(self, tokens: str) -> int | None:
        return self._ids.get(tokens, self.unk_token_id)

    def convert_ids_to_tokens(self, ids: int) -> str | None:
        return self._texts.get(ids)

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        bos = [self._ids[self.bos_token]] if add_special_tokens and self.bos_token else []
        return bos + [self._ids[match.group()] for match in self._token.finditer(text)]

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool, clean_up_tokenization_spaces: bool) -> str:
        assert not clean_up_tokenization_spaces
        texts = (self._texts.get(token_id, "") for token_id in token_ids)
        return "".join(text for text in texts if not (skip_special_tokens and text in self.added))

    def apply_chat_template(
        self,
        conversation: list[dict[str, Any]],
        *,
        tools: list[dict[str, Any]] | None,
        add_generation_prompt: bool,
        tokenize: bool,
        **kwargs: Any,
    ) -> str:
        assert self.chat_template is not None
        assert not tokenize
        return _JINJA.from_string(self.chat_template).render(
            messages=conversation,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            bos_token=self.bos_token,
            eos_token=self.eos_token,
            **kwargs,
        )


LLAMA_3_TEMPLATE = """\
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = '' %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' }}
{{- 'Cutting Knowledge Date: December 2023\\n' }}
{%- if tools is not none %}
    {%- for tool in tools %}
        {{- tool | tojson }}
    {%- endfor %}
{%- endif %}
{{- system_message + '<|eot_id|>' }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

CHATML_TEMPLATE = """\
{% for message in messages %}
{% if loop.first and message.role != 'system' %}
{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\\n' }}
{%- endif %}
"""

GEMMA_TEMPLATE = """\
{{ bos_token }}
{%- for message in messages %}
{%- if message.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- set role = 'model' if message.role == 'assistant' else message.role %}
{{ '<start_of_turn>' + role + '\\n' + message.content | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}
"""

GPT_OSS_TEMPLATE = """\
{{- '<|start|>system<|message|>You are ChatGPT.<|end|>' }}
{%- for message in messages %}
    {%- if message.role == 'assistant' and loop.last %}
        {{- '<|start|>assistant<|channel|>final<|message|>' + message.content + '<|return|>' }}
    {%- else %}
        {{- '<|start|>' + message.role + '<|message|>' + message.content + '<|end|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start|>assistant' }}{% endif %}
"""


def llama_3(chat_template: str | None = LLAMA_3_TEMPLATE) -> FakeTokenizer:
    """Llama 3.1 Instruct."""
    return FakeTokenizer(
        words=ASCII,
        added={
            "<|begin_of_text|>": 128000,
            "<|end_of_text|>": 128001,
            "<|start_header_id|>": 128006,
            "<|end_header_id|>": 128007,
            "<|eom_id|>": 128008,
            "<|eot_id|>": 128009,
        },
        bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>",
        chat_template=chat_template,
    )


def qwen(eos_token: str = "<|endoftext|>") -> FakeTokenizer:
    """Qwen 2.5; its tokenizer knows neither BOS nor unk."""
    return FakeTokenizer(
        words=ASCII,
        added={"<|endoftext|>": 151643, "<|im_start|>": 151644, "<|im_end|>": 151645},
        eos_token=eos_token,
        chat_template=CHATML_TEMPLATE,
    )


def gemma() -> FakeTokenizer:
    """Gemma 3."""
    return FakeTokenizer(
        added={
            "<pad>": 0,
            "<eos>": 1,
            "<bos>": 2,
            "<unk>": 3,
            "<unused44>": 50,
            "<start_of_turn>": 105,
            "<end_of_turn>": 106,
        },
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        chat_template=GEMMA_TEMPLATE,
    )


def gpt_oss() -> FakeTokenizer:
    """gpt-oss, whose harmony format ends messages, calls and answers with different tokens."""
    return FakeTokenizer(
        added={
            "<|startoftext|>": 199998,
            "<|endoftext|>": 199999,
            "<|return|>": 200002,
            "<|channel|>": 200005,
            "<|start|>": 200006,
            "<|end|>": 200007,
            "<|message|>": 200008,
            "<|call|>": 200012,
        },
        bos_token="<|startoftext|>",
        eos_token="<|return|>",
        chat_template=GPT_OSS_TEMPLATE,
    )


SPECIAL_TOKENS = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
"""Those of `real_tokenizer`; their ids follow the 256 bytes."""


def real_tokenizer(chat_template: str | None = LLAMA_3_TEMPLATE, eos_token: str | None = "<|end_of_text|>") -> Any:
    """A transformers tokenizer with one token per byte, Llama 3's special tokens, and a BOS before plain text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={byte: i for i, byte in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(SPECIAL_TOKENS))
    bos = SPECIAL_TOKENS[0]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, backend.token_to_id(bos))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=bos,
        eos_token=eos_token,
        chat_template=chat_template,
    )


LLAMA_CONFIG = {
    "model_type": "llama",
    "vocab_size": 264,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "intermediate_size": 24,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
    "eos_token_id": 257,
}
"""A tiny Llama over `real_tokenizer`; a few of its ids have no token."""


def write_model_files(
    path: Path,
    config: Mapping[str, Any] = LLAMA_CONFIG,
    generation_config: Mapping[str, Any] | None = None,
    chat_template: str | None = LLAMA_3_TEMPLATE,
    eos_token: str | None = "<|end_of_text|>",
) -> Path:
    """A model directory without weights; returns `path`."""
    real_tokenizer(chat_template, eos_token).save_pretrained(path)
    (path / "config.json").write_text(json.dumps(config))
    if generation_config is not None:
        (path / "generation_config.json").write_text(json.dumps(generation_config))
    return path
