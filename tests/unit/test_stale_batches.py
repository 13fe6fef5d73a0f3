"""Whose batches a run may clear away: those of the same file on the same machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlxq.files.stale_batches import batch_prefix


@pytest.fixture
def output(tmp_path: Path) -> Path:
    path = tmp_path / "out.jsonl"
    path.touch()
    return path


def on_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, machine_id: str) -> None:
    file = tmp_path / "machine-id"
    file.write_text(f"{machine_id}\n")
    monkeypatch.setattr("mlxq.files.stale_batches.MACHINE_ID", file)


def test_the_same_file_has_the_same_prefix_every_time(output: Path) -> None:
    assert batch_prefix(output) == batch_prefix(output.parent / "." / output.name)


def test_two_machines_of_one_name_and_one_path_leave_each_others_batches_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, output: Path
) -> None:
    on_machine(monkeypatch, tmp_path, "one")
    first = batch_prefix(output)
    on_machine(monkeypatch, tmp_path, "two")

    assert batch_prefix(output) != first


@pytest.mark.parametrize(("node", "is_told_apart"), [(0x0242AC110002, True), (1 << 40 | 5, False)])
def test_without_systemd_a_network_card_tells_machines_apart_but_not_a_number_drawn_by_lot(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, output: Path, node: int, is_told_apart: bool
) -> None:
    monkeypatch.setattr("mlxq.files.stale_batches.MACHINE_ID", tmp_path / "none")
    monkeypatch.setattr("uuid.getnode", lambda: 1 << 40)
    unknown = batch_prefix(output)
    monkeypatch.setattr("uuid.getnode", lambda: node)

    assert (batch_prefix(output) != unknown) == is_told_apart


def test_a_pipe_or_a_device_has_no_batches_of_its_own() -> None:
    assert batch_prefix(Path("/dev/null")) is None
