"""How a process logs: lines for people, or one JSON object a line for programs.

What a message is about (a job, a batch, seconds) is given beside it as `fields`, and stands by name in JSON. Whoever
logs never gives a prompt, an answer or a password: a log is shared.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Literal

LogFormat = Literal["text", "json"]

_FIELDS = "mlxq_fields"
_QUIET = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "false"}
"""What keeps libraries from writing to standard error as they like."""


def fields(**values: Any) -> dict[str, Any]:
    """What a message is about, for the `extra` of a logger's method. Plain values, or lists of them."""
    return {_FIELDS: values}


class JsonLines(logging.Formatter):
    """Each record as one line of JSON: `time` (UTC), `level`, `logger`, `pid`, `message`, and the fields.

    Args:
        common: fields of every line.
    """

    def __init__(self, common: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self._common = dict(common or {})

    def format(self, record: logging.LogRecord) -> str:
        """Called by logging."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "pid": record.process,
            **self._common,
            "message": record.getMessage(),
            **getattr(record, _FIELDS, {}),
        }
        if record.exc_info and record.exc_info[0] is not None:
            line["error"] = _trace(record.exc_info[0], record.exc_info[2])
        return json.dumps(line, default=str)


def log_to_stderr(log_format: LogFormat, **common: Any) -> None:
    """Send all log messages of this process to standard error. In JSON that goes for warnings of Python and for an
    error that nobody catches, too, and libraries are asked to be quiet.

    Args:
        common: fields of every line of JSON; those that are `None` are left out.
    """
    if log_format == "text":
        logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
        return
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines({name: value for name, value in common.items() if value is not None}))
    logging.basicConfig(handlers=[handler])
    logging.captureWarnings(capture=True)
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    sys.excepthook = _log_uncaught


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    logging.getLogger("mlxq").critical("%s, which nobody expected", kind.__name__, exc_info=(kind, error, trace))


def _trace(kind: type[BaseException], trace: TracebackType | None) -> str:
    """Without the error's message, which may quote a prompt."""
    return f"{kind.__name__}\n{''.join(traceback.format_tb(trace))}".rstrip()
