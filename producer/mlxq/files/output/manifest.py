"""What came of a run, as JSON beside its output, for whoever wants to know a month later.

Says nothing that the run itself doesn't know, and nothing secret: passwords in URLs are left out.
"""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from mlxq.errors import ConfigError
from mlxq.files.output.durable import replace_file
from mlxq.files.paths import file_errors
from mlxq.files.tally import Summary
from mlxq.formats.names import named
from mlxq.versions import version_of

FORM = 1
"""Of the manifest; it stands first, and tells one from other files."""
_PACKAGES = ("mlxq", "mlx", "mlx-lm")
_LOGIN = re.compile(r"(?<=://)[^/@\s]*(?=@)")


def manifest_path(output: Path) -> Path:
    """``out.jsonl``, ``out.jsonl.gz`` and ``out.csv`` -> ``out.manifest.json``."""
    plain = output.with_suffix("") if named(output).packing else output
    return plain.with_name(f"{plain.stem}.manifest.json")


def check_manifest(path: Path) -> None:
    """Look whether this can be written, before anything is run for it.

    Raises:
        ConfigError: there is something else.
    """
    try:
        found = json.loads(path.read_bytes()) if path.exists() else {"mlxq_manifest": FORM}
    except (OSError, ValueError):
        found = None
    if not (isinstance(found, dict) and "mlxq_manifest" in found):
        raise ConfigError(f"{path} is no manifest of mlxq's, which it would become: move it, or add --no-manifest")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """What a summary doesn't know. `row_efficiency` is tokens kept over rows computed, by the run's own workers; `None`
    where it has none, or they have computed nothing. `started` is in Unix seconds."""

    started: float
    command: Sequence[str]
    files: Mapping[str, Any]
    model: str | None
    row_efficiency: float | None


def write_manifest(path: Path, summary: Summary, facts: RunFacts) -> None:
    """Write it, in one atomic step.

    Raises:
        InputFileError: it can't be written.
    """
    text = json.dumps(manifest_of(summary, facts), indent=2, ensure_ascii=False)

    def write(out: BinaryIO) -> None:
        out.write(f"{text}\n".encode(errors="replace"))

    with file_errors(path, "write"):
        replace_file(path.resolve(), write)


def manifest_of(summary: Summary, facts: RunFacts) -> dict[str, Any]:
    """The manifest as plain JSON."""
    return {
        "mlxq_manifest": FORM,
        "started": datetime.fromtimestamp(facts.started, UTC).isoformat(timespec="seconds"),
        "seconds": round(summary.seconds, 3),
        "interrupted": summary.interrupted,
        "files": dict(facts.files),
        "requests": {
            "total": summary.total,
            "answered": summary.succeeded,
            "already_there": summary.skipped,
            "in_part": summary.cut,
            "failed": summary.failed,
            "cancelled": summary.cancelled,
            "changed": summary.changed,
            "retried": summary.retried,
        },
        "failures": dict(summary.error_codes),
        "stops": [asdict(stop) for stop in summary.stops],
        "prompt_tokens": summary.prompt_tokens,
        "completion_tokens": summary.completion_tokens,
        "tokens_per_s": round(summary.completion_tokens / max(1e-9, summary.seconds), 1),
        "row_efficiency": None if facts.row_efficiency is None else round(facts.row_efficiency, 4),
        "model": facts.model,
        "models": [
            {"name": name, "answers": count, "eos": [{"id": end, "token": text} for end, text in summary.eos_of(name)]}
            for name, count in summary.models
        ],
        "versions": {"python": platform.python_version(), **{name: version_of(name) for name in _PACKAGES}},
        "command": [_LOGIN.sub("***", word) for word in facts.command],
    }
