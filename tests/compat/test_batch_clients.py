"""Batch helpers and live requests of litellm and instructor, pointed at `mlxq serve` by nothing but their base URL."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.support.fake_worker import FakeWorker
from tests.support.processes import environment
from tests.support.served import chat_line, jsonl, service
from tests.support.waiting import DEADLINE_S

PYTHON = f"{os.environ['MLXQ_COMPAT']}/python"

LITELLM = """
import os, time
import litellm

server = {"custom_llm_provider": "openai", "api_base": os.environ["OPENAI_BASE_URL"], "api_key": "any"}
file = litellm.create_file(file=open("in.jsonl", "rb"), purpose="batch", **server)
batch = litellm.create_batch(
    completion_window="24h", endpoint="/v1/chat/completions", input_file_id=file.id, metadata={"a": "b"}, **server
)
while batch.status not in ("completed", "failed"):
    time.sleep(0.1)
    batch = litellm.retrieve_batch(batch_id=batch.id, **server)
print(batch.status, batch.request_counts.completed, batch.metadata["a"])
print(litellm.file_content(file_id=batch.output_file_id, **server).content.decode())
print([found.id == batch.id for found in litellm.list_batches(limit=1, **server)])
"""

INSTRUCTOR = """
import time
from instructor.batch import BatchProcessor
from pydantic import BaseModel

class User(BaseModel):
    name: str

processor = BatchProcessor("openai/gpt-4o-mini", User)
messages = [[{"role": "user", "content": '{"name": "Bob"}'}]]
processor.create_batch_from_messages(file_path="asked.jsonl", messages_list=messages, max_tokens=100, temperature=0)
batch_id = processor.submit_batch("asked.jsonl")
while processor.get_batch_status(batch_id)["status"] not in ("completed", "failed"):
    time.sleep(0.1)
print([answer.result for answer in processor.retrieve_results(batch_id)])
"""

LIVE_LITELLM = """
import os
import litellm

server = {"custom_llm_provider": "openai", "api_base": os.environ["OPENAI_BASE_URL"], "api_key": "any"}
asked = {"model": "echo", "messages": [{"role": "user", "content": "hello there"}]}
print(litellm.completion(**asked, **server).choices[0].message.content)
stream = litellm.completion(**asked, **server, stream=True)
print("".join(chunk.choices[0].delta.content or "" for chunk in stream))
"""

LIVE_INSTRUCTOR = """
import instructor
from openai import OpenAI
from pydantic import BaseModel

class User(BaseModel):
    name: str

client = instructor.from_openai(OpenAI(), mode=instructor.Mode.JSON_SCHEMA)
messages = [{"role": "user", "content": '{"name": "Bob"}'}]
print(repr(client.chat.completions.create(model="echo", response_model=User, messages=messages)))
"""


def printed_by(program: str, redis_url: str, folder: Path) -> str:
    """What a program prints that finds the service, with a worker that echoes, by its environment."""
    with service(redis_url, folder / "data") as url, FakeWorker(redis_url):
        variables = {"OPENAI_BASE_URL": f"{url}/v1", "OPENAI_API_KEY": "any", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
        done = subprocess.run(
            [PYTHON, "-c", program],
            env=environment(**variables) | {"PYTHONPATH": ""},
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_litellm_runs_a_batch(redis_url: str, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(jsonl([chat_line("a", "hello there")]))

    printed = printed_by(LITELLM, redis_url, tmp_path)

    assert "completed 1 b" in printed
    assert "hello there" in printed
    assert "[True]" in printed


def test_instructor_runs_a_batch_and_reads_its_answers(redis_url: str, tmp_path: Path) -> None:
    assert "[User(name='Bob')]" in printed_by(INSTRUCTOR, redis_url, tmp_path)


def test_litellm_makes_live_requests(redis_url: str, tmp_path: Path) -> None:
    assert printed_by(LIVE_LITELLM, redis_url, tmp_path).count("hello there") == 2


def test_instructor_makes_a_live_request(redis_url: str, tmp_path: Path) -> None:
    assert "User(name='Bob')" in printed_by(LIVE_INSTRUCTOR, redis_url, tmp_path)
