"""A worker that has answered thousands of requests takes no more memory than one that has answered hundreds. The size
that the promise is about is `python -m tests.bench.memory`'s."""

from __future__ import annotations

import pytest
from tests.bench.memory import MAX_GROWTH, resident_after
from tests.support.poison import PoisonWorker
from tests.support.supervised import command, variables


@pytest.mark.slow
def test_resident_memory_is_flat_over_thousands_of_requests(redis_url: str) -> None:
    settings = variables(MLXQ_URL=redis_url, MLXQ_MODEL="poison")

    early, late = resident_after([500, 3_000], command(PoisonWorker), settings)

    assert late <= MAX_GROWTH * early
