"""The routes of OpenAI's Files API. Each key sees its own files only."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Literal, cast

from anyio.to_thread import run_sync
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from mlxq.serve.api import parameters
from mlxq.serve.api.errors import ApiError, not_found
from mlxq.serve.api.pages import shown_page
from mlxq.serve.api.service import Service, owner_of, service_of
from mlxq.serve.api.uploads import Upload, receive_upload
from mlxq.serve.store.records import FileRecord, Purpose, new_file_id

MAX_LISTED = 10_000
_EXPIRY = "expires_after"
_EXPIRY_FIELDS = {f"{_EXPIRY}[{name}]": name for name in ("anchor", "seconds")}
"""How a form says an object."""


async def create(request: Request) -> Response:
    """POST /v1/files"""
    service = service_of(request)
    target = service.disk.new_upload()
    try:
        upload = await receive_upload(request, target, field="file", max_bytes=service.limits.max_file_bytes)
        record = _record(upload, owner_of(request))
        await run_sync(service.disk.keep_upload, target, record.id)
    finally:
        with suppress(FileNotFoundError):  # it was kept
            target.unlink()
    await run_sync(service.database.add_file, record)
    return JSONResponse(record.shown())


def _record(upload: Upload, owner: str) -> FileRecord:
    parameters.refuse_unknown(upload.fields, {"purpose", *_EXPIRY_FIELDS})
    if parameters.text_of(upload.fields, "purpose") != "batch":
        raise ApiError("This server takes files of the purpose batch only.", param="purpose", code="invalid_value")
    expiry = {name: upload.fields[key] for key, name in _EXPIRY_FIELDS.items() if key in upload.fields}
    ttl_s = parameters.expiry_of(expiry or None, _EXPIRY)
    now = int(time.time())
    return FileRecord(
        id=new_file_id(),
        owner=owner,
        purpose="batch",
        filename=upload.filename,
        num_bytes=upload.num_bytes,
        created_at=now,
        expires_at=None if ttl_s is None else now + ttl_s,
    )


async def list_files(request: Request) -> Response:
    """GET /v1/files"""
    query = request.query_params
    parameters.refuse_unknown(dict(query), {"purpose", "limit", "order", "after"})
    order, purpose = query.get("order", "desc"), query.get("purpose")
    if order not in ("asc", "desc"):
        raise ApiError("order must be asc or desc.", param="order", code="invalid_value")
    page = await run_sync(
        lambda: service_of(request).database.files(
            owner_of(request),
            limit=parameters.limit_of(query, most=MAX_LISTED, default=MAX_LISTED),
            after=query.get("after"),
            order=cast('Literal["asc", "desc"]', order),
            purpose=cast("Purpose | None", purpose),
        )
    )
    return JSONResponse(shown_page(page))


async def retrieve(request: Request) -> Response:
    """GET /v1/files/{id}"""
    return JSONResponse((await _found(request)).shown())


async def content(request: Request) -> Response:
    """GET /v1/files/{id}/content, a block at a time"""
    record = await _found(request)
    path = service_of(request).disk.file(record.id)
    if not await run_sync(path.is_file):
        raise not_found("File", record.id)
    return FileResponse(path, media_type="application/octet-stream", filename=record.filename)


async def delete(request: Request) -> Response:
    """DELETE /v1/files/{id}; a batch that has begun keeps its input."""
    file_id, service = parameters.file_id_of(request), service_of(request)
    if not await run_sync(_remove, service, file_id, owner_of(request)):
        raise not_found("File", file_id)
    return JSONResponse({"id": file_id, "object": "file", "deleted": True})


def _remove(service: Service, file_id: str, owner: str) -> bool:
    was_there = service.database.remove_file(file_id, owner)
    if was_there:
        service.disk.remove_file(file_id)
    return was_there


async def _found(request: Request) -> FileRecord:
    file_id, now = parameters.file_id_of(request), time.time()
    record = await run_sync(service_of(request).database.file, file_id, owner_of(request))
    if record is None or (record.expires_at is not None and record.expires_at <= now):
        raise not_found("File", file_id)
    return record


ROUTES = [
    Route("/v1/files", create, methods=["POST"]),
    Route("/v1/files", list_files, methods=["GET"]),
    Route("/v1/files/{file_id}", retrieve, methods=["GET"]),
    Route("/v1/files/{file_id}", delete, methods=["DELETE"]),
    Route("/v1/files/{file_id}/content", content, methods=["GET"]),
]
