"""Answers prompts in this process, without a queue: vLLM's `LLM` class under its own names.

pip install "mlxq[worker]"
python examples/offline.py
"""

from mlxq import (
    LLM,
    CompletionOutput,
    GuidedDecodingParams,
    Logprob,
    RequestOutput,
    SamplingParams,
    StructuredOutputsParams,
)


def told(output: RequestOutput) -> str:
    answer: CompletionOutput = output.outputs[0]
    return f"{output.prompt!r} -> {answer.text!r} ({answer.finish_reason})"


def surest(answer: CompletionOutput) -> list[str]:
    """What the model held for the most probable in each place, beside what was taken."""
    places: list[dict[int, Logprob]] = answer.logprobs or []
    return [max(place.values(), key=lambda each: each.logprob).decoded_token or "" for place in places]


with LLM(model="demo") as llm:
    greedy = SamplingParams(temperature=0, max_tokens=20, logprobs=1)
    outputs = llm.generate(["Count from 1 to 3:", "Count from 11 to 14:"], greedy)
    for output in outputs:
        print(told(output))
    print("".join(surest(outputs[0].outputs[0])))

    choice = StructuredOutputsParams(choice=["Paris", "Athens"])
    digits = GuidedDecodingParams(regex="[0-9]{3}")  # the same under its earlier name
    held = [
        SamplingParams(temperature=0, max_tokens=20, structured_outputs=choice),
        SamplingParams(temperature=0, max_tokens=20, guided_decoding=digits),
    ]
    for output in llm.generate(["The capital of Greece is", "Count from 100 to 900:"], held):
        print(output.outputs[0].text)
