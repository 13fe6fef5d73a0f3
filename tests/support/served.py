"""`mlxq serve` in this process, on a free port, and OpenAI's own client for it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from openai import OpenAI
from openai.types import Batch
from tests.support.waiting import wait_until

from mlxq.queue.client import Client
from mlxq.serve.server import Settings, serving

ENDED = {"completed", "failed", "expired", "cancelled"}
CHAT = "/v1/chat/completions"


@contextmanager
def service(redis_url: str, data: Path, **settings: Any) -> Iterator[str]:
    """The URL of a running service."""
    with (
        Client(redis_url) as client,
        serving(client, Settings(data=data, **{"port": 0, **settings}), lambda _: None) as server,
    ):
        yield server.url


def openai_client(url: str, api_key: str = "any") -> OpenAI:
    """Unmodified; it doesn't try again, so that a test sees the first answer."""
    return OpenAI(base_url=f"{url}/v1", api_key=api_key, max_retries=0)


def chat_line(custom_id: str, content: str = "hi", **body: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": content}]
    return {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": {"model": "m", "messages": messages, **body}}


def jsonl(lines: Iterable[dict[str, Any] | str]) -> bytes:
    return "".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines).encode()


def uploaded(client: OpenAI, lines: Iterable[dict[str, Any] | str], name: str = "in.jsonl") -> str:
    """The id of a file with these lines."""
    return client.files.create(file=(name, jsonl(lines)), purpose="batch").id


def begun(client: OpenAI, lines: Iterable[dict[str, Any] | str], **parameters: Any) -> Batch:
    file_id = uploaded(client, lines)
    return client.batches.create(input_file_id=file_id, **{"endpoint": CHAT, "completion_window": "24h", **parameters})


def ended(client: OpenAI, batch_id: str) -> Batch:
    """The batch, once it has ended."""
    wait_until(lambda: client.batches.retrieve(batch_id).status in ENDED, f"{batch_id} to end")
    return client.batches.retrieve(batch_id)


def lines_of(client: OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    """The lines of a file, none if there is no such file."""
    if file_id is None:
        return []
    return [json.loads(line) for line in client.files.content(file_id).text.splitlines()]


def ids_of(client: OpenAI, file_id: str | None) -> list[str]:
    return sorted(line["custom_id"] for line in lines_of(client, file_id))
