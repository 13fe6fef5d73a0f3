"""The routes of OpenAI's Batches API. Each key sees its own batches only; what becomes of them is work/'s business."""

from __future__ import annotations

import time
from typing import Any, get_args

from anyio.to_thread import run_sync
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from mlxq.contract import Endpoint
from mlxq.serve.api import parameters
from mlxq.serve.api.errors import ApiError, not_found
from mlxq.serve.api.pages import shown_page
from mlxq.serve.api.service import Service, owner_of, service_of
from mlxq.serve.store.records import ENDED, BatchRecord, new_batch_id, new_file_id
from mlxq.serve.work.batch_run import cancelling

MAX_LISTED, DEFAULT_LISTED = 100, 20
ENDPOINTS = get_args(Endpoint)
_FIELDS = ("input_file_id", "endpoint", "completion_window", "metadata", "output_expires_after")


async def create(request: Request) -> Response:
    """POST /v1/batches"""
    service = service_of(request)
    body = await parameters.json_body(request, _FIELDS)
    record = await run_sync(_create, service, owner_of(request), body)
    service.wake()
    return JSONResponse(record.shown())


def _create(service: Service, owner: str, body: dict[str, Any]) -> BatchRecord:
    file_id, endpoint = parameters.text_of(body, "input_file_id"), parameters.text_of(body, "endpoint")
    if endpoint not in ENDPOINTS:
        message = f"endpoint must be one of {', '.join(ENDPOINTS)}."
        raise ApiError(message, param="endpoint", code="invalid_value")
    window = parameters.text_of(body, "completion_window")
    window_s = parameters.window_of(window)
    metadata = parameters.metadata_of(body.get("metadata"))
    output_ttl_s = parameters.expiry_of(body.get("output_expires_after"), "output_expires_after")
    file = service.database.file(file_id, owner)
    now = int(time.time())
    if file is None or (file.expires_at is not None and file.expires_at <= now):
        raise not_found("File", file_id)
    if file.purpose != "batch":
        message = f"The file {file_id} has the purpose {file.purpose}; a batch needs one of the purpose batch."
        raise ApiError(message, param="input_file_id", code="invalid_value")
    if service.database.num_open_batches(owner) >= service.limits.max_open_batches:
        message = f"This key has {service.limits.max_open_batches} batches that have not ended; wait for some."
        raise ApiError(message, status_code=429, code="too_many_batches")
    record = BatchRecord(
        id=new_batch_id(),
        owner=owner,
        endpoint=endpoint,
        input_file_id=file_id,
        input_name=file.filename,
        completion_window=window,
        created_at=now,
        expires_at=now + window_s,
        output_id=new_file_id(),
        error_id=new_file_id(),
        metadata=metadata,
        output_ttl_s=output_ttl_s,
    )
    if not service.disk.begin_batch(record.id, file_id):
        raise not_found("File", file_id)
    service.database.add_batch(record)
    return record


async def list_batches(request: Request) -> Response:
    """GET /v1/batches"""
    query = request.query_params
    parameters.refuse_unknown(dict(query), {"limit", "after"})
    limit = parameters.limit_of(query, most=MAX_LISTED, default=DEFAULT_LISTED)
    database = service_of(request).database
    page = await run_sync(lambda: database.batches(owner_of(request), limit=limit, after=query.get("after")))
    return JSONResponse(shown_page(page))


async def retrieve(request: Request) -> Response:
    """GET /v1/batches/{id}"""
    return JSONResponse((await _found(request)).shown())


async def cancel(request: Request) -> Response:
    """POST /v1/batches/{id}/cancel"""
    service, before = service_of(request), await _found(request)
    if before.status in ENDED:
        message = f"Cannot cancel a batch with status '{before.status}'."
        raise ApiError(message, status_code=409, param="batch_id", code="invalid_status")
    now = int(time.time())
    record = await run_sync(service.database.change_batch, before.id, lambda batch: cancelling(batch, now))
    service.wake()
    return JSONResponse(record.shown())


async def _found(request: Request) -> BatchRecord:
    batch_id = parameters.batch_id_of(request)
    record = await run_sync(service_of(request).database.batch, batch_id, owner_of(request))
    if record is None:
        raise not_found("Batch", batch_id)
    return record


ROUTES = [
    Route("/v1/batches", create, methods=["POST"]),
    Route("/v1/batches", list_batches, methods=["GET"]),
    Route("/v1/batches/{batch_id}", retrieve, methods=["GET"]),
    Route("/v1/batches/{batch_id}/cancel", cancel, methods=["POST"]),
]
