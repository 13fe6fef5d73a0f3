"""Programs of the machine that some tests need."""

from __future__ import annotations

import os
import shutil

import pytest


def program_on_path(*names: str) -> str:
    """Where the first of these is. A test is left out where there is none, but fails in CI, which installs them."""
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"no {names[0]} on the path")
    return found
