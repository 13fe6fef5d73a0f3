"""Which machine this is: tells it from others that share its name, as images and containers often do.

Knows nothing of what is told apart by it.
"""

from __future__ import annotations

import uuid
from pathlib import Path

MACHINE_ID = Path("/etc/machine-id")
_DRAWN_BY_LOT = 1 << 40
"""Set in the number that Python makes up, anew in every process, where it finds no card."""


def machine_id(file: Path = MACHINE_ID) -> str:
    """What tells this machine from others of its name, and stays when it restarts: systemd's id, or the address of a
    network card; empty where there is neither.

    Args:
        file: where systemd keeps its id.
    """
    if file.is_file():
        return file.read_text().strip()
    node = uuid.getnode()
    return "" if node & _DRAWN_BY_LOT else f"{node:x}"
