"""What a file's name says of what is in it: its format, and how it is packed.

Knows names only; what a file begins with is for `kinds` and `packing`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mlxq.formats.packing import SUFFIXES, Packing

Format = Literal["jsonl", "text", "csv", "tsv", "parquet", "arrow"]

FORMATS: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".txt": "text",
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
}
ARROW_FORMATS = frozenset[Format]({"parquet", "arrow"})
TABLES = ARROW_FORMATS | {"csv", "tsv"}


@dataclass(frozen=True, slots=True)
class Named:
    """What a name says; `format` is `None` where it says nothing."""

    format: Format | None
    packing: Packing | None


def named(path: Path | str) -> Named:
    """``in.csv.gz`` -> CSV, packed with gzip."""
    suffixes = [suffix.lower() for suffix in Path(path).suffixes]
    packing = SUFFIXES.get(suffixes[-1]) if suffixes else None
    if packing is not None:
        suffixes.pop()
    return Named(FORMATS.get(suffixes[-1]) if suffixes else None, packing)
