"""The light half stays light: what `import mlxq` and `mlxq --help` load, and how long help takes to come."""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys

HELP = "import sys; sys.argv = ['mlxq', '--help']; from mlxq.cli import main; main()"
BASELINE = "import click"

ALLOWED = frozenset({"click", "mlxq"})
"""Top-level modules beside the standard library that may be loaded before a command is known."""

RUNS = 5
HEAVY = "import redis"
"""What help must cost less than, beside what click costs: the lightest of all that it is to do without."""


def third_party_modules(code: str) -> set[str]:
    """The top-level modules, the standard library's apart, that a fresh interpreter loads to run `code`."""
    report = "import atexit, json, sys; atexit.register(lambda: print(json.dumps(list(sys.modules)), file=sys.stderr))"
    done = subprocess.run([sys.executable, "-c", f"{report}; {code}"], capture_output=True, text=True, check=True)
    tops = {name.split(".")[0] for name in json.loads(done.stderr.splitlines()[-1])}
    return tops - sys.stdlib_module_names - {"__main__"}


def cpu_seconds(code: str) -> float:
    """What running `code` in a fresh interpreter costs, user and system: other load on the machine doesn't count."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def extra_cpu_seconds(code: str, baseline: str, runs: int = RUNS) -> float:
    """How much more `code` costs than `baseline`: medians of runs taken in turn, so that drift hits both."""
    pairs = [(cpu_seconds(code), cpu_seconds(baseline)) for _ in range(runs)]
    costs, baseline_costs = zip(*pairs, strict=True)
    return float(statistics.median(costs) - statistics.median(baseline_costs))


def test_importing_mlxq_loads_nothing_heavy() -> None:
    # given an interpreter that may load things of its own at start (editable installs do)
    at_start = third_party_modules("pass")

    loaded = third_party_modules("import mlxq") - at_start

    assert "mlxq" in loaded
    assert loaded <= ALLOWED


def test_what_looks_after_workers_loads_nothing_of_a_model() -> None:
    parts = ("commands.run", "commands.worker", "supervision.supervisor", "supervision.redis_server")

    loaded = third_party_modules("; ".join(f"import mlxq_worker.{part}" for part in parts))

    assert {"mlxq_worker", "redis", "rq"} <= loaded
    assert loaded.isdisjoint({"mlx", "mlx_lm", "numpy", "tokenizers", "transformers"})


def test_looking_at_what_is_public_and_catching_errors_loads_nothing_heavy() -> None:
    at_start = third_party_modules("pass")

    loaded = third_party_modules("import mlxq; dir(mlxq), mlxq.__all__; from mlxq import RequestError") - at_start

    assert loaded <= ALLOWED


def test_building_a_request_loads_no_queue() -> None:
    at_start = third_party_modules("pass")

    loaded = third_party_modules("import mlxq; mlxq.request(prompt='hi')") - at_start

    assert loaded <= ALLOWED | {"msgspec", "typing_extensions"}


def test_a_client_loads_redis_and_rq_but_neither_arrays_nor_progress_bars() -> None:
    loaded = third_party_modules("from mlxq import Client")

    assert {"redis", "rq"} <= loaded
    assert loaded.isdisjoint(
        {"fakeredis", "mlx", "mlx_lm", "mlxq_worker", "numpy", "rich", "tokenizers", "transformers"}
    )


def test_help_loads_neither_queue_nor_progress_bars_nor_arrays() -> None:
    at_start = third_party_modules("pass")

    loaded = third_party_modules(HELP) - at_start

    assert {"click", "mlxq"} <= loaded
    assert loaded <= ALLOWED


def test_a_heavy_import_would_be_seen() -> None:
    assert "redis" in third_party_modules("import redis") - ALLOWED


def test_help_comes_at_once() -> None:
    # given compiled files, as after the first run
    cpu_seconds(HELP)

    assert extra_cpu_seconds(HELP, BASELINE) < extra_cpu_seconds(HEAVY, "pass")


def test_a_slow_start_would_be_seen() -> None:
    slow = f"import rq; {HELP}"

    assert extra_cpu_seconds(slow, BASELINE) > extra_cpu_seconds(HEAVY, "pass")
