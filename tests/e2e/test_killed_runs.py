"""`mlxq run` killed and started again, in each format of output: `tests/faults/killed_runs` in short."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.faults.killed_runs import FORMATS, nursery, tell


@pytest.mark.slow
def test_each_id_is_there_once_and_nothing_finished_is_computed_again_in_any_format(
    redis_url: str, tmp_path: Path
) -> None:
    with nursery(tmp_path) as runs:
        wrong = {name: tell(runs, redis_url, tmp_path, name, num_lines=300, kills=2, seed=1) for name in FORMATS}

    assert wrong == {name: [] for name in FORMATS}
