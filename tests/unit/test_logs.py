"""Lines of JSON, and that they don't say more than they should."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

from mlxq.logs import JsonLines, fields


def line(message: str, *args: object, error: bool = False, **about: Any) -> dict[str, Any]:
    record = logging.getLogger("rq.worker").makeRecord(
        "rq.worker",
        logging.WARNING,
        "file.py",
        1,
        message,
        args,
        sys.exc_info() if error else None,
        extra=fields(**about) if about else None,
    )
    text = JsonLines({"worker": "w1"}).format(record)
    assert "\n" not in text
    return dict(json.loads(text))


def test_a_record_is_one_line_of_json_whatever_is_in_it() -> None:
    found = line('Job %s\nisn\'t "ours"', "j1\x1b[0m", job="j1", batch=None, seconds=1.5, jobs=["a", "b"])

    assert found["message"] == 'Job j1\x1b[0m\nisn\'t "ours"'
    assert (found["level"], found["logger"], found["worker"]) == ("warning", "rq.worker", "w1")
    assert (found["job"], found["batch"], found["seconds"], found["jobs"]) == ("j1", None, 1.5, ["a", "b"])
    assert found["time"].endswith("+00:00")


def test_an_error_is_told_by_its_type_and_lines_and_not_by_its_message() -> None:
    try:
        raise ValueError(f"the prompt was: my {'sec' + 'ret'}")
    except ValueError:
        found = line("It went wrong", error=True)

    assert found["error"].startswith("ValueError\n")
    assert "test_logs.py" in found["error"]
    assert "secret" not in json.dumps(found)


def test_what_json_does_not_have_becomes_text() -> None:
    assert line("x", device=object)["device"] == "<class 'object'>"
