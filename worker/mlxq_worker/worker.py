"""The worker as RQ knows it, for `mlxq worker` and for stock ``rq worker -w mlxq_worker.BatchWorker``.

The process's main thread loads the model and decodes; a second thread owns Redis. RQ's own loop, which forks for
every job, is replaced; what makes RQ's tools see a worker (birth, heartbeat, executions, death) is kept. Options
of RQ that mean nothing here are refused; a scheduler, which `rq worker-pool` always asks for, is not.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from queue import Empty
from types import FrameType
from typing import Any

import click
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from rq.defaults import DEFAULT_LOGGING_DATE_FORMAT, DEFAULT_LOGGING_FORMAT, DEFAULT_RESULT_TTL
from rq.logutils import setup_loghandlers
from rq.serializers import JSONSerializer
from rq.worker import BaseWorker, DequeueStrategy

from mlxq import keys
from mlxq.errors import ConfigError, MlxqError
from mlxq.logs import fields
from mlxq.passing import is_refusal
from mlxq.printable import log_printably
from mlxq.queue.connect import queue_errors, refuse_cluster, takes_bytes
from mlxq_worker import exits
from mlxq_worker.backend import Backend, load_backend
from mlxq_worker.config import WorkerConfig
from mlxq_worker.decoding.loop import DecodeLoop
from mlxq_worker.jobs.consumer import Consumer
from mlxq_worker.jobs.io_thread import IoThread
from mlxq_worker.jobs.mending import Mending
from mlxq_worker.jobs.presence import Presence
from mlxq_worker.jobs.store import JobStore
from mlxq_worker.messages import Channel, Ready, Signalled
from mlxq_worker.metrics.decode_figures import DecodeFigures
from mlxq_worker.metrics.job_figures import JobFigures
from mlxq_worker.processes import ParentWatch
from mlxq_worker.startup import collecting_later
from mlxq_worker.step_watch import StepWatch

logger = logging.getLogger("rq.worker")


class BatchWorker(BaseWorker):
    """Claims many jobs at once and decodes them in one batch.

    Takes RQ's constructor arguments and reads ``MLXQ_*`` from the environment when it starts to work, or is given
    a `config`. A subclass may load something else than an MLX model by overriding `load_backend`.
    """

    idle_wait_s = 0.2
    """How long the decode thread waits for a message when it has nothing to decode. A signal wakes it, unless it
    comes in the moment before the wait."""

    birth_pause_s = 2.0
    """Between two tries to register in a Redis that can't do that now."""

    birth_tries = 4
    """To register: a connection may be cut at any time."""

    birth_retry_s = 0.1
    """Between two of them."""

    def __init__(self, *args: Any, config: WorkerConfig | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._given_config = config
        self._channel = Channel.open()
        log_printably(logger.name)
        self.exit_code = exits.DONE
        """What the process should end with, for whoever looks after it; RQ's own command ends with 0."""
        self.has_had_jobs = False
        """Whether it has claimed any, as of its end."""

    @property
    def connection_timeout(self) -> int:
        """Seconds that a Redis command may take. RQ's own allows for its long blocking reads; we have none."""
        return 10

    def load_backend(self, config: WorkerConfig) -> Backend:
        """Load the model, on the thread that will decode."""
        return load_backend(config)

    def work(
        self,
        burst: bool = False,
        logging_level: str | None = None,
        date_format: str = DEFAULT_LOGGING_DATE_FORMAT,
        log_format: str = DEFAULT_LOGGING_FORMAT,
        max_jobs: int | None = None,
        max_idle_time: int | None = None,
        with_scheduler: bool = False,
        dequeue_strategy: DequeueStrategy = DequeueStrategy.DEFAULT,
    ) -> bool:
        """Work until stopped, or in burst mode until the queues are empty. Returns whether a job was ended.

        Raises:
            ConfigError: an option or a variable can't be honoured.
            ModelError: the model can't be loaded.
            SystemExit: either of them, or what is wrong with Redis, where RQ's own command runs it: that would log a
                traceback.
        """
        with _clear_errors(self.connection) if _is_run_by_rq() else nullcontext():
            return self._work(
                burst, logging_level, date_format, log_format, max_jobs, max_idle_time, with_scheduler, dequeue_strategy
            )

    def _work(
        self,
        burst: bool,
        logging_level: str | None,
        date_format: str,
        log_format: str,
        max_jobs: int | None,
        max_idle_time: int | None,
        with_scheduler: bool,
        dequeue_strategy: DequeueStrategy,
    ) -> bool:
        self._refuse(
            {
                "--max-idle-time": max_idle_time is not None,
                "--dequeue-strategy": dequeue_strategy != DequeueStrategy.DEFAULT,
                "--exception-handler": bool(self._exc_handlers),
                "--disable-default-exception-handler": self.disable_default_exception_handler,
            }
        )
        config = self._configured(burst, max_jobs)
        setup_loghandlers(logging_level, date_format, log_format)
        if with_scheduler:  # `rq worker-pool` always asks for it
            logger.warning("Scheduled jobs wait for an RQScheduler of their own: this worker doesn't run one")
        self._handle_signals(self.request_stop)
        # Before anybody can see us and end our parent: later it couldn't be told from one that was never ours.
        parent = ParentWatch(config.parent_pid) if config.parent_pid is not None else None
        if not self._be_born(parent):
            return False
        try:
            return self._serve(config, parent)
        finally:
            self._die()

    def register_birth(self) -> None:
        """RQ's, once what strangers have put under the keys that it writes has made room."""
        Mending(JobStore(self.connection, self.name, self.queue_names())).mend()
        try:
            super().register_birth()  # type: ignore[no-untyped-call]
        except ValueError:  # our name is taken: by ourselves, if an earlier try was done and only its reply was lost
            if not self._is_registered():
                raise

    def request_stop(self, signum: int, frame: FrameType | None) -> None:
        """The first call stops in peace, the next one at once."""
        self._channel.to_decode.put(Signalled())

    def _on_signal_while_loading(self, signum: int, frame: FrameType | None) -> None:
        # Nobody looks at it until the model is loaded, which may take a long download. The next one may end the
        # process as if we had never asked for it: no job is claimed yet, and our entry in Redis expires.
        self.request_stop(signum, frame)
        logger.warning("Stopping once the model is loaded; another signal ends the process at once")
        self._handle_signals(signal.SIG_DFL)

    def _be_born(self, parent: ParentWatch | None) -> bool:
        """Write our entry as soon as Redis can take it. `False` if we were asked to stop, or left alone, before that.

        Raises:
            RedisError: Redis isn't there.
        """
        tries_left = self.birth_tries
        while True:
            try:
                self.register_birth()
            except RedisError as error:
                tries_left -= 1
                if isinstance(error, RedisConnectionError) and tries_left:  # it was cut, or Redis is away
                    pause_s = self.birth_retry_s
                elif is_refusal(error):
                    pause_s = self.birth_pause_s
                    logger.warning("Worker %s waits for Redis, which can't do this now: %s", self.name, error)
                else:
                    raise
            else:
                return True
            with suppress(Empty):
                self._channel.to_decode.get(timeout=pause_s)
                return False
            if parent is not None and parent.is_gone():
                return False

    def _is_registered(self) -> bool:
        """Whether the entry under our name is one that we have written."""
        return self.birth_date is not None and (
            self.connection.hget(self.key, "birth") == self.serialize()["birth"].encode()
        )

    def _die(self) -> None:
        try:
            self.register_death()  # type: ignore[no-untyped-call]
        except RedisError as error:
            logger.warning("Worker %s could not sign off, its entry will expire: %s", self.name, error)

    def _handle_signals(self, handler: Callable[[int, FrameType | None], None] | signal.Handlers) -> None:
        if threading.current_thread() is threading.main_thread():  # Python allows it nowhere else
            for signum in (signal.SIGINT, signal.SIGTERM):
                signal.signal(signum, handler)

    def _refuse(self, options: Mapping[str, bool]) -> None:
        if given := [name for name, is_given in options.items() if is_given]:
            raise ConfigError(f"mlxq workers can't honour {', '.join(given)} of `rq worker`; leave it out")
        refuse_cluster(takes_bytes(self.connection))
        if self.serializer is not JSONSerializer:
            raise ConfigError("mlxq jobs are JSON: run `rq worker` with --serializer json")

    def _configured(self, burst: bool, max_jobs: int | None) -> WorkerConfig:
        config = self._given_config or WorkerConfig.from_env(os.environ)
        if config.metrics_address is not None and config.parent_pid is None:
            raise ConfigError("metrics are served by `mlxq worker`: leave MLXQ_METRICS_PORT out under `rq worker`")
        return replace(
            config,
            burst=burst or config.burst,
            max_jobs=max_jobs or config.max_jobs,
            queues=tuple(self.queue_names()),
        )

    def _serve(self, config: WorkerConfig, parent: ParentWatch | None) -> bool:
        figures = JobFigures()
        presence = Presence(self)
        consumer = Consumer(self._store(config), presence, self._channel, config, figures)
        watch = StepWatch(config.step_timeout_s)
        io_thread = IoThread(
            consumer,
            self._channel,
            watch,
            parent=parent,
            figures=figures,
            reports_fd=config.reports_fd,
            lease_s=config.lease_s,
        )
        io_thread.start()
        try:
            self._decode(config, watch)
        finally:
            self.has_had_jobs = consumer.has_had_jobs
            io_thread.close()
        done = consumer.outbox
        logger.info(
            "Worker %s ends: %d jobs ended, %d came too late",
            self.name,
            done.num_ended,
            done.num_late,
            extra=fields(num_ended=done.num_ended, num_late=done.num_late),
        )
        return done.num_ended > 0

    def _store(self, config: WorkerConfig) -> JobStore:
        # RQ's default of 500 s would lose the results of a long run before anybody has read them.
        is_default = self.default_result_ttl == DEFAULT_RESULT_TTL
        return JobStore(
            self.connection,
            self.name,
            config.queues,
            lease_s=config.lease_s,
            result_ttl_s=keys.RESULT_TTL_S if is_default else self.default_result_ttl,
        )

    def _decode(self, config: WorkerConfig, watch: StepWatch) -> None:
        began = time.monotonic()
        backend = self._load(config)
        loaded_s = time.monotonic() - began
        figures = None
        if config.reports_fd is not None:
            figures = DecodeFigures(backend.max_num_seqs)
            figures.loaded(loaded_s)
        loop = DecodeLoop(
            backend.new_engine,
            self._channel,
            backend.max_num_seqs,
            watch,
            memory=backend.memory,
            max_generated_tokens=config.max_generated_tokens,
            grace_s=config.grace_s,
            figures=figures,
        )
        if config.ready_fd is not None:  # before a job can be claimed: until it is said, ending us costs none
            _say_ready(config.ready_fd, backend.max_num_seqs)
        self._channel.to_io.put(Ready(backend.preparer, backend.max_num_seqs, backend.model_name))
        logger.info(
            "Worker %s: %s, queues %s, up to %d rows",
            self.name,
            backend.description,
            ", ".join(config.queues),
            backend.max_num_seqs,
            extra=fields(model=config.model, queues=list(config.queues), seconds=round(loaded_s, 1)),
        )
        try:
            self._turn_until_over(loop)
        finally:
            loop.close()
            backend.close()
        self.exit_code = loop.lifecycle.exit_code

    def _load(self, config: WorkerConfig) -> Backend:
        self._handle_signals(self._on_signal_while_loading)
        try:
            with collecting_later():
                return self.load_backend(config)
        finally:
            self._handle_signals(self.request_stop)  # jobs are claimed from now on: no more sudden ends

    def _turn_until_over(self, loop: DecodeLoop) -> None:
        while True:
            loop.receive(self.idle_wait_s)
            now = time.monotonic()  # not before the wait: rows that it brings count their seconds from here
            if loop.is_over(now):
                return
            loop.turn(now)


def _is_run_by_rq() -> bool:
    """Whether this is ``rq worker``, or a worker of its pool."""
    context = click.get_current_context(silent=True)
    program = context.find_root().command.callback if context is not None else None
    return program is not None and program.__module__.startswith("rq.")


@contextmanager
def _clear_errors(connection: Redis) -> Iterator[None]:
    """What mlxq raises on purpose is a line of the log, and the process's exit code."""
    try:
        with queue_errors(connection):
            yield
    except MlxqError as error:
        logger.error("%s", error)
        raise SystemExit(error.exit_code) from error


def _say_ready(fd: int, max_num_seqs: int) -> None:
    with suppress(BrokenPipeError), os.fdopen(fd, "wb", buffering=0) as pipe:  # nobody may be left to hear it
        pipe.write(str(max_num_seqs).encode())
