"""How much memory a model's weights will take, read off the headers of its files: nothing of the weights is read.

A safetensors file begins with the length of its header, 8 bytes little-endian, and the header, a JSON object of names
to types, shapes and offsets (https://github.com/huggingface/safetensors#format). Plain Python.
"""

from __future__ import annotations

import json
import struct
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlxq.errors import ModelError

WEIGHT_FILES = "model*.safetensors"
_MAX_HEADER_BYTES = 100_000_000
"""The format allows no more."""


def weights_bytes(folder: Path) -> int:
    """Bytes of all weights in a model's folder, as they are stored.

    Raises:
        ModelError: there are none, or a file's header can't be read.
    """
    files = sorted(folder.glob(WEIGHT_FILES))
    if not files:
        raise ModelError(f"{folder} has no weights: there is no file {WEIGHT_FILES}")
    return sum(map(_data_bytes, files))


def main_dtype(folder: Path) -> str | None:
    """The type in which most bytes of the weights are stored, in the format's words such as ``BF16``; of packed
    quantised weights it is that of their words, ``U32``. `None` if there are no weights.

    Raises:
        ModelError: a file's header can't be read.
    """
    num_bytes = Counter[str]()
    for file in folder.glob(WEIGHT_FILES):
        for entry in _tensors(file):
            num_bytes[str(entry["dtype"])] += int(entry["data_offsets"][1]) - int(entry["data_offsets"][0])
    return num_bytes.most_common(1)[0][0] if num_bytes else None


def _data_bytes(file: Path) -> int:
    return max((int(entry["data_offsets"][1]) for entry in _tensors(file)), default=0)


def _tensors(file: Path) -> list[Mapping[str, Any]]:
    """The entries of a file's header."""
    try:
        with file.open("rb") as stream:
            (header_bytes,) = struct.unpack("<Q", stream.read(8))
            if header_bytes > _MAX_HEADER_BYTES:
                raise ValueError(f"its header would have {header_bytes} bytes")
            text = stream.read(header_bytes)
            if len(text) < header_bytes:
                raise ValueError("its header is cut off")
            header = json.loads(text)
        tensors = [entry for name, entry in header.items() if name != "__metadata__"]
        for entry in tensors:
            int(entry["data_offsets"][0]), int(entry["data_offsets"][1]), str(entry["dtype"])
    except (OSError, struct.error, ValueError, AttributeError, TypeError, LookupError) as error:
        raise ModelError(f"{file} is not a safetensors file, or a part of one: {error}") from error
    return tensors
