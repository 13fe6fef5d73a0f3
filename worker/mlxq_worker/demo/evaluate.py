"""Greedy accuracy on held-out examples, decoded by plain mlx-lm: the exact text and the right end token.

python -m mlxq_worker.demo.evaluate [--model DIR] [--n 300] [--seed 0]
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from mlxq_worker.blas import preload_openblas
from mlxq_worker.demo import MODEL_PATH
from mlxq_worker.demo.prompts import encode_prompt
from mlxq_worker.demo.tasks import MAX_TOKENS, Example, Split, generate


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the model answered. `end_token` is the last token that it generated, whichever that is."""

    example: Example
    text: str
    end_token: str

    @property
    def right(self) -> bool:
        return (self.text, self.end_token) == (self.example.expected_text, self.example.expected_end_token)


def evaluate(model_path: Path, examples: Iterable[Example]) -> Iterator[Outcome]:
    """Decode the examples one after the other."""
    preload_openblas()
    from mlx_lm import load, stream_generate  # imports mlx, which must find OpenBLAS loaded

    model, tokenizer = load(str(model_path))
    for example in examples:
        prompt_ids = encode_prompt(tokenizer, example)
        responses = stream_generate(model, tokenizer, prompt_ids, max_tokens=MAX_TOKENS)
        *text_ids, end_id = [response.token for response in responses]
        # not `response.text`: mlx-lm's streaming detokenizer drops the space that a completion starts with
        text = tokenizer.decode(text_ids)
        yield Outcome(example, text, tokenizer.convert_ids_to_tokens(end_id))


def print_report(model_path: Path, n: int, seed: int, split: Split = "held_out") -> None:
    """Print each wrong answer, then one line of accuracy per task and one for all."""
    examples = list(islice(generate(seed, split), n))
    right: Counter[str] = Counter()
    for outcome in evaluate(model_path, examples):
        right[outcome.example.task] += outcome.right
        if not outcome.right:
            print(f"wrong {outcome.example.body} -> {outcome.text!r} {outcome.end_token}")
    asked = Counter[str](example.task for example in examples)
    for task, number in asked.items():
        print(f"{split} {task}: {right[task]}/{number} = {right[task] / number:.1%}")
    print(f"{split} all: {right.total()}/{n} = {right.total() / n:.1%}", flush=True)


def main() -> None:
    """Evaluate the shipped model, or another one."""
    parser = argparse.ArgumentParser(description="Measure the demo model on held-out examples.")
    parser.add_argument("--model", type=Path, default=MODEL_PATH)
    parser.add_argument("--n", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--split", choices=("held_out", "train"), default="held_out")
    options = parser.parse_args()
    print_report(options.model, options.n, options.seed, options.split)


if __name__ == "__main__":
    main()
