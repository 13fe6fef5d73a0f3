"""What the demo model can do, as seeded streams of requests whose right answer and right end are known.

    task    request                                  answer                            ends with
    chat    which capital, or whose capital?         one sentence                      <|eot_id|>
    tool    weather or time in a city,               a call in JSON, or                <|eom_id|>
            with or without the tool for it          "I can't look up ..."             <|eot_id|>
    count   plain text, "Count from 17 to 58:"       " 17 18 ... 58", 4-200 tokens     <|end_of_text|>
    plain   the questions of chat as plain text      the same sentence                 <|end_of_text|>

Held out are *combinations*: for each country or city one phrasing in five (the same in chat and plain), and one
(start, end) pair in seven. Every fact, phrasing and number is trained on; a held-out question never is, whatever
system message or tools stand around it. Pure Python: knows no tokenizer and no model.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, get_args

from mlxq_worker.demo.capitals import CAPITALS

Task = Literal["chat", "tool", "count", "plain"]
Split = Literal["train", "held_out"]

MAX_TOKENS = 320
MAX_NUMBER = 240
MIN_COUNT_TOKENS, MAX_COUNT_TOKENS = 4, 200
"""Tokens of a counting answer: one per number, and the end token."""

SYSTEM_MESSAGES = (None, "You are a helpful assistant.", "Answer in one sentence.")

CAPITAL_PHRASINGS = (
    "What is the capital of {country}?",
    "Name the capital of {country}.",
    "Which city is the capital of {country}?",
    "Tell me the capital city of {country}.",
    "What is the capital city of {country} called?",
)
COUNTRY_PHRASINGS = (
    "Which country has {city} as its capital?",
    "{city} is the capital of which country?",
    "Of which country is {city} the capital?",
    "Name the country whose capital is {city}.",
    "{city} is the capital city of what country?",
)


@dataclass(frozen=True, slots=True)
class Example:
    """One request with its right answer. `body` is the body of an OpenAI batch line for `url`."""

    task: Task
    body: dict[str, Any]
    url: str
    expected_text: str
    expected_end_token: str


@dataclass(frozen=True, slots=True)
class _Topic:
    """Something that a tool can look up for a city."""

    tool: str
    description: str
    refusal: str
    phrasings: tuple[str, ...]


WEATHER = _Topic(
    "get_weather",
    "Look up the current weather in a city.",
    "I can't look up the weather in {city}.",
    (
        "What is the weather in {city}?",
        "How is the weather in {city} today?",
        "Tell me the weather in {city}.",
        "Is it raining in {city}?",
        "Do I need an umbrella in {city}?",
    ),
)
TIME = _Topic(
    "get_time",
    "Look up the local time in a city.",
    "I can't look up the time in {city}.",
    (
        "What time is it in {city}?",
        "What is the local time in {city}?",
        "Tell me the time in {city}.",
        "Is it late in {city}?",
        "How late is it in {city}?",
    ),
)
TOPICS = (WEATHER, TIME)


def generate(seed: int, split: Split, tasks: tuple[Task, ...] = get_args(Task)) -> Iterator[Example]:
    """An endless stream of examples that walks through `tasks` in turn; equal arguments give equal streams."""
    rng = random.Random(f"{split}:{seed}")
    while True:
        for task in tasks:
            yield _MAKERS[task](rng, split)


def held_out(n: int = 300, seed: int = 0) -> list[Example]:
    """`n` examples that training never saw, all tasks in equal parts."""
    return list(islice(generate(seed, "held_out"), n))


def count_example(start: int, end: int) -> Example:
    """The request to count from `start` to `end`, both included."""
    numbers = "".join(f" {number}" for number in range(start, end + 1))
    return _completion("count", f"Count from {start} to {end}:", numbers)


def is_held_out_pair(start: int, end: int) -> bool:
    """Whether counting from `start` to `end` is kept out of training: one pair in seven, of every start, of every
    end and of every length alike."""
    return (5 * start + 3 * end) % 7 == 0


def sample_count(rng: random.Random, split: Split, max_tokens: int = MAX_COUNT_TOKENS) -> Example:
    """A counting request. Answer lengths are log-uniform between `MIN_COUNT_TOKENS` and `max_tokens`: many short
    answers and a long tail, as in real workloads."""
    while True:
        log_tokens = rng.uniform(math.log(MIN_COUNT_TOKENS), math.log(max_tokens + 1))
        span = int(math.exp(log_tokens)) - 2  # n numbers span n - 1, and the end token takes one
        start = rng.randint(0, MAX_NUMBER - span)
        if is_held_out_pair(start, start + span) == (split == "held_out"):
            return count_example(start, start + span)


def _sample_chat(rng: random.Random, split: Split) -> Example:
    question, answer = _capital_question(rng, split)
    return _chat("chat", question, answer, "<|eot_id|>", system=rng.choice(SYSTEM_MESSAGES))


def _sample_plain(rng: random.Random, split: Split) -> Example:
    question, answer = _capital_question(rng, split)
    return _completion("plain", question, f" {answer}")


def _sample_tool(rng: random.Random, split: Split) -> Example:
    topic, other = rng.sample(TOPICS, 2)
    city_index, city = rng.choice(list(enumerate(CAPITALS.values())))
    question = _phrasing(rng, split, topic.phrasings, city_index).format(city=city)
    offered = rng.choice(([], [topic], [other], rng.sample(TOPICS, 2)))
    if topic not in offered:
        return _chat("tool", question, topic.refusal.format(city=city), "<|eot_id|>", tools=offered)
    call = json.dumps({"name": topic.tool, "parameters": {"city": city}})
    return _chat("tool", question, call, "<|eom_id|>", tools=offered)


_MAKERS: dict[Task, Callable[[random.Random, Split], Example]] = {
    "chat": _sample_chat,
    "tool": _sample_tool,
    "count": sample_count,
    "plain": _sample_plain,
}


def _capital_question(rng: random.Random, split: Split) -> tuple[str, str]:
    """A question about a capital, in either direction, and its answer."""
    index, (country, city) = rng.choice(list(enumerate(CAPITALS.items())))
    if rng.random() < 0.5:
        question = _phrasing(rng, split, CAPITAL_PHRASINGS, index)
        return question.format(country=country), f"The capital of {country} is {city}."
    question = _phrasing(rng, split, COUNTRY_PHRASINGS, index)
    return question.format(city=city), f"{city} is the capital of {country}."


def _phrasing(rng: random.Random, split: Split, phrasings: tuple[str, ...], subject_index: int) -> str:
    """One of the subject's phrasings in this split. Each subject misses exactly one of them in training, and each
    phrasing is missed equally often."""
    held_out_index = subject_index % len(phrasings)
    if split == "held_out":
        return phrasings[held_out_index]
    return rng.choice(phrasings[:held_out_index] + phrasings[held_out_index + 1 :])


def _chat(
    task: Task,
    question: str,
    answer: str,
    end_token: str,
    *,
    system: str | None = None,
    tools: list[_Topic] | None = None,
) -> Example:
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": question})
    body: dict[str, Any] = {"messages": messages, "temperature": 0, "max_tokens": MAX_TOKENS}
    if tools:
        body["tools"] = [_openai_tool(topic) for topic in tools]
    return Example(task, body, "/v1/chat/completions", answer, end_token)


def _completion(task: Task, prompt: str, answer: str) -> Example:
    body = {"prompt": prompt, "temperature": 0, "max_tokens": MAX_TOKENS}
    return Example(task, body, "/v1/completions", answer, "<|end_of_text|>")


def _openai_tool(topic: _Topic) -> dict[str, Any]:
    city = {"type": "string", "description": "The city's name."}
    parameters = {"type": "object", "properties": {"city": city}, "required": ["city"]}
    return {
        "type": "function",
        "function": {"name": topic.tool, "description": topic.description, "parameters": parameters},
    }


def main() -> None:
    """Print mixed batch lines as JSON Lines, for `mlxq run` and `mlxq enqueue`."""
    parser = argparse.ArgumentParser(description="Write requests that the demo model can answer.")
    parser.add_argument("--n", type=int, default=240, help="number of requests (default: 240)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for index, example in enumerate(held_out(options.n, options.seed)):
        custom_id = f"{example.task}-{index:05d}"
        line = {"custom_id": custom_id, "method": "POST", "url": example.url, "body": example.body}
        print(json.dumps(line))


if __name__ == "__main__":
    main()
