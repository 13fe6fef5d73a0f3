"""GET /metrics: the files and batches of all keys as numbers, the queue, and what clients were answered.

Asks for a key where there are any, as Prometheus can send one. The records are the same for every process that shares
them: take the maximum over processes, and the sum of requests.
"""

from __future__ import annotations

from anyio.to_thread import run_sync
from prometheus_client.exposition import choose_encoder
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlxq.metrics.exposition import Table, registry_of
from mlxq.metrics.figures import Figures, Snapshot
from mlxq.metrics.queue_figures import QueueFigures
from mlxq.metrics.queue_table import QUEUE_METRICS
from mlxq.metrics.serve_table import FILES, HTTP_REQUESTS, LIVE_REQUESTS, OPEN_BATCHES, OPEN_REQUESTS, SERVE_METRICS
from mlxq.serve.api.service import Service
from mlxq.serve.store.records import ENDED, STATUSES

UNANSWERED = "none"
"""The status of a request that was given up before its answer began."""


class Metrics:
    """What is served to Prometheus. `counted` is the middleware that counts answers."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._answers = Figures()  # belongs to the event loop; threads get what was seen of it
        self._seen = Snapshot()
        queue = QueueFigures(service.client.redis, [service.client.queue])
        self._registry = registry_of(Table(SERVE_METRICS, self._snapshot), Table(QUEUE_METRICS, queue.snapshot))

    async def serve(self, request: Request) -> Response:
        """The route."""
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        self._seen = self._answers.snapshot()
        text = await run_sync(encode, self._registry)
        return Response(text, headers={"Content-Type": content_type})

    def counted(self, app: ASGIApp) -> ASGIApp:
        """The application, with its answers counted."""

        async def count(scope: Scope, receive: Receive, send: Send) -> None:
            status = UNANSWERED

            async def note(message: Message) -> None:
                nonlocal status
                if message["type"] == "http.response.start":
                    status = str(message["status"])
                await send(message)

            try:
                await app(scope, receive, note)
            finally:
                if scope["type"] == "http":
                    self._answers.add(HTTP_REQUESTS, 1, status)

        return count

    def _snapshot(self) -> Snapshot:
        """Asked in a thread."""
        figures = Figures()
        records = self._service.database.open_records()
        for status in STATUSES:
            if status not in ENDED:
                figures.set(OPEN_BATCHES, sum(record.status == status for record in records), status)
        counts = [record.counts for record in records if record.status == "in_progress"]
        figures.set(OPEN_REQUESTS, sum(count.total - count.completed - count.failed for count in counts))
        figures.set(LIVE_REQUESTS, self._service.desk.num_waiting)
        figures.set(FILES, self._service.database.num_files())
        return figures.snapshot().beside(self._seen)
