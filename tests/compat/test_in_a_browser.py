"""rq-dashboard with our jobs in it, as a browser shows it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from redis import Redis
from tests.compat.test_viewers import serving
from tests.support.fake_engine import FakeWorker
from tests.support.programs import program_on_path
from tests.support.queued_jobs import submit
from tests.support.waiting import DEADLINE_S

from mlxq.queue.batch import Batch
from mlxq_worker.config import WorkerConfig

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
HEADLESS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--window-size=1200,900",
    "--virtual-time-budget=20000",  # until the page has asked for its data, however long that takes
)


@pytest.fixture
def browser() -> str:
    return program_on_path(*BROWSERS)


def look(browser: str, url: str, folder: Path, *options: str) -> str:
    """What the browser prints once it has shown a page."""
    command = [browser, *HEADLESS, f"--user-data-dir={folder / 'profile'}", *options, url]
    return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=True).stdout


def text_of(dom: str) -> str:
    """What a reader sees of it, more or less."""
    without = re.sub(r"(?s)<(script|style)\b.*?</\1>", " ", dom)
    return " ".join(re.sub(r"<[^>]*>", " ", without).split())


@pytest.fixture
def batch(connection: Redis) -> Batch:
    """Three jobs that were answered, one that failed; and two more wait."""
    batch = submit(connection, "one", "two", "three", "bad")
    FakeWorker(["mlxq"], connection=connection, serializer="json", config=WorkerConfig(model="fake")).work(burst=True)
    submit(connection, "four", "five")
    return batch


def test_a_browser_shows_our_queue_and_our_jobs(browser: str, batch: Batch, redis_url: str, tmp_path: Path) -> None:
    picture = tmp_path / "rq-dashboard.png"
    with serving("rq-dashboard", "--json", "-b", "127.0.0.1", "-u", redis_url, path="/") as address:
        queues = look(browser, f"{address}/0/view/queues", tmp_path, "--dump-dom")
        jobs = look(browser, f"{address}/0/view/jobs/mlxq/finished/10/desc/1", tmp_path, "--dump-dom")
        job = look(browser, f"{address}/0/view/job/{batch.job_id('r3')}", tmp_path, "--dump-dom")
        look(browser, f"{address}/0/view/jobs/mlxq/finished/10/desc/1", tmp_path, f"--screenshot={picture}")

    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert re.search(r"\bmlxq 2 0 0 0 3 1 0\b", text_of(queues))
    assert set(re.findall(rf"{batch.id}-\w+", text_of(jobs))) == {batch.job_id(f"r{i}") for i in range(3)}
    shown = text_of(job)
    assert "Status : failed" in shown
    assert "this prompt is bad (bad_prompt)" in shown
    assert '"custom_id": "r3"' in shown
