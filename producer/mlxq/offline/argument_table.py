"""The tables in docs/vllm.md, made from what is taken and refused. To renew them:

    python -m mlxq.offline.argument_table docs/vllm.md

Knows Markdown, and nothing of what any argument means.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from mlxq.offline.arguments import CHAT_ARGUMENTS, GENERATE_ARGUMENTS, LLM_ARGUMENTS
from mlxq.offline.sampling_params import NOT_IN_REQUESTS, PARAMETERS
from mlxq.requests.field import Field
from mlxq.requests.field_table import between_marks
from mlxq.requests.fields import FIELDS

BEGIN = "<!-- arguments: made by python -m mlxq.offline.argument_table docs/vllm.md -->"
END = "<!-- end of arguments -->"


def markdown() -> str:
    """A table each for the constructor, the two methods, and `SamplingParams`."""
    parameters = {name: NOT_IN_REQUESTS.get(name) or FIELDS[_FIELD_OF.get(name, name)] for name in PARAMETERS}
    tables = {
        "LLM(...)": LLM_ARGUMENTS,
        "LLM.generate(...)": GENERATE_ARGUMENTS,
        "LLM.chat(...)": CHAT_ARGUMENTS,
        "SamplingParams(...)": parameters,
    }
    return "\n\n".join(_table(title, fields) for title, fields in tables.items())


def renewed(text: str) -> str:
    """The text with the tables made anew. Raises `ValueError` if it has no marks."""
    return between_marks(text, BEGIN, END, markdown())


_FIELD_OF = {"guided_decoding": "structured_outputs"}
"""Parameters that are fields under another name."""


def _table(title: str, fields: Mapping[str, Field]) -> str:
    taken = [_row(name, field) for name, field in fields.items() if field.check is not None]
    refused = [_row(name, field) for name, field in fields.items() if field.check is None]
    return "\n".join([f"| `{title}` | may be | meaning |", "| --- | --- | --- |", *taken, *refused])


def _row(name: str, field: Field) -> str:
    meaning = f"{field.doc}; {field.hint}" if field.hint else field.doc
    return f"| `{name}` | {_values(field)} | {meaning.replace('|', chr(92) + '|')} |"


def _values(field: Field) -> str:
    if field.check is None:
        return "only " + " or ".join(f"`{value!r}`" for value in (*field.neutral, None))
    return f"{field.check.expected}, and changes nothing" if field.label else field.check.expected


def main() -> None:
    """Renew the tables in the file that is named."""
    path = Path(sys.argv[1])
    path.write_text(renewed(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
