"""How much memory a model's weights will take, read off the headers of its files: nothing of the weights is read.

A safetensors file begins with the length of its header, 8 bytes little-endian, and the header, a JSON object of names
to types, shapes and offsets (https://github.com/huggingface/safetensors#format). Plain Python.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

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


def _data_bytes(file: Path) -> int:
    try:
        with file.open("rb") as stream:
            (header_bytes,) = struct.unpack("<Q", stream.read(8))
            if header_bytes > _MAX_HEADER_BYTES:
                raise ValueError(f"its header would have {header_bytes} bytes")
            text = stream.read(header_bytes)
            if len(text) < header_bytes:
                raise ValueError("its header is cut off")
            header = json.loads(text)
        tensors = (entry for name, entry in header.items() if name != "__metadata__")
        return max((int(entry["data_offsets"][1]) for entry in tensors), default=0)
    except (OSError, struct.error, ValueError, AttributeError, TypeError, LookupError) as error:
        raise ModelError(f"{file} is not a safetensors file, or a part of one: {error}") from error
