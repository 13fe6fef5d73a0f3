"""A worker without a process of its own: its I/O thread on a real Redis, and a test in place of its decode thread."""

from __future__ import annotations

from tests.support.fake_engine import FakeEngine, FakePreparer, FakeWorker
from tests.support.redis_at import redis_at
from tests.support.waiting import DEADLINE_S

from mlxq_worker.config import EngineConfig, WorkerConfig
from mlxq_worker.jobs.consumer import Consumer
from mlxq_worker.jobs.io_thread import IoThread
from mlxq_worker.jobs.presence import Presence
from mlxq_worker.jobs.store import JobStore
from mlxq_worker.messages import Admit, Channel, IoFailed, Ready, RowEnded
from mlxq_worker.step_watch import StepWatch

LEASE_S = 1.0


class IoRig:
    """A worker's I/O thread, and the test in place of its decode thread."""

    def __init__(self, url: str, *, close_s: float = 5.0) -> None:
        config = WorkerConfig(model="fake", engine=EngineConfig(max_num_seqs=4), lease_s=LEASE_S, maintenance_s=0.1)
        self._redis = redis_at(url)
        self.worker = FakeWorker(["mlxq"], connection=self._redis, serializer="json", config=config)
        self.worker.register_birth()
        self._channel = Channel.open()
        self._presence = Presence(self.worker)
        self.consumer = Consumer(
            JobStore(self._redis, self.worker.name, ["mlxq"], lease_s=config.lease_s),
            self._presence,
            self._channel,
            config,
        )
        self._thread = IoThread(
            self.consumer,
            self._channel,
            StepWatch(DEADLINE_S),
            lease_s=LEASE_S,
            first_backoff_s=0.00001,
            close_s=close_s,
        )

    def start(self, preparer: FakePreparer | None = None) -> None:
        self._channel.to_io.put(Ready(preparer or FakePreparer(), 4))
        self._thread.start()

    def decode(self, num_requests: int) -> None:
        """Answer so many requests, and wait until that is written."""
        engine = FakeEngine()
        while num_requests:
            message = self._channel.to_decode.get(timeout=DEADLINE_S)
            assert not isinstance(message, IoFailed), message
            if isinstance(message, Admit):
                engine.admit(*message.specs)
                num_requests -= 1
        while engine.rows:
            for result in engine.step(0.0).finished:
                self._channel.to_io.put(RowEnded(result))

    def close(self) -> None:
        self._thread.close()
        self._redis.close()
