"""Answers every row of a Hugging Face dataset, in this process: a dataset in, the same one with its answers out.

    pip install "mlxq[worker]" datasets
    python examples/with_datasets.py

`map` hands over rows in batches, as lists by column, so the model sees many prompts at once. It may warn that it can't
hash the function, which has a model in it; then it keeps no cache of the answers.
"""

from datasets import Dataset

from mlxq import LLM, SamplingParams

llm = LLM("demo")
greedy = SamplingParams(temperature=0, max_tokens=32)


def answered(rows: dict[str, list[str]]) -> dict[str, list[str | None]]:
    """The columns to add: the answer, and why it stopped. A row that failed has an empty answer."""
    conversations = [[{"role": "user", "content": f"What is the capital of {country}?"}] for country in rows["country"]]
    answers = [output.outputs[0] for output in llm.chat(conversations, greedy, use_tqdm=False)]
    return {"answer": [each.text for each in answers], "stopped_by": [each.finish_reason for each in answers]}


countries = Dataset.from_dict({"country": ["France", "Greece", "Gabon"]})
for row in countries.map(answered, batched=True, batch_size=1000):
    print(row)
