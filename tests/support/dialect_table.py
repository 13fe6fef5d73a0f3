"""The table of all dialects in docs/dialects.md, made from the registry."""

from __future__ import annotations

from mlxq_worker.dialects.calls import Call
from mlxq_worker.dialects.dialect import Dialect
from mlxq_worker.dialects.registry import DIALECTS


def markdown() -> str:
    """One line for each dialect: its name, who speaks it, other names, and how it is forced."""
    lines = ["| name | spoken by | also called | calls can be forced | a call |", "|---|---|---|---|---|"]
    return "\n".join([*lines, *map(_line, DIALECTS)])


def _line(dialect: Dialect) -> str:
    written = dialect.write([Call("now", {"zone": "CET"})]).replace("\n", "↵").replace("|", "\\|")
    written = written.replace("`" * 3, "‹fence›")
    forced = "yes" if dialect.forced else "no"
    called = ", ".join(f"`{alias}`" for alias in dialect.aliases)
    return f"| `{dialect.name}` | {dialect.spoken_by} | {called} | {forced} | `` {written} `` |"
