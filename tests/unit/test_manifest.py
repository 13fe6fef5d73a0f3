"""The manifest of a run: where it stands, what it hides, and what it never replaces."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.support.fake_worker import echo

from mlxq.errors import ConfigError
from mlxq.files.output.manifest import RunFacts, check_manifest, manifest_path, write_manifest
from mlxq.files.tally import Tally
from mlxq.requests.openai import text_request

FACTS = RunFacts(started=0.0, command=("mlxq",), files={}, model=None, row_efficiency=None)


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.gz", "out.csv", "out.parquet", "out"])
def test_it_stands_beside_the_output(name: str) -> None:
    assert manifest_path(Path("a") / name) == Path("a/out.manifest.json")


def test_passwords_in_the_command_line_are_left_out(tmp_path: Path) -> None:
    command = ("mlxq", "run", "--url", "redis://kim:s3cret@host:1/0", "--url=rediss://:s3cret@host")
    facts = RunFacts(started=0.0, command=command, files={}, model="m", row_efficiency=0.98765)
    write_manifest(tmp_path / "m.json", Tally().summary(), facts)
    text = (tmp_path / "m.json").read_text()
    assert "s3cret" not in text
    assert "kim" not in text
    assert json.loads(text)["command"][3:] == ["redis://***@host:1/0", "--url=rediss://***@host"]
    assert json.loads(text)["row_efficiency"] == 0.9877


def test_end_tokens_are_those_that_were_in_force_each_once(tmp_path: Path) -> None:
    tally = Tally()
    line = echo(text_request("hi", custom_id="a").request, "job")
    for ends in ([{"id": 2, "token": "<end>"}], [{"id": 2, "token": "<end>"}, {"id": 3, "token": "<more>"}], "no list"):
        line["response"]["body"]["mlxq"]["eos"] = ends
        tally.add(line)
    write_manifest(tmp_path / "m.json", tally.summary(), FACTS)
    [model] = json.loads((tmp_path / "m.json").read_text())["models"]
    assert model == {
        "name": "echo",
        "answers": 3,
        "eos": [{"id": 2, "token": "<end>"}, {"id": 3, "token": "<more>"}],
    }


@pytest.mark.parametrize("content", ["{}", "[1]", "notes", b"\xff"])
def test_another_file_of_that_name_is_refused_and_an_older_manifest_is_not(
    tmp_path: Path, content: str | bytes
) -> None:
    path = tmp_path / "out.manifest.json"
    check_manifest(path)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match="is no manifest of mlxq's"):
        check_manifest(path)
    path.unlink()
    write_manifest(path, Tally().summary(), FACTS)
    check_manifest(path)
