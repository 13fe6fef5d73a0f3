"""`mlxq run` over inputs that are wrong as a whole, or break off: one line that names what is wrong, and what was there
stays."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from click.testing import CliRunner, Result
from pyarrow import parquet
from tests.support.fake_worker import FakeWorker

from mlxq.cli import main

LINES = "".join(json.dumps({"custom_id": f"new-{number}", "prompt": f"hi {number}"}) + "\n" for number in range(300))


def cut_off(path: Path) -> Path:
    data = gzip.compress(LINES.encode())
    path.write_bytes(data[: len(data) - 100])
    return path


def table(path: Path) -> Path:
    parquet.write_table(pyarrow.table({"text": ["a", "b"]}), path)
    return path


def directory(path: Path) -> Path:
    path.mkdir()
    return path


WRONG: dict[str, tuple[str, Callable[[Path], Path], tuple[str, ...], str]] = {
    "truncated gzip": ("in.jsonl.gz", cut_off, (), "in.jsonl.gz"),
    "parquet without the column": ("in.parquet", table, ("--prompt-column", "prompt"), "the column prompt"),
    "a template with a missing column": (
        "in.parquet",
        table,
        ("--template", "{{ text }}\n{{ title }}"),
        "line 2 of the template names the column title",
    ),
    "a directory": ("in", directory, (), "is a directory"),
    "a missing file": ("in.jsonl", lambda path: path, (), "No such file"),
}


def run(url: str, given: Path, output: Path, *options: str) -> Result:
    arguments = ["run", "-i", str(given), "-o", str(output), "--url", url, "--workers", "0", *options]
    return CliRunner().invoke(main, arguments)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv"])
@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_with_an_input_is_one_line_and_nothing_is_overwritten(
    case: str, name: str, redis_url: str, tmp_path: Path
) -> None:
    # given what an earlier run has left
    good, folder = tmp_path / "good.jsonl", tmp_path / "out"
    good.write_text('{"custom_id": "old", "prompt": "hi"}\n')
    folder.mkdir()
    with FakeWorker(redis_url):
        assert run(redis_url, good, folder / name).exit_code == 0
        before = contents(folder)

        # when
        file_name, make, options, message = WRONG[case]
        failed = run(redis_url, make(tmp_path / file_name), folder / name, *options)

    # then
    assert failed.exit_code != 0
    assert "Traceback" not in failed.output
    [line] = [line for line in failed.output.splitlines() if line.startswith(("Error", "mlxq: error"))]
    assert message in line
    answers = "out.jsonl" if name == "out.jsonl" else "out.answers.jsonl"
    after = contents(folder)
    if case == "truncated gzip":  # what could be read is answered, behind what was there
        assert after.pop(answers).startswith(before.pop(answers))
    assert after == before


def test_a_ragged_row_and_an_id_that_is_there_twice_cost_a_line_each(redis_url: str, tmp_path: Path) -> None:
    given, output = tmp_path / "in.csv", tmp_path / "out.csv"
    given.write_text("id,prompt\n1,one\n2\n1,again\n3,three\n")
    with FakeWorker(redis_url):
        done: Any = run(redis_url, given, output, "--prompt-column", "prompt", "--id-column", "id")

    assert done.exit_code == 1
    said = [line.strip() for line in done.output.splitlines() if " x " in line]
    assert len(said) == 2
    assert any("line 3" in line for line in said)
    assert any("line 4 has the custom_id of line 2" in line for line in said)
    ids = [line.split(",")[0] for line in output.read_text().splitlines()[1:]]
    assert (ids[0], len(ids), ids[-1]) == ("1", 4, "3")
