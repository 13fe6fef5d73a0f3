"""Reads a form with a file in it as it comes, the file straight onto the disk: memory doesn't grow with it.

Parses with python-multipart; Starlette's own form parser would put the whole file into the system's folder for
temporary files first, which may be memory. Knows nothing of what is uploaded.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from anyio.to_thread import run_sync
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from mlxq.files.paths import file_errors
from mlxq.serve.api.errors import ApiError

BLOCK_BYTES = 2**20
MAX_FIELDS = 20
MAX_FIELD_BYTES = 1024
MAX_HEADER_BYTES = 4096
MAX_NAME_CHARS = 255
OVERHEAD_BYTES = 64 * 1024
"""What a form may have beside its file."""


@dataclass(frozen=True, slots=True)
class Upload:
    """A form that has come whole: its fields, and of the file what it was called and how long it is."""

    fields: dict[str, str]
    filename: str
    num_bytes: int


async def receive_upload(request: Request, target: Path, *, field: str, max_bytes: int) -> Upload:
    """Read a form whose file goes to `target`; whatever is there after an error is the caller's to remove.

    Args:
        field: what the file's field is called.
        max_bytes: of the file.

    Raises:
        ApiError: it is no such form, or the file is too long.
        InputFileError: the disk doesn't take it.
    """
    if int(request.headers.get("content-length") or 0) > max_bytes + OVERHEAD_BYTES:
        raise too_large(max_bytes)
    form = _Form(field, max_bytes)
    parser = MultipartParser(_boundary(request), form.callbacks())  # type: ignore[arg-type]
    with file_errors("the uploaded file", "store"), target.open("xb", buffering=0) as file:
        target.chmod(0o600)
        try:
            async for chunk in request.stream():
                parser.write(chunk)
                if len(form.pending) >= BLOCK_BYTES:
                    await run_sync(_write, file, form.take())
            parser.finalize()
        except FormParserError as error:
            raise ApiError("The body is not a whole multipart form.", code="invalid_form") from error
        await run_sync(_write, file, form.take())
    return form.result()


def too_large(max_bytes: int) -> ApiError:
    message = f"The file is longer than {max_bytes} bytes, which is the most that this server takes."
    return ApiError(message, status_code=413, param="file", code="file_too_large")


def _boundary(request: Request) -> bytes:
    kind, options = parse_options_header(request.headers.get("content-type"))
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise ApiError("Send a multipart form with the fields purpose and file.", code="invalid_form")
    return options[b"boundary"]


def _write(file: BinaryIO, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


@dataclass(slots=True)
class _Part:
    """One field of the form, while it comes."""

    disposition: bytes = b""
    name: str | None = None
    is_file: bool = False
    value: bytearray = field(default_factory=bytearray)


class _Form:
    """Takes what the parser finds: `pending` has the bytes of the file that aren't written yet."""

    def __init__(self, file_field: str, max_bytes: int) -> None:
        self.pending = bytearray()
        self._file_field = file_field
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._filename: str | None = None
        self._fields: dict[str, str] = {}
        self._part = _Part()
        self._header_name = bytearray()
        self._header_value = bytearray()

    def callbacks(self) -> dict[str, object]:
        return {
            "on_part_begin": self._begin,
            "on_part_data": self._data,
            "on_part_end": self._end,
            "on_header_field": lambda data, start, end: self._header(self._header_name, data[start:end]),
            "on_header_value": lambda data, start, end: self._header(self._header_value, data[start:end]),
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
        }

    def take(self) -> bytes:
        data = bytes(self.pending)
        self.pending.clear()
        return data

    def result(self) -> Upload:
        if self._filename is None:
            message = f"The form has no file in a field called {self._file_field}."
            raise ApiError(message, param=self._file_field, code="missing_required_parameter")
        return Upload(self._fields, self._filename, self._num_bytes)

    def _begin(self) -> None:
        if len(self._fields) >= MAX_FIELDS:
            raise ApiError(f"The form has more than {MAX_FIELDS} fields.", code="invalid_form")
        self._part = _Part()

    def _header(self, part: bytearray, data: bytes) -> None:
        part += data
        if len(part) > MAX_HEADER_BYTES:
            raise ApiError("The form has too long a header.", code="invalid_form")

    def _header_end(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._part.disposition = bytes(self._header_value)
        self._header_name.clear()
        self._header_value.clear()

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._part.disposition)
        self._part.name = options.get(b"name", b"").decode(errors="replace")
        if b"filename" in options and self._part.name == self._file_field:
            if self._filename is not None:
                raise ApiError("The form has more than one file.", param=self._file_field, code="invalid_form")
            self._part.is_file = True
            self._filename = _base_name(options[b"filename"].decode(errors="replace"))

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._part.is_file:
            self._num_bytes += end - start
            if self._num_bytes > self._max_bytes:
                raise too_large(self._max_bytes)
            self.pending += data[start:end]
            return
        self._part.value += data[start:end]
        if len(self._part.value) > MAX_FIELD_BYTES:
            raise ApiError(f"The field {self._part.name} is too long.", param=self._part.name, code="invalid_form")

    def _end(self) -> None:
        if not self._part.is_file:
            self._fields[self._part.name or ""] = self._part.value.decode(errors="replace")


def _base_name(filename: str) -> str:
    """What a file is called, for people and in the list: never a path, and never a name on our disk."""
    name = filename.replace("\\", "/").rpartition("/")[2]
    return "".join(char for char in name if char.isprintable())[:MAX_NAME_CHARS] or "upload.jsonl"
