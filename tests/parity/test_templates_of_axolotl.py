"""The chat templates that the package axolotl ships, in the table of docs/dialects.md: each cell is right or a refusal,
and the table is what is found today."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from tests.support.template_table import COLUMNS, markdown, row_of

DOCUMENT = Path(__file__).parents[2] / "docs" / "dialects.md"


def templates() -> dict[str, str]:
    found = importlib.util.find_spec("axolotl")
    assert found is not None, "make parity installs it"
    assert found.submodule_search_locations is not None
    folder = Path(next(iter(found.submodule_search_locations))) / "utils" / "chat_templates" / "templates"
    return {path.stem: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.jinja"))}


@pytest.mark.parametrize("name", templates())
def test_nothing_about_a_template_is_silently_wrong(name: str) -> None:
    row = row_of(templates()[name])

    assert list(row) == list(COLUMNS)
    assert "WRONG" not in row.values()


def test_the_table_in_the_documentation_is_true() -> None:
    assert markdown({name: row_of(template) for name, template in templates().items()}) in DOCUMENT.read_text(
        encoding="utf-8"
    )
