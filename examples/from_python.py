"""Asks the queue from a program: submits a batch, takes the answers as they end, and says why each one stopped.

    mlxq worker --model demo            # in one terminal, with a Redis on this machine
    python examples/from_python.py      # in another

REDIS_URL names a Redis elsewhere.
"""

import os

from mlxq import Answer, AnswerError, Batch, BatchCounts, Client, StopCount, request

COUNTRIES = ("France", "Greece", "Gabon", "Romania")


def question(country: str) -> str:
    return f"What is the capital of {country}?"


def told(answer: Answer) -> str:
    """One answer in a line: its text and what it stopped on, or why there is none."""
    error: AnswerError | None = answer.error
    if error is not None:
        return f"failed, {error.code}: {error.message}"
    stop = answer.stop_details
    return f"{answer.text.strip()} [{stop.type} {stop.token or stop.string or ''}]"


def summary(batch: Batch) -> str:
    counts: BatchCounts = batch.counts()
    stops: tuple[StopCount, ...] = counts.stops
    return f"{counts.num_finished} answered: " + ", ".join(sorted(f"{stop.count} by {stop.type}" for stop in stops))


client = Client(os.environ.get("REDIS_URL", "redis://localhost:6379/0"))
batch = client.submit(
    [
        *(
            request(messages=[{"role": "user", "content": question(country)}], custom_id=country, temperature=0)
            for country in COUNTRIES
        ),
        request(prompt="Count from 1 to 90:", custom_id="numbers", temperature=0, max_tokens=8),
        request(prompt="Count from 1 to 9:", custom_id="until 5", temperature=0, stop=" 5"),
    ]
)
for answer in batch.as_completed(timeout_s=600):
    print(f"{answer.custom_id}: {told(answer)}")
print(summary(batch))
print("once more,", told(batch.answer("Gabon")))
