"""The files in deploy/, with a user's own values in place of their example values.

The files in the repository are the templates: what they show as examples is what is replaced, so they can be read and
used as they are. Starts nothing and writes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from xml.sax.saxutils import escape

from mlxq.errors import ConfigError

Kind = Literal[
    "launchd",
    "launchd-daemon",
    "launchd-logs",
    "systemd",
    "systemd-cuda",
    "systemd-serve",
    "systemd-redis",
    "compose",
    "redis",
    "redis-backup",
    "prometheus",
    "alerts",
    "grafana",
]

INSTALLED = Path(__file__).parents[1] / "deploy_files"
"""Where a wheel puts them."""
IN_SOURCES = Path(__file__).parents[3] / "deploy"

_PLAIN = re.compile(r"[^\s\"'\\$`]+")


def _for_systemd(value: str) -> str:
    """A value in a unit: ``%`` begins a specifier there.

    Raises:
        ValueError: it would have to be quoted.
    """
    if not _PLAIN.fullmatch(value):
        raise ValueError("it has blanks or quotes, which a unit would need quoted: use a path or name without")
    return value.replace("%", "%%")


def _for_plist(value: str) -> str:
    """A value in a property list.

    Raises:
        ValueError: XML can't have it.
    """
    if re.search(r"[\x00-\x1f]", value):
        raise ValueError("it has control characters")
    return escape(value)


@dataclass(frozen=True, slots=True)
class Template:
    """One file. `examples` are what it shows for each option, all of which are replaced together with it."""

    path: str
    about: str
    examples: Mapping[str, str] = field(default_factory=dict)
    quoted: Callable[[str], str] = str


_MODEL = "mlx-community/Qwen3-4B-4bit"
_ON_MAC = {"model": _MODEL, "url": "redis://:CHANGE-ME@queue.example:6379/0", "user": "YOU"}
_ON_LINUX = {"model": _MODEL, "home": "/var/lib/mlxq"}

TEMPLATES: Mapping[Kind, Template] = {
    "launchd": Template("com.mlxq.worker.plist", "a worker on a Mac, from login on", _ON_MAC, _for_plist),
    "launchd-daemon": Template(
        "com.mlxq.worker.daemon.plist", "a worker on a Mac, from its start on", _ON_MAC, _for_plist
    ),
    "launchd-logs": Template("com.mlxq.logs.plist", "what keeps a Mac's log small", {"user": "YOU"}, _for_plist),
    "systemd": Template("mlxq-worker.service", "a worker on Linux, on the CPU", _ON_LINUX, _for_systemd),
    "systemd-cuda": Template(
        "mlxq-worker-cuda@.service", "a worker on Linux for each NVIDIA card", _ON_LINUX, _for_systemd
    ),
    "systemd-serve": Template(
        "mlxq-serve.service", "OpenAI's Batch API on Linux", {"home": "/var/lib/mlxq"}, _for_systemd
    ),
    "systemd-redis": Template("mlxq-redis.service", "the queue's Redis on Linux"),
    "compose": Template("compose.yaml", "the queue's Valkey or Redis in a container, and what watches it"),
    "redis": Template("redis.conf", "the settings of a Redis that loses no jobs"),
    "redis-backup": Template("redis-backup.sh", "a copy of the queue, and a new Redis from it"),
    "prometheus": Template(
        "prometheus/prometheus.yml",
        "what scrapes workers and queues",
        {"worker-address": "localhost:9401", "queues-address": "localhost:9400"},
    ),
    "alerts": Template("prometheus/alerts.yml", "what Prometheus should tell somebody of"),
    "grafana": Template("grafana/mlxq.json", "a dashboard to import"),
}


def text_of(kind: Kind, values: Mapping[str, str | None]) -> str:
    """The file with the given values.

    Args:
        values: by the names of options; `None` keeps the example.

    Raises:
        ConfigError: the file has no place for a value, or can't hold it.
    """
    template = TEMPLATES[kind]
    text = (folder() / template.path).read_text(encoding="utf-8")
    for name, value in values.items():
        if value is None:
            continue
        if name not in template.examples:
            takes = ", ".join(f"--{known}" for known in template.examples) or "no options"
            raise ConfigError(f"{kind} has no place for --{name}: it takes {takes}")
        try:
            quoted = template.quoted(value)
        except ValueError as error:
            raise ConfigError(f"--{name} {value!r} can't stand in {template.path}: {error}") from None
        text = _replaced(text, template.examples[name], quoted)
    return text


def _replaced(text: str, example: str, value: str) -> str:
    """With the value wherever the example stands as a whole word."""
    return re.sub(rf"(?<!\w){re.escape(example)}(?!\w)", lambda _: value, text)


def folder() -> Path:
    """Where the files are: in an installed package, or in the source tree."""
    return INSTALLED if INSTALLED.is_dir() else IN_SOURCES
