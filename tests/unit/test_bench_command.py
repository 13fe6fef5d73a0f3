"""What `mlxq bench` proposes from what it has measured, and how workers find it again."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from mlxq_worker.commands import tuning
from mlxq_worker.commands.bench import bench, draw, table_of
from mlxq_worker.commands.bench_widths import WidthFigures, proposed
from mlxq_worker.commands.tuning import Tuning
from mlxq_worker.config import EngineConfig, WorkerConfig

PROPOSAL = Tuning(
    model="demo", max_num_seqs=64, max_num_batched_tokens=512, tokens_per_s=99.5, measured_at="2026-01-02"
)


def figures(*rates: float) -> list[WidthFigures]:
    return [WidthFigures(1 << index, rate, 1000.0, 0.002, 100 << 20, None) for index, rate in enumerate(rates)]


@pytest.mark.parametrize(
    ("rates", "width"),
    [((5,), 1), ((10, 19, 38, 70), 8), ((10, 20, 30, 30.5, 31), 4), ((50, 40, 51), 1), ((10, 30, 20), 2)],
)
def test_the_narrowest_width_that_is_about_as_fast_as_the_fastest_is_proposed(
    rates: tuple[float, ...], width: int
) -> None:
    assert proposed(figures(*rates)).width == width


def test_the_table_has_a_bar_for_each_width_and_marks_the_proposed_one() -> None:
    console = Console(width=120)
    with console.capture() as capture:
        console.print(table_of(figures(100, 200), 2))

    lines = [line.split("│") for line in capture.get().splitlines() if "MiB" in line]
    assert [(row[1].strip(), row[2].strip(), row[3].count("█")) for row in lines] == [
        ("1", "100", 20),
        ("2 *", "200", 40),
    ]
    assert [cell.strip() for cell in lines[0][4:7]] == ["2.0 ms", "1,000", "100 MiB"]


@pytest.mark.parametrize(
    ("rates", "model"), [((100, 180, 300), "demo"), ((100,), r"a$b_{$\frac$"), (range(1, 10), "org/a-model-4bit")]
)
def test_the_picture_is_one_whatever_the_widths_and_the_model(
    rates: Sequence[float], model: str, tmp_path: Path
) -> None:
    from matplotlib.image import imread  # type: ignore[import-untyped, unused-ignore]

    draw(figures(*rates), 1, model, tmp_path / "a.png")

    picture = imread(tmp_path / "a.png")  # (height, width, RGBA)
    dark = (picture[:, :, :3].sum(axis=2) < 1.5).mean(axis=0)  # of each column
    assert picture.shape == (400, 800, 4)
    assert dark[:400].max() > 0.5 < dark[400:].max(), "the axes of both halves"


def test_a_picture_that_could_not_be_drawn_is_refused_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = CliRunner().invoke(bench, ["--png", str(tmp_path / "none" / "a.png")])
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    without = CliRunner().invoke(bench, ["--png", str(tmp_path / "a.png")])

    assert (nowhere.exit_code, without.exit_code) == (2, 2)
    assert f"there is no directory {tmp_path / 'none'}" in nowhere.stderr.replace("\n", " ")
    assert "mlxq's extra plots" in without.stderr


def test_a_proposal_is_found_again_for_this_model_as_it_is_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLXQ_CACHE_DIR", str(tmp_path / "cache"))
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    assert tuning.tuning_of(str(model)) is None

    file = tuning.save(str(model), PROPOSAL)

    assert tuning.tuning_of(str(model)) == PROPOSAL
    assert tuning.tuning_of(str(tmp_path / "other")) is None
    (model / "config.json").write_text('{"changed": 1}')
    assert tuning.tuning_of(str(model)) is None
    (model / "config.json").write_text("{}")
    for broken in (b"", b"{}", b'{"max_num_seqs": 0}', file.read_bytes().replace(b"64", b"-4")):
        file.write_bytes(broken)
        assert tuning.tuning_of(str(model)) is None


@pytest.mark.parametrize(("given", "tokens"), [("auto", 512), (128, 128)])
def test_a_worker_takes_the_width_and_a_step_size_that_nobody_has_given(given: int | str, tokens: int) -> None:
    config = WorkerConfig(model="demo", engine=EngineConfig(max_num_batched_tokens=given, longest_first=True))

    engine = tuning.tuned(config, PROPOSAL).engine

    assert engine == EngineConfig(max_num_seqs=64, max_num_batched_tokens=tokens, longest_first=True)
    assert str(PROPOSAL) == "64 rows at once, steps of 512 tokens, as mlxq bench has measured on 2026-01-02"


def test_caches_lie_where_the_system_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLXQ_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    monkeypatch.setattr(tuning.sys, "platform", "linux")
    assert tuning.cache_dir() == Path("/caches/mlxq")
    monkeypatch.setattr(tuning.sys, "platform", "darwin")
    assert tuning.cache_dir() == Path("~/Library/Caches/mlxq").expanduser()
