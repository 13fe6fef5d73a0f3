"""Files for other people's programs, against the schemas that these have published; check-jsonschema brings them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from tests.support.documents import ROOT

FILES = {
    "vendor.compose-spec": [ROOT / "deploy" / "compose.yaml"],
    "vendor.github-workflows": sorted((ROOT / ".github" / "workflows").glob("*.yml")),
}


def check(schema: str, file: Path) -> subprocess.CompletedProcess[str]:
    command = [f"{os.environ['MLXQ_COMPAT']}/check-jsonschema", "--builtin-schema", schema, str(file)]
    return subprocess.run(command, env={**os.environ, "PYTHONPATH": ""}, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("schema", "file"),
    [pytest.param(schema, file, id=file.name) for schema, files in FILES.items() for file in files],
)
def test_a_file_is_as_its_schema_wants_it(schema: str, file: Path) -> None:
    done = check(schema, file)

    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("schema", FILES)
def test_a_file_that_is_wrong_is_found_out(schema: str, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yml"
    wrong.write_text("services: {queue: {image: [1]}}\njobs: 7\n")

    assert check(schema, wrong).returncode == 1
