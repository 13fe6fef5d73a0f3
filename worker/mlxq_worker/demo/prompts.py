"""Turns examples into token ids the way a server would: chat through the template, completions with one BOS.

The only place in the demo that runs the tokenizer, so that training and evaluation cannot disagree.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxq_worker.demo.tasks import Example


@dataclass(frozen=True, slots=True)
class TokenizedExample:
    """An example in token ids. `answer_ids` ends with the end token."""

    prompt_ids: list[int]
    answer_ids: list[int]


def load_tokenizer(model_path: Path) -> Any:
    """The Hugging Face tokenizer in `model_path`."""
    from transformers import AutoTokenizer  # slow to import, and not needed to generate requests

    return AutoTokenizer.from_pretrained(model_path)


def encode(tokenizer: Any, example: Example) -> TokenizedExample:
    """Token ids of the prompt as the model gets it and of the answer as it should give it."""
    answer_ids = tokenizer.encode(example.expected_text, add_special_tokens=False)
    end_id = tokenizer.convert_tokens_to_ids(example.expected_end_token)
    return TokenizedExample(encode_prompt(tokenizer, example), [*answer_ids, end_id])


def encode_prompt(tokenizer: Any, example: Example) -> list[int]:
    """Token ids of the prompt. The chat template writes the BOS itself; for plain text the tokenizer adds it."""
    if "prompt" in example.body:
        return list(tokenizer.encode(example.body["prompt"]))
    rendered = tokenizer.apply_chat_template(
        example.body["messages"],
        tools=example.body.get("tools"),
        add_generation_prompt=True,
        tokenize=False,
    )
    return list(tokenizer.encode(rendered, add_special_tokens=False))
