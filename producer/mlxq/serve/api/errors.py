"""Errors in the shape in which OpenAI's API has them. Knows no routes."""

from __future__ import annotations

import logging
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from mlxq.errors import InputFileError, QueueUnavailable

RETRY_AFTER_S = 5
"""For a client that comes while the disk is full, or Redis away."""

logger = logging.getLogger("mlxq.serve")


class ApiError(Exception):
    """A request that can't be answered as it is.

    Args:
        message: what is wrong and what would be right, in one sentence.
        param: the field at fault.
        code: a short stable word for programs.
        retry_after_s: when another try may go better.
    """

    def __init__(
        self,
        message: str,
        *,
        status_code: int = 400,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status_code = status_code
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s

    def body(self) -> dict[str, Any]:
        """What is said in OpenAI's shape."""
        kind = "server_error" if self.status_code >= 500 else "invalid_request_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """The answer in OpenAI's shape; who is answered so is sent away from the connection, whatever is still to come
        on it."""
        headers = {"WWW-Authenticate": "Bearer"} if self.status_code == 401 else {}
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(self.retry_after_s)
        return JSONResponse(self.body(), status_code=self.status_code, headers=headers)


def not_found(kind: str, object_id: str) -> ApiError:
    """There is no such thing, or it is another key's, which is not told apart."""
    return ApiError(f"No such {kind} object: {object_id}", status_code=404, param="id", code="not_found")


def unavailable(message: str) -> ApiError:
    """Something is in the way that passes; clients try again by themselves."""
    return ApiError(message, status_code=503, code="unavailable", retry_after_s=RETRY_AFTER_S)


async def on_api_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response()


async def on_http_error(_request: Request, error: Exception) -> Response:
    """What Starlette itself refuses: a path or a method that isn't there."""
    assert isinstance(error, HTTPException)
    message = {404: "There is no such path.", 405: "This path has no such method."}.get(error.status_code, error.detail)
    return ApiError(message, status_code=error.status_code, code="unknown_url").response()


async def on_passing_error(_request: Request, error: Exception) -> Response:
    """A full disk, a Redis that is away: our words about it may have our paths in them, and stay here."""
    logger.error("%s", error)
    what = "its queue" if isinstance(error, QueueUnavailable) else "its disk"
    return unavailable(f"The server can't use {what} right now; try again later.").response()


async def on_hang_up(_request: Request, _error: Exception) -> Response:
    """The client is gone in the middle of its request: nobody hears this."""
    return ApiError("The body ended too early.", code="client_disconnect").response()


async def on_bug(_request: Request, error: Exception) -> Response:
    """Anything else. Starlette raises it again behind the answer, for the log."""
    return ApiError("The server failed at this request.", status_code=500, code="internal_error").response()


HANDLERS = {
    ApiError: on_api_error,
    HTTPException: on_http_error,
    ClientDisconnect: on_hang_up,
    InputFileError: on_passing_error,
    QueueUnavailable: on_passing_error,
    Exception: on_bug,
}
