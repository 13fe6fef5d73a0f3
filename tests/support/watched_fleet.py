"""Three workers with two models behind one Redis, `mlxq metrics`, and a Prometheus that scrapes all of them.

The workers are real `mlxq worker` processes: two with the demo model on one queue, one with a model of another
architecture on another. Prometheus gets the files of deploy/, with the addresses of this fleet, and looks every second.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from tests.support.documents import ROOT
from tests.support.ports import free_port
from tests.support.processes import MLXQ, running
from tests.support.scripted_models import Folder, write_weights
from tests.support.waiting import DEADLINE_S, wait_until

DEPLOY = ROOT / "deploy" / "prometheus"
SCRAPE_S = 1
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@dataclass(frozen=True, slots=True)
class Prometheus:
    """A running one, by its HTTP API."""

    url: str

    def values(self, query: str) -> list[float]:
        """What a query gives now, a number for each series."""
        parameters = urllib.parse.urlencode({"query": query})
        return [float(series["value"][1]) for series in self._data(f"query?{parameters}")["result"]]

    def rules(self) -> list[dict[str, Any]]:
        """All rules, with their state and whether they could be evaluated."""
        return [rule for group in self._data("rules")["groups"] for rule in group["rules"]]

    def health(self) -> dict[str, str]:
        """What became of each target's last scrape, by its address."""
        return {target["labels"]["instance"]: target["health"] for target in self._data("targets")["activeTargets"]}

    def _data(self, path: str) -> Any:
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}", timeout=DEADLINE_S) as reply:
            return json.load(reply)["data"]


@dataclass(frozen=True, slots=True)
class Worker:
    """One `mlxq worker`: its supervisor, and where that serves metrics."""

    process: subprocess.Popen[str]
    address: str

    def kill_the_one_with_the_model(self) -> None:
        """As the system does when memory runs out."""
        children = subprocess.run(("pgrep", "-P", f"{self.process.pid}"), capture_output=True, text=True, check=True)
        for pid in map(int, children.stdout.split()):
            os.kill(pid, signal.SIGKILL)

    def end(self) -> None:
        """In peace."""
        self.process.terminate()
        assert self.process.wait(DEADLINE_S) == 0


@contextmanager
def workers(redis_url: str, served: Sequence[tuple[str, str]]) -> Iterator[list[Worker]]:
    """A worker for each pair of a model and a queue, all of them ready."""
    with ExitStack() as stack:
        started = []
        for model, queue in served:
            address = f"127.0.0.1:{free_port()}"
            options = ("--model", model, "--queue", queue, "--metrics-port", address, "--max-num-seqs", "4")
            variables = {"MLXQ_URL": redis_url, "MLXQ_MAINTENANCE_S": "0.2"}
            process = stack.enter_context(running(*MLXQ, "worker", *options, **variables))
            started.append(Worker(process, address))
        for worker in started:
            wait_until(lambda worker=worker: is_well(f"http://{worker.address}/ready"), "a worker to be ready")
        yield started


@contextmanager
def queue_metrics(redis_url: str) -> Iterator[str]:
    """The address of a `mlxq metrics`."""
    address = f"127.0.0.1:{free_port()}"
    with running(*MLXQ, "metrics", "--metrics-port", address, "--url", redis_url):
        wait_until(lambda: is_well(f"http://{address}/ready"), "mlxq metrics to be ready")
        yield address


@contextmanager
def prometheus(folder: Path, targets: Mapping[str, Sequence[str]]) -> Iterator[Prometheus]:
    """Scrapes these addresses, by the names of jobs in our configuration, once all have been scraped."""
    (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration(targets)))
    (folder / "alerts.yml").write_text((DEPLOY / "alerts.yml").read_text())
    address = f"127.0.0.1:{free_port()}"
    options = (f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}")
    with running("prometheus", *options, f"--web.listen-address={address}"):
        wait_until(lambda: is_well(f"http://{address}/-/ready"), "Prometheus to be ready")
        found = Prometheus(f"http://{address}")
        everybody = {address for addresses in targets.values() for address in addresses}
        wait_until(lambda: found.health() == dict.fromkeys(everybody, "up"), "Prometheus to scrape everybody")
        yield found


def configuration(targets: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Ours, with the part for `mlxq serve` that is commented out, with other addresses, and in more of a hurry."""
    text = re.sub(r"^  # (?=[- ] )", "  ", (DEPLOY / "prometheus.yml").read_text(), flags=re.MULTILINE)
    config: dict[str, Any] = yaml.safe_load(text)
    config["global"] = dict.fromkeys(config["global"], f"{SCRAPE_S}s")
    assert [job["job_name"] for job in config["scrape_configs"]] == list(targets)
    for job in config["scrape_configs"]:
        job["static_configs"] = [{"targets": list(targets[job["job_name"]])}]
        job.pop("authorization", None)
    return config


def another_model(folder: Path) -> Path:
    """A model of another architecture than the demo's: whatever it is asked, it says the same and then goes on."""
    described = Folder(template=CHATML, special=("<|im_start|>", "<|im_end|>"), eos="<|endoftext|>")
    described.write(folder)
    tokenizer = described.tokenizer()
    width = json.loads((folder / "config.json").read_text())["n_embd"]
    write_weights(folder, tokenizer.encode("well, ").ids, 1, width)
    return folder


def is_well(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=DEADLINE_S) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False
