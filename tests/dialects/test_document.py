"""docs/dialects.md says what the registry has."""

from __future__ import annotations

from pathlib import Path

from tests.support.dialect_table import markdown

from mlxq_worker.dialects.reasoning import CHANNELS, SPELLINGS

DOCUMENT = (Path(__file__).parents[2] / "docs" / "dialects.md").read_text(encoding="utf-8")


def test_the_table_of_dialects_is_that_of_the_registry() -> None:
    assert markdown() in DOCUMENT


def test_every_reasoning_parser_is_named() -> None:
    names = {name for spelling in SPELLINGS for name in spelling.names} | {CHANNELS[0]}

    assert {name for name in names if f"`{name}`" not in DOCUMENT} == set()
