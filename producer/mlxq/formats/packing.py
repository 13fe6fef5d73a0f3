"""Packed files, gzip's and Zstandard's: read as a stream of what is inside, and written in blocks of their own.

A packed file is a row of members (gzip) or frames (Zstandard), each whole in itself, so that a file can grow by one
after another, and what a crash cut off is the last of them alone. Knows nothing of what is inside.
"""

from __future__ import annotations

import gzip
import io
import zlib
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal, Protocol

Packing = Literal["gzip", "zstd"]

SUFFIXES: dict[str, Packing] = {".gz": "gzip", ".gzip": "gzip", ".zst": "zstd", ".zstd": "zstd"}
READ_BYTES = 16 * 1024
"""Packed bytes that are unpacked at a time."""
GZIP_LEVEL = 6
ZSTD_LEVEL = 3

ZSTD_WINDOW_BYTES = 128 * 2**20
"""What unpacking may take of memory: as much as `zstd` itself takes unless it is told otherwise."""

_GZIP_MAGIC = b"\x1f\x8b"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPABLE = b"\x2a\x4d\x18"  # RFC 8878, 3.1.2: behind a byte from 50 to 5f


def packing_of(head: bytes) -> Packing | None:
    """How a file is packed that begins with these bytes; `None` if it isn't."""
    if head.startswith(_GZIP_MAGIC):
        return "gzip"
    is_skippable = head[1:4] == _ZSTD_SKIPPABLE and 0x50 <= head[0] <= 0x5F
    return "zstd" if head.startswith(_ZSTD_MAGIC) or is_skippable else None


def unpacked(stream: io.BufferedReader, packing: Packing, buffer_bytes: int) -> io.BufferedReader:
    """The content of a packed stream. Reading it raises `OSError` where the packed data is damaged or cut off; all that
    stands before is read first."""
    return io.BufferedReader(_Unpacked(stream, packing), buffer_bytes)


def packed(data: bytes, packing: Packing) -> bytes:
    """A whole member or frame with this content. gzip's has no time in it, so that equal content is equal bytes."""
    if packing == "gzip":
        return gzip.compress(data, GZIP_LEVEL, mtime=0)
    import zstandard

    return zstandard.ZstdCompressor(level=ZSTD_LEVEL, write_checksum=True).compress(data)


class WindowTooLarge(OSError):
    """Nothing is wrong with the packed data, but it refers to more that came before than is kept."""


@dataclass(frozen=True, slots=True)
class Whole:
    """The part of a packed file that was not cut off: where it ends (bytes), and the last byte of its content."""

    end: int = 0
    last: bytes = b""


def whole_part(source: BinaryIO, packing: Packing) -> Whole:
    """All members or frames that are whole. What is behind them, if there is anything, was cut off or is damaged.

    Args:
        source: read from where it stands, which counts as offset 0.

    Raises:
        WindowTooLarge: nobody can tell whether it is whole.
    """
    whole, rest = Whole(), b""
    while True:
        member, last, length = _new_member(packing), whole.last, 0
        while not member.eof:
            data = rest or source.read(READ_BYTES)
            if not data:
                return whole
            try:
                content = member.decompress(data)
            except _errors(packing) as error:
                if isinstance(reason := _wrong_with(packing, error), WindowTooLarge):
                    raise reason from error
                return whole
            rest = member.unused_data
            length += len(data) - len(rest)
            last = content[-1:] or last
        whole = Whole(whole.end + length, last)


class _Member(Protocol):
    """One member or frame as `zlib` and `zstandard` unpack it."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, /) -> bytes: ...


def _new_member(packing: Packing) -> _Member:
    if packing == "gzip":
        return zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    import zstandard

    member: _Member = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_BYTES).decompressobj()
    return member


def _wrong_with(packing: Packing, error: Exception) -> OSError:
    """Why data can't be unpacked."""
    if "requires too much memory" in str(error):
        most = f"{ZSTD_WINDOW_BYTES // 2**20} MiB of memory"
        return WindowTooLarge(f"its zstd data takes more than {most} to unpack: pack it with --long=27, or with less")
    return OSError(f"its {packing} data is damaged: {error}")


def _errors(packing: Packing) -> tuple[type[Exception], ...]:
    if packing == "gzip":
        return (zlib.error,)
    import zstandard

    return (zstandard.ZstdError,)


class _Unpacked(io.RawIOBase):
    """All members of a stream, one behind the other."""

    def __init__(self, stream: io.BufferedReader, packing: Packing) -> None:
        self._stream = stream
        self._packing: Packing = packing
        self._member: _Member | None = None  # the one that has begun
        self._packed = b""
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        while not self._ready and self._unpack():
            pass
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def close(self) -> None:
        self._stream.close()
        super().close()

    def _unpack(self) -> bool:
        """Take in some of the packed data; `False` at its end."""
        self._packed = self._packed or self._stream.read1(READ_BYTES)
        if self._member is None and self._packing == "gzip":
            self._packed = self._packed.lstrip(b"\x00")  # tapes and some tools pad with zeros
            if not self._packed and self._stream.peek(1):
                return True
        if not self._packed:
            if self._member is not None:
                raise OSError(f"its {self._packing} data is cut off: it ends in the middle")
            return False
        if self._member is None:
            self._member = _new_member(self._packing)
        try:
            self._ready = memoryview(self._member.decompress(self._packed))
        except _errors(self._packing) as error:
            raise _wrong_with(self._packing, error) from error
        self._packed = b""
        if self._member.eof:
            self._packed, self._member = self._member.unused_data, None
        return True
