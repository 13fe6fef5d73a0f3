"""How long a second `mlxq run` takes to find out that nothing is left to do.

    python -m tests.bench.resume

The input has 500,000 short requests; the output file holds an answer to each, written by the code that `mlxq run`
writes them with. Then `mlxq run` goes over both as a process of its own, from its start to its end. The same once more
with an option that changes nothing: no line is known by its mark then, and each is read. The last line is JSON.
For Linux.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
from tests.bench import report
from tests.bench.resources import peak_resident_mib
from tests.support.fake_worker import echo

from mlxq.files.input import read_unknown
from mlxq.files.known_lines import KnownLines
from mlxq.files.output.sink import Sink
from mlxq.requests.openai import ParsedLine
from mlxq_worker.model.load import load_tokenizer_only

LOOK_EVERY_S = 0.05
MODEL = "mlxq-demo"
"""What answers of the model that `mlxq run` takes by default say."""


@click.command(help=__doc__)
@click.option("--lines", "num_lines", type=click.IntRange(1), default=500_000, show_default=True)
@click.option("--unmarked/--no-unmarked", default=True, help="Also measure with every line read.")
@report.json_option
def main(num_lines: int, unmarked: bool, json_path: Path | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        given, output = Path(folder) / "in.jsonl", Path(folder) / "out.jsonl"
        write_input(given, num_lines)
        write_answers(given, output)
        figures = {"lines": num_lines, "output_mb": round(output.stat().st_size / 1e6), "known": resume(given, output)}
        if unmarked:
            figures["unmarked"] = resume(given, output, "--temperature", "1")
    report.publish(figures, json_path)


def write_input(path: Path, num_lines: int) -> None:
    """Short requests with ids, as pipelines write them."""
    with path.open("w") as out:
        for number in range(num_lines):
            messages = [{"role": "user", "content": f"Summarise review number {number} in one sentence, please."}]
            body = {"messages": messages, "max_tokens": 32, "temperature": 1}
            out.write(json.dumps({"custom_id": f"review-{number:07}", "url": "/v1/chat/completions", "body": body}))
            out.write("\n")


def write_answers(given: Path, output: Path) -> None:
    """The output file of a run over the input that has come to its end."""
    eos = [{"id": end.id, "token": end.token} for end in load_tokenizer_only("demo").eos.tokens]
    known = KnownLines()
    known.expect({})  # the demo model fills nothing in
    with Sink(output, output.with_suffix(".errors")) as sink:
        for line in read_unknown(given, known):
            assert isinstance(line, ParsedLine)
            answer = echo(line.request, f"b-{line.request.custom_id}")
            body = answer["response"]["body"]
            body |= {"model": MODEL, "mlxq": body["mlxq"] | {"eos": eos}}
            sink.write(answer, mark=line.mark)


def resume(given: Path, output: Path, *options: str) -> dict[str, Any]:
    """One run, which finds everything done: its seconds, and the most memory that it held."""
    size, started = output.stat().st_size, time.monotonic()
    command = [sys.executable, "-m", "mlxq", "run", "-i", str(given), "-o", str(output), *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    peak_mb = 0.0
    while process.poll() is None:
        with suppress(OSError, KeyError):  # it has just ended
            peak_mb = max(peak_mb, peak_resident_mib(process.pid))
        time.sleep(LOOK_EVERY_S)
    seconds = time.monotonic() - started
    assert process.stderr is not None
    said = process.stderr.read()
    if process.returncode or output.stat().st_size != size or "0 answered, 0 failed" not in said:
        raise click.ClickException(f"the run ended with {process.returncode}: {said}")
    return {"seconds": round(seconds, 2), "peak_mb": round(peak_mb * 2**20 / 1e6)}


if __name__ == "__main__":
    main()
