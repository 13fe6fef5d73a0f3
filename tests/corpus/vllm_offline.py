"""A script as vLLM's documentation teaches to write one: the offline class, sampling parameters, generate and chat."""

import json
import sys

from vllm import LLM, SamplingParams
from vllm.sampling_params import StructuredOutputsParams


def main() -> None:
    llm = LLM(
        model=sys.argv[1],
        trust_remote_code=True,
        tensor_parallel_size=1,
        dtype="auto",
        max_model_len=512,
        gpu_memory_utilization=0.9,
        enforce_eager=True,
        seed=42,
    )
    tokenizer = llm.get_tokenizer()

    prompts = ["Count from 1 to 5:", "Count from 11 to 14:", "Count from 21 to 23:"]
    outputs = llm.generate(prompts, SamplingParams(temperature=0.0, max_tokens=32))
    for output in outputs:
        print(f"Prompt: {output.prompt!r}, Generated text: {output.outputs[0].text!r}")

    several = llm.generate(prompts[0], SamplingParams(n=3, temperature=0.8, top_p=0.95, max_tokens=8), use_tqdm=False)
    print(len(several[0].outputs), [answer.index for answer in several[0].outputs])

    stopped, scored = llm.generate(
        [{"prompt_token_ids": tokenizer.encode(prompts[0])}, {"prompt": prompts[1]}],
        sampling_params=[
            SamplingParams(temperature=0, max_tokens=32, stop=[" 4"], include_stop_str_in_output=True),
            SamplingParams(temperature=0, max_tokens=2, logprobs=1, prompt_logprobs=0),
        ],
    )
    print(stopped.outputs[0].finish_reason, repr(stopped.outputs[0].stop_reason), stopped.outputs[0].text)
    for token_id, at_token in zip(scored.outputs[0].token_ids, scored.outputs[0].logprobs, strict=True):
        print(at_token[token_id].decoded_token, at_token[token_id].rank)
    print(scored.outputs[0].finish_reason, scored.prompt_logprobs[0], len(scored.prompt_logprobs))

    conversations = [
        [{"role": "user", "content": f"What is the capital of {country}?"}] for country in ("France", "Greece")
    ]
    for output in llm.chat(conversations, SamplingParams(temperature=0, max_tokens=32)):
        print(output.outputs[0].text, output.finished)

    text = tokenizer.apply_chat_template(conversations[0], tokenize=False, add_generation_prompt=True)
    [by_hand] = llm.generate(text, SamplingParams(temperature=0, max_tokens=5))
    print(by_hand.outputs[0].text)

    schema = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 9, "minimum": 1}}, "required": ["n"]}
    held = SamplingParams(temperature=0, max_tokens=64, structured_outputs=StructuredOutputsParams(json=schema))
    print(sorted(json.loads(llm.chat(conversations[0], held)[0].outputs[0].text)))


main()
