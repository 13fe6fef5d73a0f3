"""The Lua scripts as text: what they include stands in front of them once, and what an end means is said once."""

from __future__ import annotations

from pathlib import Path

import pytest

import mlxq.queue
import mlxq.serve.work
import mlxq_worker.jobs
from mlxq.queue.scripts import SHARED, source

WORKER = "mlxq_worker.jobs"
SERVE = "mlxq.serve.work"
FOLDERS = {
    SHARED: Path(mlxq.queue.__file__).parent / "lua",
    WORKER: Path(mlxq_worker.jobs.__file__).parent / "lua",
    SERVE: Path(mlxq.serve.work.__file__).parent / "lua",
}
SCRIPTS = [(file.stem, package) for package, folder in FOLDERS.items() for file in sorted(folder.glob("*.lua"))]


def test_the_scripts_of_both_packages_are_found() -> None:
    assert {("end_queued", SHARED), ("record_ends", SHARED), ("finish", WORKER)} <= set(SCRIPTS)


@pytest.mark.parametrize(("name", "package"), SCRIPTS)
def test_all_that_a_script_includes_stands_in_it_once(name: str, package: str) -> None:
    text = source(name, package)

    assert "@include" not in text
    assert text.count("local function is_a(") <= 1
    assert text.count("local function record_end(") <= 1


def test_a_part_stands_before_the_script_that_includes_it() -> None:
    text = source("finish", WORKER)

    assert 0 <= text.index("function is_a(") < text.index("function record_end(") < text.rindex("record_end(batch,")


def test_a_script_that_is_not_there_is_named() -> None:
    with pytest.raises(FileNotFoundError, match="nonsense"):
        source("nonsense")


@pytest.mark.parametrize("said", ["cancelled_jobs", "batch.events, '*'"])
def test_what_an_end_does_to_a_batch_is_said_in_one_file(said: str) -> None:
    files = [file.name for folder in FOLDERS.values() for file in folder.glob("*.lua") if said in file.read_text()]

    assert files == ["ended.lua"]
