"""`mlxq serve`: OpenAI's Batch API and live requests, over a queue that others work off or, with a worker, all in one.

Puts together what others do: a private Redis and a worker process (if asked for), and `mlxq.serve.server`. Never
imports mlx, and without a worker nothing that needs it.
"""

from __future__ import annotations

import ipaddress
import os
import resource
import time
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from mlxq.cli import options
from mlxq.cli.options.reading import allow_unknown_params
from mlxq.cli.signals import StopRequest
from mlxq.cli.terminal import tell
from mlxq.errors import QueueNotReady, QueueUnavailable, WorkerFailed
from mlxq.printable import log_printably
from mlxq.queue import durability
from mlxq.queue.client import Client
from mlxq.queue.connect import address_of
from mlxq.serve.work.batch_run import DEFAULT_MAX_INFLIGHT, Rules
from mlxq_worker.commands.size import Size
from mlxq_worker.commands.worker_options import WORKER_OPTIONS, worker_command, worker_option
from mlxq_worker.supervision.dead_workers import DeadWorkers
from mlxq_worker.supervision.redis_server import private_redis
from mlxq_worker.supervision.worker_process import WorkerProcess

if TYPE_CHECKING:
    from mlxq.serve.api.access import KeyRing

DEFAULT_DATA = Path("~/.mlxq/serve")
OPEN_FILES = 8192
LOOK_S = 0.2
REDIS_LOOK_S = 5.0
WORKER_LEASE_S = 30
"""As for the worker of `mlxq run`: a service that is killed leaves its jobs behind for this long."""


@click.command(context_settings=options.SETTINGS)
@click.option("--host", default="127.0.0.1", help="Address to listen on; any but this machine's own asks for keys.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, help="Port to listen on; 0 takes a free one.")
@options.url
@options.queue
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    default=DEFAULT_DATA,
    help="Directory of files and batches.",
)
@click.option(
    "--api-keys",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="File with a name and an API key on each line; each name sees its own files and batches only.",
)
@click.option("--no-auth", is_flag=True, help="Let everybody in who can reach --host.")
@click.option("--max-file-bytes", type=Size(), default="2GiB", help="Largest file that is taken.")
@click.option("--max-requests", type=click.IntRange(1), default=500_000, help="Most requests of one batch.")
@click.option(
    "--max-inflight",
    type=click.IntRange(1),
    default=DEFAULT_MAX_INFLIGHT,
    help="Requests of one batch queued at a time.",
)
@click.option(
    "--max-live",
    type=click.IntRange(1),
    default=256,
    help="Live requests of one key that are answered at a time.",
)
@click.option(
    "--live-wait",
    type=click.FloatRange(1),
    default=300.0,
    metavar="SECONDS",
    help="How long a live request waits for a worker to take it.",
)
@click.option(
    "--batch-lease",
    type=click.FloatRange(1),
    default=15.0,
    metavar="SECONDS",
    help="How long the batches of a process that was killed wait for another.",
)
@allow_unknown_params
@click.option("--with-worker", is_flag=True, help="Start a worker, too, and without --url a Redis.")
@worker_option("model", help="With --with-worker: directory or Hub repository of the model.  [default: demo]")
@worker_option("max_num_seqs")
@worker_option("default_max_tokens")
@worker_option("memory_limit_bytes")
@worker_option("wired_limit")
@worker_option("tool_call_parser")
@worker_option("reasoning_parser")
@click.option("-v", "--verbose", is_flag=True, help="Show what the worker writes.")
@click.pass_context
def serve(
    ctx: click.Context,
    /,
    host: str,
    port: int,
    url: str | None,
    queue: str,
    data: Path,
    api_keys: Path | None,
    no_auth: bool,
    max_file_bytes: int,
    max_requests: int,
    max_inflight: int,
    max_live: int,
    live_wait: float,
    batch_lease: float,
    allow_unknown_params: bool,
    with_worker: bool,
    verbose: bool,
    **worker_options: Any,
) -> None:
    """Offer OpenAI's Files and Batches API, chats and completions: point a client's base_url here.

    All are answered by the workers of the queue; with --with-worker by one of its own. What has not ended goes on
    when the same command is run again, also after a kill. Ends on SIGTERM or SIGINT.

    Example: mlxq serve --with-worker --model demo --data served
    """
    from mlxq.serve.api.service import Limits
    from mlxq.serve.live.desk import WaitLimits
    from mlxq.serve.server import Settings, serving

    _allow_open_files()
    keys = _keys(host, api_keys, no_auth)
    if not with_worker:
        _refuse_worker_options(ctx, worker_options)
    log_printably("mlxq.serve", "uvicorn.error")
    with ExitStack() as stack:
        stop = stack.enter_context(StopRequest())
        is_shared = bool(url) or not with_worker
        if not is_shared:
            url = stack.enter_context(private_redis()).url
        client = options.open_client(url, queue)
        stack.callback(client.close)
        client.num_workers()  # is it there?
        if is_shared:
            _say_where(client)
        worker = stack.enter_context(_worker(client, url, worker_options, verbose)) if with_worker else None
        settings = Settings(
            data=data.expanduser(),
            host=host,
            port=port,
            keys=keys,
            alone=not is_shared,
            lease_s=batch_lease,
            rules=Rules(max_inflight=max_inflight, max_requests=max_requests, allow_unknown=allow_unknown_params),
            limits=Limits(max_file_bytes=max_file_bytes, max_live=max_live),
            wait_limits=WaitLimits(in_line_s=live_wait),
        )
        server = stack.enter_context(serving(client, settings, tell))
        tell(f"Serving {server.url}/v1 from {settings.data}.")
        look_at_redis_at = 0.0
        while not stop:
            if worker is not None:
                worker.check()
            if not server.is_alive:
                raise WorkerFailed("the HTTP server has ended; its log says why")
            if not is_shared and time.monotonic() >= look_at_redis_at:
                look_at_redis_at = time.monotonic() + REDIS_LOOK_S
                _check_private(client)
            time.sleep(LOOK_S)


def _refuse_worker_options(ctx: click.Context, names: Iterable[str]) -> None:
    """What would be ignored is refused; variables may be meant for workers elsewhere."""
    for name in names:
        if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"{WORKER_OPTIONS[name].flag} is for a worker: give --with-worker, too")


def _keys(host: str, path: Path | None, no_auth: bool) -> KeyRing | None:
    from mlxq.serve.api.access import read_keys

    if path is not None and no_auth:
        raise click.UsageError("--api-keys and --no-auth contradict each other")
    if path is not None:
        if path.stat().st_mode & 0o077:
            tell(f"Warning: others on this machine may read {path}: chmod 600")
        return read_keys(path)
    if not (no_auth or is_loopback(host)):
        raise click.UsageError(f"others can reach {host}: give --api-keys, or --no-auth to let everybody in")
    return None


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # another name, which may be anywhere
        return False


def _allow_open_files() -> None:
    """A batch that is worked on has several files open, each connection is one, and macOS allows 256 by default."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _say_where(client: Client) -> None:
    tell(f"Using queue {client.queue} in the Redis at {address_of(client.redis)}.")
    try:
        for finding in durability.warnings(client.redis):
            tell(f"Warning: {finding}")
    except QueueNotReady:  # it is waited for, and that is said
        return


def _worker(client: Client, url: str | None, worker_options: dict[str, Any], verbose: bool) -> WorkerProcess:
    worker_options = {**worker_options, "model": worker_options["model"] or "demo"}
    variables = {"MLXQ_BURST": "0", "MLXQ_LEASE_S": os.environ.get("MLXQ_LEASE_S", str(WORKER_LEASE_S))}
    return WorkerProcess(
        worker_command(client.queue, **worker_options),
        variables | ({"MLXQ_URL": url} if url else {}),
        verbose=verbose,
        tell=tell,
        on_end=DeadWorkers(client.redis, [client.queue]).release,
    )


def _check_private(client: Client) -> None:
    """End the service once the Redis that it has started is gone; the next one goes on from the data directory."""
    try:
        client.num_workers()
    except QueueNotReady:
        return
    except QueueUnavailable as error:
        raise QueueUnavailable(f"The Redis that this service had started is gone ({error}); start it again") from error
