"""Packed files as other programs write them are read like any other, and what is wrong with one is one sentence."""

from __future__ import annotations

import gzip
import io
import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from tests.support.result_files import request_file

from mlxq.errors import InputFileError
from mlxq.files.input import read_requests
from mlxq.files.output.result_file import ResultWriter
from mlxq.formats.packing import Packing, Whole, packed, whole_part
from mlxq.requests.openai import ParsedLine

LINES = [
    json.dumps({"custom_id": f"r{i}", "prompt": f"Grüße {i} " + "x" * (i % 7)}).encode() + b"\n" for i in range(5000)
]
WHOLE = b"".join(LINES)
HALF = len(WHOLE) // 2


def streamed(data: bytes) -> bytes:
    """As `zstd` writes what it reads from a pipe: without the size of the content."""
    packer = zstandard.ZstdCompressor().compressobj()
    return packer.compress(data) + packer.flush()


def long_range(data: bytes, window_log: int) -> bytes:
    """As ``zstd --long=LOG`` writes it."""
    level = zstandard.ZstdCompressionParameters.from_level(3, window_log=window_log, enable_ldm=True)
    packer = zstandard.ZstdCompressor(compression_params=level).compressobj()
    return packer.compress(data) + packer.flush()


SKIPPABLE = b"\x50\x2a\x4d\x18\x04\x00\x00\x00mark"  # pzstd and others put such frames before theirs

PACKED: dict[str, bytes] = {
    "gzip": gzip.compress(WHOLE),
    "gzip, several members cut anywhere (cat a.gz b.gz, bgzip)": gzip.compress(WHOLE[:HALF])
    + gzip.compress(WHOLE[HALF:]),
    "gzip with an empty member at its end, and zeros behind": gzip.compress(WHOLE) + gzip.compress(b"") + bytes(512),
    "zstd with the size of the content": zstandard.ZstdCompressor().compress(WHOLE),
    "zstd without": streamed(WHOLE),
    "zstd, several frames": streamed(WHOLE[:HALF])
    + zstandard.ZstdCompressor(write_checksum=True).compress(WHOLE[HALF:]),
    "zstd --long": long_range(WHOLE, 27),
    "zstd behind a frame to be skipped": SKIPPABLE + streamed(WHOLE),
}


def ids(path: Path) -> list[str]:
    return [item.request.custom_id for item in read_requests(path) if isinstance(item, ParsedLine)]


@pytest.mark.parametrize("kind", PACKED)
def test_a_packed_file_is_read_whatever_it_is_called(kind: str, tmp_path: Path) -> None:
    assert ids(request_file(tmp_path, PACKED[kind], "in.jsonl")) == [f"r{i}" for i in range(len(LINES))]


@pytest.mark.parametrize("pack", [gzip.compress, streamed])
def test_a_packed_file_that_was_cut_off_is_read_as_far_as_it_goes_and_named(
    pack: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    whole = pack(os.urandom(100).hex().encode().join(LINES))
    path = request_file(tmp_path, whole[: len(whole) * 9 // 10], "in.jsonl.gz")
    read: list[object] = []
    with pytest.raises(InputFileError, match=rf"can't read {path}: its \w+ data is cut off"):
        read.extend(read_requests(path))
    assert len(read) > 100


@pytest.mark.parametrize("kind", ["gzip", "zstd, several frames"])
def test_damaged_data_is_named(kind: str, tmp_path: Path) -> None:
    data = bytearray(PACKED[kind])
    data[len(data) // 2 : len(data) // 2 + 40] = bytes(40)
    with pytest.raises(InputFileError, match=r"data is damaged"):
        ids(request_file(tmp_path, bytes(data)))


@pytest.mark.parametrize("window_log", [28, 31])
def test_what_takes_more_memory_to_unpack_than_is_allowed_is_not_called_damaged(
    window_log: int, tmp_path: Path
) -> None:
    content = long_range(WHOLE, window_log)
    path = request_file(tmp_path, content, "in.jsonl.zst")
    with pytest.raises(InputFileError, match="more than 128 MiB of memory to unpack: pack it with --long=27"):
        ids(path)

    # nor is it cut off where it is to be written to
    answers = tmp_path / "out.jsonl.zst"
    answers.write_bytes(content)
    with pytest.raises(InputFileError, match="more than 128 MiB of memory"):
        ResultWriter(answers)
    assert answers.read_bytes() == content


def test_lines_of_a_slow_packed_pipe_come_as_they_are_written(tmp_path: Path) -> None:
    fifo = tmp_path / "in.jsonl.gz"
    os.mkfifo(fifo)
    descriptor = os.open(fifo, os.O_RDWR)
    packer = zlib.compressobj(wbits=31)
    os.write(descriptor, packer.compress(LINES[0]) + packer.flush(zlib.Z_SYNC_FLUSH))
    items = read_requests(fifo)
    assert isinstance(next(items), ParsedLine)
    os.write(descriptor, packer.flush())
    os.close(descriptor)
    assert list(items) == []


@pytest.mark.parametrize("packing", ["gzip", "zstd"])
@pytest.mark.parametrize("cut", [0, 1, 30])
def test_the_whole_part_ends_before_a_block_that_was_cut_off(packing: Packing, cut: int) -> None:
    # given two blocks and a third one that was being written
    first, second, third = (packed(data, packing) for data in (WHOLE, b"", LINES[0]))

    # when, then
    assert whole_part(io.BytesIO(first + second + third[:cut]), packing) == Whole(len(first + second), b"\n")
    assert whole_part(io.BytesIO(first + second + third), packing) == Whole(len(first + second + third), b"\n")
    assert whole_part(io.BytesIO(third[:cut]), packing) == Whole(0, b"")
