"""Files of requests and of output lines, and a disk that is full, for the tests of `mlxq.files`."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlxq.files.output.result_file import ResultWriter


def request_file(path: Path, content: bytes | str, name: str = "in.jsonl") -> Path:
    file = path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def output_line(custom_id: str, content_hash: str = "h", **more: Any) -> dict[str, Any]:
    body = {"choices": [], "mlxq": {"content_hash": content_hash}, **more}
    return {"id": "x", "custom_id": custom_id, "response": {"status_code": 200, "body": body}, "error": None}


def written(path: Path, *custom_ids: str) -> Path:
    with ResultWriter(path) as writer:
        for custom_id in custom_ids:
            writer.append(output_line(custom_id))
    return path


def ids_in(path: Path) -> list[str]:
    return [json.loads(line)["custom_id"] for line in path.read_text().splitlines()]


@contextmanager
def file_size_limit(size_bytes: int) -> Iterator[None]:
    """Makes writes beyond a size fail, after writing what fits, as a full disk does."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
