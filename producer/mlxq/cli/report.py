"""Prints what came of a run, on stderr: how many, how fast, why answers stopped, what failed and where."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mlxq.cli.progress import duration
from mlxq.cli.signals import StopRequest
from mlxq.cli.terminal import cell, tell
from mlxq.files.failures import FailureCount
from mlxq.files.tally import Summary
from mlxq.printable import printable

EMPTY_HINT = "The input holds no requests."
LIMIT_HINT = "Answers that end on max_tokens or context_length are cut short."
CUT_HINT = (
    "Answers that were cancelled, ran out of their timeout or died on the way are in the output file as far as they"
    " got; they don't count as done: a rerun, or a later answer, replaces them."
)
LIMITS = ("max_tokens", "context_length")
CUTS = ("cancelled", "deadline", "error")
MAX_MESSAGES = 5
MAX_MESSAGE_CHARS = 300


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """``1 worker``, ``2 workers``."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def print_summary(summary: Summary, error_file: Path, *, with_rate: bool) -> None:
    """The closing words of `run` and `collect`."""
    tell(headline(summary, with_rate=with_rate))
    if summary.changed:
        changed = counted(summary.changed, "request")
        tell(f"{changed} had an answer there, but changed since, or the settings did.")
    if summary.retried:
        tell(f"{counted(summary.retried, 'request')} had an answer there, and got another because of how that ended.")
    if summary.stops:
        Console(stderr=True).print(_stop_table(summary))
    if summary.failures:
        tell("What failed")
        print_failures(summary.failures)
        tell(f"What was wrong with each of them is in {error_file}.")
    if any(stop.type in LIMITS for stop in summary.stops):
        tell(LIMIT_HINT)
    if any(stop.type in CUTS for stop in summary.stops):
        tell(CUT_HINT)
    print_dropped(summary.dropped)
    if summary.unasked:
        tell(f"The output file also holds {counted(summary.unasked, 'answer')} to other requests.")
    if summary.unasked_failures:
        tell(f"The error file also holds {counted(summary.unasked_failures, 'failure')} of other requests.")


def print_failures(failures: Sequence[FailureCount]) -> None:
    """The most frequent messages, how often each came and where first, and how many more there are."""
    for failure in failures[:MAX_MESSAGES]:
        more = failure.count - len(failure.places)
        where = ", ".join(map(_short, failure.places)) + (f" and {more:,} more" if more else "")
        message = _short(failure.message or "other messages")
        tell(f"  {failure.count:,} x {failure.code}: {message} ({where})")
    rest = failures[MAX_MESSAGES:]
    if rest:
        num_requests = sum(failure.count for failure in rest)
        tell(f"  and {num_requests:,} more, with {counted(len(rest), 'other message')}")


def print_dropped(dropped: Sequence[tuple[str, int]]) -> None:
    """The fields that ``--allow-unknown-params`` left out of requests."""
    if dropped:
        fields = ", ".join(f"{printable(name)} ({count:,})" for name, count in dropped)
        tell(f"Fields that were dropped, and of how many requests: {fields}.")


def _short(text: str) -> str:
    return printable(text if len(text) <= MAX_MESSAGE_CHARS else text[:MAX_MESSAGE_CHARS] + "...")


def headline(summary: Summary, *, with_rate: bool = True) -> str:
    """One sentence with the counts, and with the rate where it is that of answering."""
    counts = [f"{summary.succeeded:,} answered", f"{summary.failed:,} failed"]
    if summary.cut:
        counts.append(f"{summary.cut:,} answered in part")
    if summary.cancelled:
        counts.append(f"{summary.cancelled:,} cancelled")
    if summary.skipped:
        counts.append(f"{summary.skipped:,} already there")
    tokens = f"{summary.prompt_tokens:,} prompt and {summary.completion_tokens:,} completion tokens"
    if not with_rate:
        return f"{', '.join(counts)}; {tokens}."
    rate = summary.completion_tokens / max(1e-9, summary.seconds)
    return f"{', '.join(counts)} in {duration(summary.seconds)}; {tokens}, {rate:,.0f} completion tokens/s."


def exit_code(summary: Summary) -> int:
    """0 if everything was answered in full, else 1."""
    return 1 if summary.failed or summary.cut or summary.cancelled or summary.interrupted else 0


def finish(summary: Summary, error_file: Path, stop: StopRequest, *, with_rate: bool = True) -> None:
    """Print the summary and end the process: with its exit code, or by the signal that has interrupted it."""
    print_summary(summary, error_file, with_rate=with_rate)
    if summary.interrupted:
        stop.pass_on()
    sys.exit(exit_code(summary))


def _stop_table(summary: Summary) -> Table:
    table = Table("stopped by", "token or string", "choices", title="Why answers stopped", title_justify="left")
    for stop in summary.stops:
        table.add_row(cell(stop.type), cell("" if stop.token is None else repr(stop.token)[1:-1]), f"{stop.count:,}")
    return table
