"""Whether the promises were kept: one answer for each request, and the one that an undisturbed run gives."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from tests.faults.fleet import UNASKED_END
from tests.faults.producer import FAILED_RUNS
from tests.faults.workload import Line, essence

NUM_SHOWN = 5


def broken_promises(expected: Mapping[str, Line], output: Sequence[Line], errors: Sequence[Line]) -> list[str]:
    """One sentence each; none if all is well."""
    num_lines = Counter(line["custom_id"] for line in (*output, *errors))
    answers = {line["custom_id"]: line for line in output}
    return [
        *_named("were lost", [name for name in expected if not num_lines[name]]),
        *_named("were there more than once", [name for name, count in num_lines.items() if count > 1]),
        *_named("were never asked for", [name for name in num_lines if name not in expected]),
        *_named("failed to the end", [line["custom_id"] for line in errors]),
        *_named("were answered differently", [name for name in expected if _differs(name, expected, answers)]),
    ]


def blame_on_workers(counts: Mapping[str, int]) -> list[str]:
    """What Redis's own errors must not do, one sentence each."""
    never = ("requeued strikes", "leases lost", "tracebacks", UNASKED_END, FAILED_RUNS)
    return [
        *(f"{counts[what]} {what} for errors of Redis" for what in never if counts.get(what)),
        *(f"{number} {what}" for what, number in counts.items() if what.startswith("lines failed") and number),
    ]


def differences(expected: Mapping[str, Line], output: Sequence[Line]) -> list[str]:
    """The first few answers that differ, beside what they should be."""
    answers = {line["custom_id"]: line for line in output}
    names = [name for name in expected if _differs(name, expected, answers)]
    return [
        f"{name}\n  expected {essence(expected[name])}\n  got      {essence(answers[name])}"
        for name in names[:NUM_SHOWN]
    ]


def seen_in_logs(logs: str) -> dict[str, int]:
    """What the workers wrote that they went through."""
    return {
        "requeued strikes": _total(r"Requeued (\d+) jobs of a worker that died", logs),
        "lost claims given back": _total(r"Gave back (\d+) jobs whose claim had got lost", logs),
        "leases lost": logs.count("isn't ours any more: its lease is gone"),
        "late results dropped": _total(r"Dropped (\d+) results", logs),
        "tracebacks": logs.count("Traceback (most recent call last)"),
    }


def _differs(name: str, expected: Mapping[str, Line], answers: Mapping[str, Line]) -> bool:
    return name in answers and essence(answers[name]) != essence(expected[name])


def _named(what: str, names: Sequence[str]) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - NUM_SHOWN} more" if len(names) > NUM_SHOWN else ""
    return [f"{len(names)} requests {what}: {', '.join(names[:NUM_SHOWN])}{more}"]


def _total(pattern: str, logs: str) -> int:
    return sum(int(number) for number in re.findall(pattern, logs))
