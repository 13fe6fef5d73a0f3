"""What is wired of a model, for how long, and what a worker says about it; a stand-in takes Metal's place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from click.testing import CliRunner
from tests.support.fake_device import GIB, FakeDevice

from mlxq import LLM, SamplingParams
from mlxq.cli import main
from mlxq.errors import ConfigError
from mlxq_worker.backend import load_backend
from mlxq_worker.commands.bench import bench
from mlxq_worker.commands.bench_widths import WidthFigures
from mlxq_worker.config import WorkerConfig
from mlxq_worker.engine.kvcache import device
from mlxq_worker.engine.kvcache.wired import WiredLimit, wired, wiring


def test_the_weights_are_wired_with_a_little_for_whole_pages() -> None:
    decided = wiring("auto", weights_bytes=20 * GIB, recommended_bytes=48 * GIB)

    assert 20 * GIB < decided.limit_bytes < 20.5 * GIB
    assert str(decided) == "the weights are wired, 20,800 MiB"


def test_no_more_is_wired_than_metal_recommends_to_use() -> None:
    assert wiring("auto", weights_bytes=60 * GIB, recommended_bytes=48 * GIB).limit_bytes == 48 * GIB


@pytest.mark.parametrize(
    ("told", "weights_bytes", "recommended_bytes", "reason"),
    [
        ("auto", 12 * GIB - 1, 48 * GIB, "no memory is wired: the weights' 12,288 MiB are few for this machine"),
        ("off", 40 * GIB, 48 * GIB, "no memory is wired: it is off"),
        ("auto", 40 * GIB, None, "no memory is wired: there is no Metal here"),
        ("off", 40 * GIB, None, "no memory is wired: there is no Metal here"),
        (GIB, 40 * GIB, None, "no memory is wired, though 1,024 MiB were asked for: there is no Metal here"),
    ],
)
def test_where_nothing_is_wired_it_is_said_why(
    told: WiredLimit, weights_bytes: int, recommended_bytes: int | None, reason: str
) -> None:
    decided = wiring(told, weights_bytes, recommended_bytes)

    assert decided.limit_bytes == 0
    assert str(decided) == reason


def test_a_quarter_of_the_recommended_memory_is_enough_to_be_wired() -> None:
    assert wiring("auto", weights_bytes=12 * GIB, recommended_bytes=48 * GIB).limit_bytes > 12 * GIB


def test_who_names_a_size_gets_it() -> None:
    assert wiring(3 * GIB, weights_bytes=GIB, recommended_bytes=48 * GIB).limit_bytes == 3 * GIB


def test_a_size_beyond_what_metal_allows_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"wired_limit \(MLXQ_WIRED_LIMIT\) must be auto, off or at most 49,152 MiB"):
        wiring(48 * GIB + 1, weights_bytes=GIB, recommended_bytes=48 * GIB)


def test_the_limit_holds_for_the_block_and_is_what_it_was_afterwards() -> None:
    mac = FakeDevice()
    mac.limits["wired"] = 7

    with wired("auto", mac) as decided:
        assert mac.limits["wired"] == decided.limit_bytes

    assert mac.limits["wired"] == 7


def test_what_is_kept_for_reuse_goes_before_and_the_last_step_ends_before_it_is_set_back() -> None:
    mac = FakeDevice()

    with wired(5 * GIB, mac):
        pass

    assert mac.calls == ["release", f"wired {5 * GIB}", "synchronize", "wired 0"]


def test_it_is_set_back_after_an_error_too() -> None:
    mac = FakeDevice()

    with pytest.raises(RuntimeError, match="boom"), wired("auto", mac):
        raise RuntimeError("boom")

    assert mac.limits["wired"] == 0


@pytest.mark.parametrize("mac", [FakeDevice(active=GIB), FakeDevice(recommended=None)], ids=["small model", "no Metal"])
def test_where_nothing_is_wired_metal_is_not_told_anything(mac: FakeDevice) -> None:
    with wired("auto", mac):
        pass

    assert mac.calls == ["release"]


@pytest.mark.parametrize(("told", "asked"), [("auto", ""), ("off", ""), (5 * GIB, ", though 5,120 MiB were asked for")])
def test_an_older_macos_that_would_only_pretend_is_told_nothing_and_it_is_said(told: WiredLimit, asked: str) -> None:
    mac = FakeDevice(macos=14)

    with wired(told, mac) as decided:
        assert str(decided) == f"no memory is wired{asked}: macOS can do that from version 15 on"

    assert mac.calls == ["release"]


@pytest.mark.parametrize(
    ("version", "can_wire"), [("14.7.1", False), ("15.0", True), ("26.1", True), ("", False)], ids=str
)
def test_which_macos_wires(version: str, can_wire: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.mac_ver", lambda: (version, ("", "", ""), "arm64"))

    assert device.Device().can_wire is can_wire


def test_weights_that_metal_refuses_to_wire_are_left_alone_and_it_is_said() -> None:
    mac = FakeDevice(wirable=19 * GIB)

    with wired("auto", mac) as decided:
        assert str(decided).startswith("no memory is wired: 20,800 MiB can't be: [metal::set_wired_limit]")

    assert mac.calls == ["release"]


def test_a_size_that_metal_refuses_to_wire_is_refused_by_name() -> None:
    refused = pytest.raises(ConfigError, match=r"wired_limit \(MLXQ_WIRED_LIMIT\): 20,480 MiB can't be wired: \[metal")

    with refused, wired(20 * GIB, FakeDevice(wirable=19 * GIB)):
        pass


def test_it_is_set_back_even_if_the_last_step_has_failed() -> None:
    mac = FakeDevice(failure=RuntimeError("[METAL] Command buffer execution failed"))

    with pytest.raises(RuntimeError, match="METAL"), wired("auto", mac):
        assert mac.limits["wired"]

    assert mac.limits["wired"] == 0


# --- In a worker ------------------------------------------------------------------------------------------------


def load(monkeypatch: pytest.MonkeyPatch, mac: FakeDevice, wired_limit: WiredLimit) -> None:
    monkeypatch.setattr(device, "Device", lambda: mac)
    backend = load_backend(WorkerConfig(model="demo", wired_limit=wired_limit))
    mac.calls.append(backend.description.rpartition("], ")[2])
    backend.close()


def test_a_worker_wires_once_it_has_its_model_says_so_and_stops_when_it_closes(monkeypatch: pytest.MonkeyPatch) -> None:
    mac = FakeDevice()

    load(monkeypatch, mac, "auto")

    assert mac.calls[-6:] == [
        f"wired {20 * GIB + 20 * GIB // 64}",
        "the weights are wired, 20,800 MiB",
        "synchronize",
        "wired 0",
        "cache 0",
        "memory 0",
    ]


def test_a_worker_that_may_use_nine_tenths_of_what_metal_recommends_holds_mlx_to_it_until_it_closes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mac = FakeDevice(recommended=20 * GIB, active=GIB)

    load(monkeypatch, mac, "off")

    assert mac.calls[:2] == [f"memory {18 * GIB}", f"cache {18 * GIB // 16}"]
    assert mac.limits == {"wired": 0, "memory": 0, "cache": 0}


def test_a_worker_without_memory_for_rows_wires_nothing_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    mac = FakeDevice(recommended=20 * GIB, active=19 * GIB)

    with pytest.raises(Exception, match="it may take no more"):
        load(monkeypatch, mac, "auto")

    assert mac.limits["wired"] == 0


def test_a_worker_over_its_limit_has_mlx_give_back_what_it_keeps_before_that_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mac = FakeDevice(active=GIB)
    monkeypatch.setattr(mac, "release_unused", lambda: setattr(mac, "active", min(mac.active, 40 * GIB)))
    monkeypatch.setattr(device, "Device", lambda: mac)
    backend = load_backend(WorkerConfig(model="demo"))
    mac.active = 44 * GIB

    assert backend.memory.level(1.0) == "fine"

    assert backend.memory.last_bytes == 40 * GIB
    backend.close()


@pytest.mark.parametrize("wired_limit", ["auto", GIB])
def test_a_worker_that_starts_again_wires_as_much_again(
    wired_limit: WiredLimit, monkeypatch: pytest.MonkeyPatch
) -> None:
    mac = FakeDevice()

    for _ in range(2):
        load(monkeypatch, mac, wired_limit)

    told = [call for call in mac.calls if call.startswith("wired")]
    assert told[:2] == told[2:]
    assert told[1] == "wired 0"


def test_a_model_in_the_callers_process_is_wired_until_it_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    mac = FakeDevice()
    monkeypatch.setattr(device, "Device", lambda: mac)

    with LLM("demo") as llm:
        llm.generate(["a"], SamplingParams(max_tokens=2), use_tqdm=False)
        assert mac.limits["wired"] > 20 * GIB

    assert mac.limits["wired"] == 0
    assert len([call for call in mac.calls if call.startswith("wired")]) == 2, "nothing changes while it decodes"


@pytest.mark.parametrize(("options", "wired_bytes"), [((), 20 * GIB + 20 * GIB // 64), (("--wired-limit", "off"), 0)])
def test_bench_measures_with_what_a_worker_wires(
    options: tuple[str, ...], wired_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    mac, seen = FakeDevice(), list[int]()
    monkeypatch.setattr(device, "Device", lambda: mac)

    def measure(*_: Any, **__: Any) -> Iterator[WidthFigures]:
        seen.append(mac.limits["wired"])
        yield WidthFigures(1, 10.0, 10.0, 0.1, GIB, 128)

    monkeypatch.setattr("mlxq_worker.commands.bench_widths.measure_all", measure)

    result = CliRunner().invoke(bench, ["--model", "demo", "--no-save", *options])

    assert (result.exit_code, seen, mac.limits["wired"]) == (0, [wired_bytes], 0), result.output


def test_bench_refuses_what_a_worker_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLXQ_KV_BITS", "4")

    result = CliRunner().invoke(main, ["bench", "--model", "demo", "--no-save"])

    assert result.exit_code == 2
    assert "MLXQ_KV_BITS can't be honoured" in result.stderr
