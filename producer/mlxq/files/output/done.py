"""What a result file says is done: which requests have an answer there, and to what.

Kept on the disk, so that it takes no memory to speak of. Knows no requests that are still to be run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from mlxq.files.output.stored import read_lines
from mlxq.id_table import IdTable
from mlxq.results import read_back


class Done(msgspec.Struct, frozen=True, array_like=True):
    """An answer in a result file: the hash of the request it answers, and the name of the model it is by.

    One that `is_cut` is there in part, so its request is not done. `default_max_tokens` is the worker's limit that the
    answer kept to, where its request has none and the line says so; `raised_max_tokens` is the one of a retry.
    `sampling_defaults` is what the model's own have filled in of the request, `None` where the line doesn't say.
    `finish_reasons` are those of its choices, and `hit_limit` tells whether one of them had `max_tokens` tokens.
    """

    content_hash: str
    model: str | None
    is_cut: bool = False
    default_max_tokens: int | None = None
    finish_reasons: tuple[str, ...] = ()
    hit_limit: bool = False
    raised_max_tokens: int | None = None
    sampling_defaults: dict[str, float] | None = None


class DoneTable:
    """The answers of a result file by custom id. `num_lines` are the lines that it has, of all kinds; `models` are
    those whose answers it has, or had before others took their place."""

    def __init__(self) -> None:
        self.num_lines = 0
        self.models: set[str | None] = set()
        self._table = IdTable()
        self._encoder, self._decoder = msgspec.msgpack.Encoder(), msgspec.msgpack.Decoder(Done)

    def __len__(self) -> int:
        return len(self._table)

    def __contains__(self, custom_id: str) -> bool:
        return custom_id in self._table

    def get(self, custom_id: str) -> Done | None:
        """The answer to a request; `None` if there is none."""
        data = self._table.get(custom_id)
        return None if data is None else self._decoder.decode(data)

    def put(self, custom_id: str, done: Done) -> None:
        """This answer is there now."""
        self.models.add(done.model)
        self._table.put(custom_id, self._encoder.encode(done))

    def items(self) -> Iterator[tuple[str, Done]]:
        """All ids with their answers, by id."""
        return ((custom_id, self._decoder.decode(data)) for custom_id, data in self._table.items())


def load_done(path: Path | str) -> DoneTable:
    """The answers in a result file. Later lines win; a missing file is empty.

    Raises:
        InputFileError: the file can't be read, or a line other than a cut-off last one is not an output line.
    """
    table = DoneTable()
    if Path(path).is_file():
        for line in read_lines(path):
            table.num_lines += 1
            if (answer := done_by(line)) is not None:
                table.put(line["custom_id"], answer)
    return table


def done_by(line: Mapping[str, Any]) -> Done | None:
    """What an output line has done, for a rerun; `None` if it is no answer by mlxq, nor a part of one."""
    content_hash = read_back.content_hash_of(line)
    if content_hash is None or not read_back.is_success(line):
        return None
    reasons = (choice.get("finish_reason") for choice in read_back.choices_of(line))
    return Done(
        content_hash,
        read_back.model_of(line),
        is_cut=read_back.is_cut(line),
        default_max_tokens=read_back.default_max_tokens_of(line),
        finish_reasons=tuple(reason for reason in reasons if isinstance(reason, str)),
        hit_limit=any(stop.get("type") == "max_tokens" for stop in read_back.stop_details_of(line)),
        raised_max_tokens=read_back.raised_max_tokens_of(line),
        sampling_defaults=read_back.sampling_defaults_of(line),
    )
