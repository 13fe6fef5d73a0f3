"""The light half stays light: what `import mlxq` and `mlxq --help` load, and how little help takes to come."""

from __future__ import annotations

import json
import subprocess
import sys

HELP = "import sys; sys.argv = ['mlxq', '--help']; from mlxq.cli import main; main()"
BASELINE = "import click"

ALLOWED = frozenset({"click", "mlxq"})
"""Top-level modules beside the standard library that may be loaded before a command is known."""

HEAVY = "import redis"
"""What help must load less than, beside what click loads: the lightest of all that it is to do without."""


def loaded_modules(code: str) -> set[str]:
    """The modules that a fresh interpreter loads to run `code`."""
    report = "import atexit, json, sys; atexit.register(lambda: print(json.dumps(list(sys.modules)), file=sys.stderr))"
    done = subprocess.run([sys.executable, "-c", f"{report}; {code}"], capture_output=True, text=True, check=True)
    return set(json.loads(done.stderr.splitlines()[-1]))


def third_party_modules(code: str) -> set[str]:
    """The top-level modules of these, the standard library's apart."""
    return {name.split(".")[0] for name in loaded_modules(code)} - sys.stdlib_module_names - {"__main__"}


def num_modules(code: str) -> int:
    """How many modules, of the standard library too, a fresh interpreter loads to run `code`: where the time of a start
    goes, but the same on every machine."""
    return len(loaded_modules(code))


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


def test_what_reads_and_writes_files_loads_nothing_of_formats_that_nobody_asked_for() -> None:
    loaded = third_party_modules("import mlxq.cli.enqueue, mlxq.cli.collect, mlxq_worker.commands.run")

    assert loaded.isdisjoint({"jinja2", "numpy", "pandas", "pyarrow", "zstandard"})


def test_help_loads_neither_queue_nor_progress_bars_nor_arrays() -> None:
    at_start = third_party_modules("pass")

    loaded = third_party_modules(HELP) - at_start

    assert {"click", "mlxq"} <= loaded
    assert loaded <= ALLOWED


def test_a_heavy_import_would_be_seen() -> None:
    assert "redis" in third_party_modules("import redis") - ALLOWED


def test_help_comes_at_once() -> None:
    assert num_modules(HELP) - num_modules(BASELINE) < num_modules(HEAVY) - num_modules("pass")


def test_a_slow_start_would_be_seen() -> None:
    assert num_modules(f"import rq; {HELP}") - num_modules(BASELINE) > num_modules(HEAVY) - num_modules("pass")
