"""What all tests of the queue share."""

from __future__ import annotations

import pytest
from tests.support.waiting import DEADLINE_S

from mlxq_worker.jobs import claiming


@pytest.fixture(autouse=True)
def _prepares_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn prepares all that was claimed, however slow the machine is: tests count turns."""
    monkeypatch.setattr(claiming, "PREPARE_SLICE_S", DEADLINE_S)
