"""Result files written anew, in one atomic step: in another order, or without some of their lines.

Takes no memory to speak of: where lines begin is kept on the disk.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, Protocol

from mlxq.files.output.durable import open_locked, replace_file
from mlxq.files.output.result_file import PACKED_BYTES
from mlxq.files.output.stored import line_at, packing_in, seekable, stored_lines
from mlxq.files.paths import file_errors
from mlxq.formats.packing import Packing, packed
from mlxq.storage.id_table import IdTable


class Ids(Protocol):
    """What can say whether it has an id."""

    def __contains__(self, custom_id: str, /) -> bool: ...


def order_file(path: Path | str, ids: Iterable[str], *, without: Ids = frozenset[str]()) -> None:
    """Rewrite a result file in the order of `ids`, in one atomic step; call it after closing the writer.

    Of several lines for one id the last is kept. Lines with other ids follow in their old order; those with ids in
    `without` are dropped.

    Raises:
        InputFileError: as `load_done` and `ResultWriter`; the file is then as it was.
    """
    # The target of a link is what gets replaced, not the link.
    target = Path(path).resolve()
    with ExitStack() as stack:
        stack.callback(os.close, open_locked(target, os.O_RDONLY))
        stack.enter_context(file_errors(path, "reorder"))
        source = stack.enter_context(seekable(target))
        offsets = IdTable()
        for offset, _, line in stored_lines(source, path):
            if line["custom_id"] not in without:
                offsets.put(line["custom_id"], offset)
        _replace_lines(target, _ordered(source, path, ids, offsets))


def drop_lines(path: Path | str, ids: Ids, *, first: int) -> None:
    """Rewrite a result file without those of its `first` lines that are for `ids`, in one atomic step; call it after
    closing the writer.

    Raises:
        InputFileError: as `order_file`; the file is then as it was.
    """
    target = Path(path).resolve()
    with ExitStack() as stack:
        stack.callback(os.close, open_locked(target, os.O_RDONLY))
        stack.enter_context(file_errors(path, "rewrite"))
        lines = enumerate(stored_lines(stack.enter_context(seekable(target)), path))
        kept = (stored.raw for number, stored in lines if number >= first or stored.line["custom_id"] not in ids)
        _replace_lines(target, kept)


def _ordered(source: BinaryIO, path: Path | str, ids: Iterable[str], offsets: IdTable) -> Iterator[bytes]:
    for custom_id in ids:
        offset = offsets.get(custom_id)
        if offset is not None:
            offsets.discard(custom_id)
            yield line_at(source, offset)
    source.seek(0)
    for offset, raw, line in stored_lines(source, path):
        if offsets.get(line["custom_id"]) == offset:
            yield raw.rstrip(b"\n") + b"\n"


def _replace_lines(target: Path, lines: Iterable[bytes]) -> None:
    packing = packing_in(target)
    replace_file(target, lambda out: out.writelines(lines if packing is None else _blocks(lines, packing)))


def _blocks(lines: Iterable[bytes], packing: Packing) -> Iterator[bytes]:
    block = bytearray()
    for line in lines:
        block += line
        if len(block) >= PACKED_BYTES:
            yield packed(bytes(block), packing)
            block.clear()
    if block:
        yield packed(bytes(block), packing)
