"""Prints what came of a run, on stderr: how many, how fast, why answers stopped, and what failed."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mlxq.cli.progress import duration
from mlxq.cli.terminal import cell, tell
from mlxq.files.tally import Summary

EMPTY_HINT = "The input holds no requests."
LIMIT_HINT = "Answers that end on max_tokens or context_length are cut short."
LIMITS = ("max_tokens", "context_length")


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """``1 worker``, ``2 workers``."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def print_summary(summary: Summary, error_file: Path, *, with_rate: bool) -> None:
    """The closing words of `run` and `collect`."""
    tell(headline(summary, with_rate=with_rate))
    console = Console(stderr=True)
    if summary.stops:
        console.print(_stop_table(summary))
    if summary.error_codes:
        console.print(_error_table(summary))
        tell(f"What was wrong with each of them is in {error_file}.")
    if any(stop.type in LIMITS for stop in summary.stops):
        tell(LIMIT_HINT)
    if summary.unasked:
        tell(f"The output file also holds {counted(summary.unasked, 'answer')} to other requests.")
    if summary.unasked_failures:
        tell(f"The error file also holds {counted(summary.unasked_failures, 'failure')} of other requests.")


def headline(summary: Summary, *, with_rate: bool = True) -> str:
    """One sentence with the counts, and with the rate where it is that of answering."""
    counts = [f"{summary.succeeded:,} answered", f"{summary.failed:,} failed"]
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
    """0 if everything was answered, else 1."""
    return 1 if summary.failed or summary.cancelled or summary.interrupted else 0


def finish(summary: Summary, error_file: Path, *, with_rate: bool = True) -> None:
    """Print the summary and end the process with its exit code."""
    print_summary(summary, error_file, with_rate=with_rate)
    sys.exit(exit_code(summary))


def _stop_table(summary: Summary) -> Table:
    table = Table("stopped by", "token or string", "choices", title="Why answers stopped", title_justify="left")
    for stop in summary.stops:
        table.add_row(cell(stop.type), cell("" if stop.token is None else repr(stop.token)[1:-1]), f"{stop.count:,}")
    return table


def _error_table(summary: Summary) -> Table:
    table = Table("code", "requests", title="What failed", title_justify="left")
    for code, count in summary.error_codes:
        table.add_row(cell(code), f"{count:,}")
    return table
