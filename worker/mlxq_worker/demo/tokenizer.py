"""Builds the demo model's tokenizer: byte-level BPE with Llama 3's special tokens and conventions.

Any text round-trips, because all 256 bytes are tokens. The merges are trained on the words of the tasks and on the
numbers 0 to 400, to the end, so that each of them is a single token. Knows the tasks' words, not their meaning.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from mlxq_worker.demo import tasks
from mlxq_worker.demo.capitals import CAPITALS

BOS = "<|begin_of_text|>"
END_OF_TEXT = "<|end_of_text|>"
END_OF_MESSAGE = "<|eom_id|>"
END_OF_TURN = "<|eot_id|>"
SPECIAL_TOKENS = (
    BOS,
    END_OF_TEXT,
    "<|start_header_id|>",
    "<|end_header_id|>",
    END_OF_MESSAGE,
    END_OF_TURN,
    "<|python_tag|>",
)
CONTEXT_LENGTH = 1024

CHAT_TEMPLATE = Path(__file__).parent / "chat_template.jinja"
_LARGEST_NUMBER = 400
_FORMAT_WORDS = ("system", "user", "assistant", "ipython", "Tools: get_weather(city), get_time(city)", "\n\n")


def build_tokenizer() -> Tokenizer:
    """Train the tokenizer. Its ids do not depend on any seed; the special tokens have the last ones."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1_000_000,  # no limit: merging ends when every word is one token
        min_frequency=1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_words(), trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]),
        ]
    )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, out: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json, special_tokens_map.json and chat_template.jinja into `out`."""
    tokenizer.save(str(out / "tokenizer.json"))
    special = {"bos_token": BOS, "eos_token": END_OF_TURN}
    config = {
        **special,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": CONTEXT_LENGTH,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    write_json(out / "tokenizer_config.json", config)
    write_json(out / "special_tokens_map.json", special)
    (out / "chat_template.jinja").write_text(CHAT_TEMPLATE.read_text())


def write_json(path: Path, value: Mapping[str, object]) -> None:
    """Write `value` the way Hugging Face lays its configuration files out."""
    path.write_text(json.dumps(dict(value), indent=2) + "\n")


def _words() -> Iterator[str]:
    """Every text fragment whose words should be single tokens."""
    yield from _FORMAT_WORDS
    yield from (message for message in tasks.SYSTEM_MESSAGES if message)
    yield from (f" {number}" for number in range(_LARGEST_NUMBER + 1))
    yield "Count from to:"
    for country, city in CAPITALS.items():
        yield f" {country}"
        yield from (city, f" {city}")
    yield "The capital of is. The capital of"
    for phrasing in (*tasks.CAPITAL_PHRASINGS, *tasks.COUNTRY_PHRASINGS):
        yield phrasing.format(country="France", city="Paris")
    for topic in tasks.TOPICS:
        yield from (phrasing.format(city="Paris") for phrasing in topic.phrasings)
        yield topic.refusal.format(city="Paris")
        yield json.dumps({"name": topic.tool, "parameters": {"city": "Paris"}})
