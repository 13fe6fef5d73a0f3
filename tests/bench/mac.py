"""All that is to be tried on a Mac, in one go, into one report: `make mac`.

    python -m tests.bench.mac --model demo --report mac-report.md

Every part is a command of its own, whose exit code, seconds and last lines go into the report. One that fails doesn't
stop the others. The exit code is 1 if any failed.
"""

from __future__ import annotations

import json
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

PYTHON = sys.executable
_LINES = 60
"""Of a part's output, the last of which are its figures."""
_DEADLINE_S = 3600.0
_WORKLOADS = ("uniform", "mixed", "shared_prefix", "own_sampling")
_WIRED_LIMITS = ("off", "auto", "60%")

MACHINE = """
import json, platform, mlx.core as mx, mlx_lm
print(json.dumps({"macos": platform.mac_ver()[0], "python": platform.python_version(), "mlx": mx.__version__,
                  "mlx_lm": mlx_lm.__version__, "device": str(mx.default_device()), **mx.device_info()}))
"""


@dataclass(frozen=True, slots=True)
class Part:
    """One command and what it is to find out."""

    title: str
    asks: str
    command: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a part."""

    part: Part
    exit_code: int
    seconds: float
    output: str

    def __str__(self) -> str:
        last = "\n".join(self.output.rstrip().splitlines()[-_LINES:])
        way = "ok" if self.exit_code == 0 else f"FAILED with {self.exit_code}"
        return (
            f"## {self.part.title}: {way}, {self.seconds:.0f} s\n\n{self.part.asks}\n\n"
            f"    {shlex.join(self.part.command)}\n\n```\n{last}\n```\n"
        )


def parts(model: str, folder: Path) -> Iterator[Part]:
    """All of them, the cheap ones first."""
    yield Part("machine", "What this is.", (PYTHON, "-c", MACHINE))
    yield Part(
        "parity",
        "Are answers on this GPU mlx-lm's own, but for near-ties? A failure of an exact comparison is to be read: the "
        "kernels' results depend on the batch's shape, so a first difference must be a near-tie.",
        (
            *(PYTHON, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/engine/test_precision.py"),
            *("tests/engine/test_packed.py", "tests/engine/test_parity.py", "tests/engine/test_sampling.py"),
        ),
    )
    yield Part(
        "masks of grammars",
        "Does the one kernel of our own mask what it should?",
        (PYTHON, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/engine/test_processors.py"),
    )
    yield Part(
        "launches",
        "What Python takes for a step beside BatchGenerator; the counts are those of any machine.",
        (PYTHON, "-m", "tests.bench.launches", "--host"),
    )
    yield Part(
        "benchmark",
        "How fast the engine and `mlxq run` are beside batch_generate.",
        (
            *(PYTHON, "-m", "tests.bench.suite", "--model", "40m", "--requests", "96"),
            *("--system", "mlxq_run", "--system", "mlxq_engine", "--system", "batch_generate"),
            *(word for workload in _WORKLOADS for word in ("--workload", workload)),
        ),
    )
    yield Part(
        "run ahead",
        "Is what is decided by measuring as fast as the better of always and never?",
        (PYTHON, "-m", "tests.bench.run_ahead", "--model", "40m"),
    )
    requests = folder / "requests.jsonl"
    for limit in _WIRED_LIMITS:
        command = (
            f"{shlex.quote(PYTHON)} -m mlxq_worker.demo.tasks --n 240 --seed 0 > {requests} && time "
            + shlex.join(
                [
                    *(PYTHON, "-m", "mlxq", "run", "--model", model, "--wired-limit", limit),
                    *("-i", str(requests), "-o", str(folder / f"answers-{limit.rstrip('%')}.jsonl")),
                ]
            )
        )
        yield Part(
            f"wired limit {limit}",
            "Does wiring the weights make a large model faster, and does the machine stay usable? Watch Activity "
            "Monitor, with a model of more than a quarter of the memory (`make mac MODEL=...`).",
            ("bash", "-c", command),
        )


def outcome_of(part: Part) -> Outcome:
    """Run one part."""
    start = time.monotonic()
    try:
        done = subprocess.run(
            part.command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=_DEADLINE_S, check=False
        )
        return Outcome(part, done.returncode, time.monotonic() - start, done.stdout)
    except subprocess.TimeoutExpired as error:
        return Outcome(part, 124, time.monotonic() - start, f"{error}")


def write_report(outcomes: Sequence[Outcome], file: Path) -> None:
    """Write what there is so far: a part that takes the machine down must not take the report with it."""
    failed = ", ".join(each.part.title for each in outcomes if each.exit_code) or "none"
    head = f"# mlxq on {platform.platform()}\n\n{len(outcomes)} parts, failed: {failed}\n"
    file.write_text("\n".join([head, *map(str, outcomes)]))


@click.command(help=__doc__)
@click.option("--model", default="demo", show_default=True, help="For the wired limit: a directory or repository.")
@click.option("--report", "report_path", type=click.Path(path_type=Path), default=Path("mac-report.md"))
@click.option("--only", multiple=True, help="Parts by the beginning of their titles.")
@click.option("--anywhere", is_flag=True, help="Run on something else than a Mac, too.")
def main(model: str, report_path: Path, only: tuple[str, ...], anywhere: bool) -> None:
    if sys.platform != "darwin" and not anywhere:
        raise click.UsageError("this is for Macs; use --anywhere to try it elsewhere")
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory() as folder:
        for part in parts(model, Path(folder)):
            if not only or part.title.startswith(only):
                print(f"{part.title} ...", file=sys.stderr, flush=True)
                outcomes.append(outcome_of(part))
                write_report(outcomes, report_path)
    codes = {each.part.title: each.exit_code for each in outcomes}
    print(json.dumps({"report": str(report_path), "exit_codes": codes}))
    sys.exit(int(any(codes.values())))


if __name__ == "__main__":
    main()
