"""The application: the routes, and what stands before them. Knows no server and no socket."""

from __future__ import annotations

from anyio.to_thread import run_sync
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from mlxq.errors import QueueError
from mlxq.serve.api import batches, files, live
from mlxq.serve.api.access import Access, KeyRing
from mlxq.serve.api.errors import HANDLERS
from mlxq.serve.api.metrics import Metrics
from mlxq.serve.api.service import Service, service_of
from mlxq.serve.api.timeouts import Timeouts


async def health(request: Request) -> Response:
    """GET /health: whether files and batches are taken, and whether somebody answers them."""
    try:
        num_workers = await run_sync(service_of(request).client.num_workers)
    except QueueError:
        return JSONResponse({"status": "no redis", "workers": None}, status_code=503)
    return JSONResponse({"status": "ok", "workers": num_workers})


def build_app(service: Service, keys: KeyRing | None) -> Starlette:
    """The application.

    Args:
        keys: those that are asked for; `None` lets everybody in.
    """
    metrics = Metrics(service)
    own = [Route("/health", health, methods=["GET"]), Route("/metrics", metrics.serve, methods=["GET"])]
    app = Starlette(
        routes=[*own, *files.ROUTES, *batches.ROUTES, *live.ROUTES],
        middleware=[Middleware(metrics.counted), Middleware(Timeouts), Middleware(Access, keys=keys)],
        exception_handlers=HANDLERS,
    )
    app.state.service = service
    return app
