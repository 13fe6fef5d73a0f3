"""The tables of every field in docs/fields.md, made from `fields`. To renew them:

    python -m mlxq.requests.field_table docs/fields.md

Knows Markdown, and nothing of what any field means.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from mlxq.requests.field import Field
from mlxq.requests.fields import FIELDS

BEGIN = "<!-- fields: made by python -m mlxq.requests.field_table docs/fields.md -->"
END = "<!-- end of fields -->"


def markdown() -> str:
    """Three tables: what is honoured, what is a label, and what is refused."""
    listed = dict(_all_of(FIELDS))
    honoured = {name: field for name, field in listed.items() if field.check is not None and not field.label}
    labels = {name: field for name, field in listed.items() if field.label}
    refused = {name: field for name, field in listed.items() if field.check is None}
    return "\n\n".join(
        (
            _table(("honoured", "must be", "meaning"), {name: _honoured(field) for name, field in honoured.items()}),
            _table(("label", "must be", "meaning"), {name: _honoured(field) for name, field in labels.items()}),
            _table(
                ("refused", "unless it is", "would mean"), {name: _refused(field) for name, field in refused.items()}
            ),
        )
    )


def renewed(text: str) -> str:
    """The text with the tables made anew. Raises `ValueError` if it has no marks."""
    return between_marks(text, BEGIN, END, markdown())


def between_marks(text: str, begin: str, end: str, tables: str) -> str:
    """The text with these tables between two marks, in place of what is there.

    Raises:
        ValueError: the text has no such marks.
    """
    before, _, rest = text.partition(begin)
    _, mark, after = rest.partition(end)
    if not mark:
        raise ValueError(f"there is no {begin} with {end} after it")
    return f"{before}{begin}\n\n{tables}\n\n{end}{after}"


def _all_of(fields: Mapping[str, Field], path: str = "") -> Iterator[tuple[str, Field]]:
    """The fields and those inside them, by path."""
    for name, field in fields.items():
        yield f"{path}{name}", field
        yield from _all_of(field.inside, f"{path}{name}.")


def _honoured(field: Field) -> tuple[str, str]:
    only = " (chats only)" if field.chat_only else ""
    return (field.check.expected if field.check else "", f"{field.doc}{only}")


def _refused(field: Field) -> tuple[str, str]:
    accepted = " or ".join(f"`{json.dumps(value)}`" for value in (*field.neutral, None))
    return accepted, f"{field.doc}; {field.hint}" if field.hint else field.doc


def _table(head: tuple[str, str, str], rows: Mapping[str, tuple[str, str]]) -> str:
    lines = [head, ("---",) * 3, *((f"`{name}`", *cells) for name, cells in rows.items())]
    return "\n".join(_line(cells) for cells in lines)


def _line(cells: tuple[str, str, str]) -> str:
    escaped = (cell.replace("|", "\\|") for cell in cells)
    return f"| {' | '.join(escaped)} |"


def main() -> None:
    """Renew the tables in the file that is named."""
    path = Path(sys.argv[1])
    path.write_text(renewed(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
