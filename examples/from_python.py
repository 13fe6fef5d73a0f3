"""Asks the queue from a program: submits a batch, takes the answers as they end, and says why each one stopped.

    mlxq worker --model demo            # in one terminal, with a Redis on this machine
    python examples/from_python.py      # in another

REDIS_URL names a Redis elsewhere.
"""

import os

from mlxq import Client, request

COUNTRIES = ("France", "Greece", "Gabon", "Romania")


def question(country: str) -> str:
    return f"What is the capital of {country}?"


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
    if not answer.is_success:
        print(f"{answer.custom_id}: failed, {answer.line}")
        continue
    stop = answer.stop_details
    print(f"{answer.custom_id}: {answer.text.strip()} [{stop.type} {stop.token or stop.string or ''}]")
