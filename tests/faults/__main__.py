"""The command line and the course of a run: undisturbed, under faults, in peace again, and the verdict."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import click
from tests.faults import schedule, verdict, workload
from tests.faults.diary import Diary
from tests.faults.fleet import LEASE_S, PATIENT_LEASE_S, Fleet
from tests.faults.producer import Producer
from tests.faults.scene import Scene
from tests.faults.server import DurableRedis
from tests.faults.workload import Files, Line

HELP = (
    "Answer requests while workers, Redis and the producer are killed, or while Redis answers with its own errors. Exit"
    " code 1 if an answer is lost or wrong."
)


@dataclass(frozen=True, slots=True)
class Options:
    """Of a run. `patience_s` is what there is for the rest of the work after the last fault."""

    seconds: float
    num_workers: int
    seed: int
    patience_s: float
    with_redis_errors: bool


@dataclass(frozen=True, slots=True)
class Story:
    """How the disturbed run went: whether it came to its end, what happened how often, and what the workers wrote."""

    is_done: bool
    counts: Counter[str]
    logs: str


@click.command(help=HELP)
@click.option("--seconds", type=click.FloatRange(10), default=300, show_default=True, help="How long there are faults.")
@click.option("--requests", "num_requests", type=click.IntRange(10), default=3000, show_default=True)
@click.option("--workers", type=click.IntRange(1), default=3, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the requests and of the faults.")
@click.option("--patience", type=float, default=180, show_default=True, help="Seconds for what is left after them.")
@click.option(
    "--redis-errors", "with_redis_errors", is_flag=True, help="Nothing is killed: each of Redis's errors, in turn."
)
@click.option("--directory", type=click.Path(path_type=Path), help="Keep all files here.")
def main(
    seconds: float,
    num_requests: int,
    workers: int,
    seed: int,
    patience: float,
    with_redis_errors: bool,
    directory: Path | None,
) -> None:
    place = directory or Path(tempfile.mkdtemp(prefix="mlxq-faults-"))
    is_well = _run(num_requests, place, Options(seconds, workers, seed, patience, with_redis_errors))
    if is_well and directory is None:
        shutil.rmtree(place)
    sys.exit(0 if is_well else 1)


def _run(num_requests: int, directory: Path, options: Options) -> bool:
    """All of it; returns whether every promise was kept."""
    print(f"{num_requests} requests with seed {options.seed}, undisturbed at first; files in {directory}", flush=True)
    lines = workload.requests(num_requests, options.seed)
    expected = workload.undisturbed(lines, Files.within(directory / "undisturbed"))
    files = Files.within(directory / "disturbed")
    story = _disturbed(lines, files, directory, options)
    return _report(story, expected, files, options)


def _disturbed(lines: list[Line], files: Files, directory: Path, options: Options) -> Story:
    diary = Diary()
    deadline_s = options.seconds + options.patience_s
    faults = _faults(options)
    with DurableRedis(directory) as server, _fleet(options, server, directory, diary) as fleet:
        # With every fault comes a portion of the work, so that there is something to disturb on fast machines too.
        times_s = [fault.at_s for fault in faults]
        with Producer(lines, files, server.url, times_s, directory / "producer.log", diary) as producer:
            Scene(server, fleet, producer, diary).play(faults, lambda: producer.is_done or diary.now_s > deadline_s)
            is_done = producer.is_done
        diary.note("all is answered" if is_done else "giving up: the run doesn't end")
    return Story(is_done, diary.counts, fleet.logs())


def _faults(options: Options) -> list[schedule.Fault]:
    if options.with_redis_errors:
        return schedule.redis_errors(options.seconds)
    return schedule.draw(options.seed, options.seconds, options.num_workers, LEASE_S)


def _fleet(options: Options, server: DurableRedis, directory: Path, diary: Diary) -> Fleet:
    lease_s = PATIENT_LEASE_S if options.with_redis_errors else LEASE_S
    return Fleet(options.num_workers, server.url, server.connection, directory, diary, lease_s=lease_s)


def _report(story: Story, expected: dict[str, Line], files: Files, options: Options) -> bool:
    """Prints what came of it; returns whether every promise was kept."""
    output, errors = workload.read(files.output), workload.read(files.errors)
    broken = [] if story.is_done else ["the run didn't end"]
    broken += verdict.broken_promises(expected, output, errors)
    seen = {**verdict.seen_in_logs(story.logs), **story.counts}
    if options.with_redis_errors:
        broken += verdict.blame_on_workers(seen)
    for text in (*verdict.differences(expected, output), *(f"BROKEN: {promise}" for promise in broken)):
        print(text)
    lines = {"requests": len(expected), "output lines": len(output), "error lines": len(errors)}
    counts = {**lines, **seen}
    print(", ".join(f"{number} {what}" for what, number in counts.items()))
    return not broken


if __name__ == "__main__":
    main()
