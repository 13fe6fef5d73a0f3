"""Lines of JSON, what makes a worker slow, and that neither says more than it should."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

import pytest

from mlxq.logs import JsonLines, fields
from mlxq_worker.slow_states import Setting, narrow_batch, slow_states, thread_limits

LINUX_CPU = {"platform": "linux", "is_gpu": False}


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


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({**LINUX_CPU, "has_openblas": False}, "libopenblas0-pthread"),
        ({**LINUX_CPU, "dtype": "BF16"}, "float32"),
        ({**LINUX_CPU, "dtype": "F16"}, "float32"),
        ({**LINUX_CPU, "has_nvidia": True}, "mlxq[cuda]"),
        ({**LINUX_CPU, "num_cores": 8, "threads": (("OMP_NUM_THREADS", "1"),)}, "OMP_NUM_THREADS"),
        ({"platform": "darwin", "is_gpu": False}, "arm64"),
    ],
)
def test_what_makes_a_worker_slow_is_said_with_what_helps(setting: dict[str, Any], words: str) -> None:
    [state] = slow_states(Setting(**setting))

    assert words in state


@pytest.mark.parametrize(
    "setting",
    [
        {"platform": "darwin", "is_gpu": True, "dtype": "BF16", "has_openblas": False},
        {"platform": "linux", "is_gpu": True, "has_nvidia": True, "dtype": "F16"},
        {**LINUX_CPU, "dtype": "F32", "num_cores": 8, "threads": (("OMP_NUM_THREADS", "8"),)},
        {**LINUX_CPU, "dtype": "U32", "num_cores": 1, "threads": (("OMP_NUM_THREADS", "1"),)},
    ],
)
def test_a_machine_that_does_what_it_can_is_not_called_slow(setting: dict[str, Any]) -> None:
    assert list(slow_states(Setting(**setting))) == []


@pytest.mark.parametrize(
    ("num_rows", "wanted", "is_narrow"), [(7, 32, True), (8, 32, False), (7, 256, True), (8, 256, False), (1, 4, False)]
)
def test_a_batch_is_narrow_where_few_rows_fit_of_those_that_would_pay(
    num_rows: int, wanted: int, is_narrow: bool
) -> None:
    states = list(narrow_batch(num_rows, wanted, 4096))

    found = [(f"only {num_rows} of {wanted}" in state, "--memory-limit" in state) for state in states]
    assert found == [(True, True)] * is_narrow


def test_limits_of_threads_are_those_that_are_set() -> None:
    assert thread_limits({"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "", "HOME": "/"}) == (
        ("OMP_NUM_THREADS", "1"),
    )
