"""What makes a worker slow: how it is found out, from files and commands that are played, and what is said about it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pytest
from tests.support.fake_device import FakeDevice

from mlxq_worker.backend import setting_of
from mlxq_worker.config import EngineConfig, WorkerConfig
from mlxq_worker.demo import MODEL_PATH
from mlxq_worker.engine.kvcache import device
from mlxq_worker.host import cgroup, facts
from mlxq_worker.host.slow_states import DEBUG_VARIABLES, Setting, narrow_batch, slow_states

GIB = 1 << 30
LINUX_CPU = {"platform": "linux", "is_gpu": False}
LINUX_GPU = {"platform": "linux", "is_gpu": True, "has_nvidia": True}
MAC = {"platform": "darwin", "is_gpu": True, "recommended_bytes": 48 * GIB}
EIGHT = {**LINUX_CPU, "num_cores": 8}


# --- What is said -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({**LINUX_CPU, "has_openblas": False}, "libopenblas0-pthread"),
        ({**LINUX_CPU, "dtype": "BF16"}, "float32"),
        ({**LINUX_CPU, "dtype": "F16"}, "float32"),
        ({**LINUX_CPU, "has_nvidia": True}, "mlxq[cuda]"),
        ({**EIGHT, "threads": (("OMP_NUM_THREADS", "1"),)}, "OMP_NUM_THREADS is 1"),
        ({**LINUX_CPU, "num_cores": 2, "threads": (("OMP_NUM_THREADS", "1"),)}, "leave it out"),
        ({**EIGHT, "threads": (("OPENBLAS_NUM_THREADS", "3"),)}, "may use 8 cores"),
        ({**EIGHT, "cpu_limit": 1.5}, "OPENBLAS_NUM_THREADS=2"),
        ({**EIGHT, "cpu_limit": 0.25}, "OPENBLAS_NUM_THREADS=1"),
        ({"platform": "darwin", "is_gpu": False}, "arm64"),
        ({**MAC, "dtype": "F32", "weights_bytes": 8 * GIB}, "bfloat16"),
        ({**LINUX_GPU, "dtype": "F32", "weights_bytes": 8 * GIB}, "bfloat16"),
        ({**MAC, "is_low_power": True}, "pmset -a lowpowermode 0"),
        ({**MAC, "is_unwired": True, "weights_bytes": 20 * GIB}, "--wired-limit"),
        ({**MAC, "available_bytes": 4 * GIB, "weights_bytes": 5 * GIB}, "the machine has 4.0 GiB of memory left"),
        ({**LINUX_CPU, "available_bytes": 4 * GIB, "weights_bytes": 5 * GIB}, "it will swap"),
        ({**LINUX_CPU, "nice": 19}, "nice 19"),
        ({**LINUX_CPU, "is_debug_python": True}, "-X dev"),
        ({**MAC, "step_tokens": 16}, "--max-num-batched-tokens"),
        *(({**MAC, "debugging": ((name, "1"),)}, f"{name} is 1") for name in DEBUG_VARIABLES),
    ],
)
def test_what_makes_a_worker_slow_is_said_with_what_helps(setting: dict[str, Any], words: str) -> None:
    [state] = slow_states(Setting(**setting))

    what, _, todo = state.partition(": ")
    assert words in state
    assert all((what, todo)), "the doctor shows the two apart"


@pytest.mark.parametrize(
    "setting",
    [
        {**MAC, "dtype": "BF16", "has_openblas": False, "weights_bytes": 20 * GIB, "available_bytes": 30 * GIB},
        {**MAC, "dtype": "F32", "weights_bytes": 4 << 20, "step_tokens": 512},
        {**LINUX_GPU, "dtype": "F16", "available_bytes": 4 * GIB, "weights_bytes": 40 * GIB},
        {**EIGHT, "dtype": "F32", "threads": (("OMP_NUM_THREADS", "8"),), "available_bytes": None},
        {**EIGHT, "dtype": "F32", "threads": (("OMP_NUM_THREADS", "4"),), "nice": 5},
        {**EIGHT, "cpu_limit": 2.0, "threads": (("OPENBLAS_NUM_THREADS", "2"),)},
        {**EIGHT, "cpu_limit": 6.0},
        {**EIGHT, "threads": (("OMP_NUM_THREADS", "many"),)},
        {**LINUX_CPU, "dtype": "U32", "num_cores": 1, "threads": (("OMP_NUM_THREADS", "1"),)},
    ],
)
def test_a_machine_that_does_what_it_can_is_not_called_slow(setting: dict[str, Any]) -> None:
    assert list(slow_states(Setting(**setting))) == []


@pytest.mark.parametrize(
    ("num_rows", "wanted", "is_narrow"), [(7, 32, True), (8, 32, False), (7, 256, True), (8, 256, False), (1, 4, False)]
)
def test_a_batch_is_narrow_where_few_rows_fit_of_those_that_would_pay(
    num_rows: int, wanted: int, is_narrow: bool
) -> None:
    states = list(narrow_batch(num_rows, wanted, 4096))

    found = [(f"only {num_rows} of {wanted}" in state, "--memory-limit" in state) for state in states]
    assert found == [(True, True)] * is_narrow


# --- How it is found out ------------------------------------------------------------------------------------------


def groups(folder: Path, membership: str, files: Mapping[str, str]) -> tuple[Path, Path]:
    """A tree of control groups as the kernel shows it, and which of them a process is in."""
    for name, text in files.items():
        (folder / "cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "cgroup" / name).write_text(text)
    (folder / "membership").write_text(membership)
    return folder / "cgroup", folder / "membership"


V1 = "9:name=systemd:/\n4:memory:/docker/a1\n3:cpu,cpuacct:/docker/a1\n0::/\n"


@pytest.mark.parametrize(
    ("membership", "files", "memory", "cpus"),
    [
        ("0::/\n", {}, None, None),
        ("0::/\n", {"memory.max": "max\n", "cpu.max": "max 100000\n"}, None, None),
        ("0::/\n", {"memory.max": "4294967296\n", "cpu.max": "150000 100000\n"}, 4 * GIB, 1.5),
        (
            "0::/system.slice/mlxq.service\n",
            {
                "system.slice/memory.max": "8589934592\n",
                "system.slice/mlxq.service/memory.max": "max\n",
                "system.slice/mlxq.service/cpu.max": "200000 100000\n",
                "system.slice/other.service/memory.max": "1\n",
            },
            8 * GIB,
            2.0,
        ),
        ("0::/../seen/from/outside\n", {"memory.max": "1073741824\n"}, GIB, None),
        (
            V1,
            {
                "memory/docker/a1/memory.limit_in_bytes": "2147483648\n",
                "memory/memory.limit_in_bytes": "9223372036854771712\n",
            },
            2 * GIB,
            None,
        ),
        (V1, {"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"}, None, 0.5),
        (V1, {"cpu/docker/a1/cpu.cfs_quota_us": "-1", "cpu/docker/a1/cpu.cfs_period_us": "100000"}, None, None),
    ],
    ids=[
        "no files",
        "no limits",
        "a container",
        "a service",
        "outside",
        "version 1",
        "version 1, from inside",
        "version 1, no limit",
    ],
)
def test_what_a_container_or_a_service_may_take(
    membership: str, files: dict[str, str], memory: int | None, cpus: float | None, tmp_path: Path
) -> None:
    tree = groups(tmp_path, membership, files)

    assert cgroup.memory_limit_bytes(*tree) == memory
    assert cgroup.cpu_limit(*tree) == cpus


def test_where_there_are_no_control_groups_nothing_limits(tmp_path: Path) -> None:
    nowhere = (tmp_path / "none", tmp_path / "none")

    assert (cgroup.memory_limit_bytes(*nowhere), cgroup.cpu_limit(*nowhere)) == (None, None)
    assert facts.machine_bytes(lambda: None) >= facts.machine_bytes()


def test_a_container_has_no_more_memory_than_it_may_take() -> None:
    assert facts.machine_bytes(lambda: 1000) == 1000
    assert facts.machine_bytes(lambda: 1 << 62) == facts.machine_bytes(lambda: None)


def test_what_is_left_of_the_memory_is_what_the_kernel_says(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       16000000 kB\nMemFree:          100000 kB\nMemAvailable:    2048 kB\n")

    assert facts.available_bytes(meminfo) == 2 << 20
    meminfo.write_text("MemTotal: 1 kB\n")
    assert facts.available_bytes(meminfo) is None
    assert facts.available_bytes(tmp_path / "none") is None


@pytest.mark.parametrize(
    ("said", "is_low"),
    [
        ("Currently in use:\n standby              1\n lowpowermode         1\n sleep 0\n", True),
        ("Currently in use:\n powermode            1\n", True),
        ("Currently in use:\n lowpowermode         0\n powermode            2\n", False),
        ("", False),
    ],
)
def test_low_power_mode_is_read_from_the_settings_of_the_mac(said: str, is_low: bool) -> None:
    assert facts.is_low_power(lambda: said) is is_low


def test_variables_are_those_that_are_set_to_something() -> None:
    names = {"A": "", "B": "", "C": "", "D": ""}

    assert facts.variables(names, {"A": "1", "B": "", "C": "0", "E": "1"}) == (("A", "1"),)


def test_a_worker_is_told_of_all_that_was_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTL_DEBUG_LAYER", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    monkeypatch.setattr(cgroup, "cpu_limit", lambda: 1.5)
    monkeypatch.setattr(facts, "available_bytes", lambda: 12345)
    monkeypatch.setattr(facts, "is_low_power", lambda: True)
    monkeypatch.setattr(facts, "niceness", lambda: 11)
    monkeypatch.setattr(facts, "is_debug_python", lambda: True)
    monkeypatch.setattr(device, "Device", small_mac)
    config = WorkerConfig(model="demo", wired_limit="off", engine=EngineConfig(max_num_batched_tokens=8))

    found = setting_of(MODEL_PATH, config, has_openblas=False)

    assert (found.debugging, found.threads) == ((("MTL_DEBUG_LAYER", "1"),), (("OMP_NUM_THREADS", "7"),))
    assert (found.cpu_limit, found.available_bytes, found.nice, found.step_tokens) == (1.5, 12345, 11, 8)
    assert [found.is_low_power, found.is_debug_python, found.is_unwired, found.has_openblas] == [
        True,
        True,
        True,
        False,
    ]
    header = json.loads((MODEL_PATH / "model.safetensors").read_bytes()[8:].partition(b"}}")[0] + b"}}")
    ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
    assert (found.dtype, found.weights_bytes) == ("F32", max(ends))


def small_mac(macos: int = 15) -> FakeDevice:
    """One for which the demo model's weights are many."""
    return FakeDevice(recommended=1 << 20, macos=macos)


@pytest.mark.parametrize(
    ("mac", "told"),
    [(FakeDevice(), "off"), (small_mac(), "auto"), (small_mac(macos=14), "off")],
    ids=["few weights", "wired", "an older macOS"],
)
def test_weights_that_would_not_be_wired_anyway_are_no_loss(
    mac: FakeDevice, told: Literal["auto", "off"], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "Device", lambda: mac)

    found = setting_of(MODEL_PATH, WorkerConfig(model="demo", wired_limit=told), has_openblas=True)

    assert not found.is_unwired
