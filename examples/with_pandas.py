"""Asks about every row of a table: a DataFrame in, the same one with its answers out.

    pip install pandas
    mlxq worker --model demo            # in one terminal, with a Redis on this machine
    python examples/with_pandas.py      # in another

REDIS_URL names a Redis elsewhere.
"""

import os

import pandas as pd

from mlxq import Client, request


def answered(client: Client, questions: pd.Series) -> pd.DataFrame:
    """One row per question, under its index: the answer, and why it stopped. A row whose request failed is empty."""
    batch = client.submit(
        request(messages=[{"role": "user", "content": question}], custom_id=str(number), temperature=0)
        for number, question in enumerate(questions)
    )
    rows: list[dict[str, str]] = [{} for _ in questions]
    for answer in batch.as_completed():
        if answer.is_success:
            rows[int(answer.custom_id)] = {"answer": answer.text, "stopped_by": answer.stop_details.type}
    return pd.DataFrame(rows, index=questions.index, columns=["answer", "stopped_by"])


table = pd.DataFrame({"country": ["France", "Greece", "Gabon"]}, index=["fr", "gr", "ga"])
client = Client(os.environ.get("REDIS_URL", "redis://localhost:6379/0"))
print(table.join(answered(client, "What is the capital of " + table["country"] + "?")).to_csv(), end="")
