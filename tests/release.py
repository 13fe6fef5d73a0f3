"""Builds what a release consists of, and tries it in fresh environments: `make release-check`.

    python -m tests.release --dist dist [--tag v0.2.0]

The version has to be that of the tag and of the changelog's newest section. The wheel is built from the unpacked source
distribution, so that nothing is missing there; then it is installed twice, without and with the worker, and used.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from pathlib import Path

import click

from mlxq_worker.supervision.redis_server import private_redis

ROOT = Path(__file__).parents[1]
HEAVY = frozenset({"mlx", "mlx-lm", "numpy", "transformers", "torch", "prometheus-client", "pyarrow"})
"""What a producer must not have to install."""
REQUEST = {"custom_id": "r1", "messages": [{"role": "user", "content": "What is the capital of France?"}]}


class NotReady(Exception):
    """What keeps this from being a release."""


def version() -> str:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return str(project["version"])


def newest_section(changelog: str) -> str:
    """The title of the newest section that is released, as ``0.2.0``; empty if there is none."""
    found = re.search(r"^## \[(\d[^\]]*)\] - \d{4}-\d\d-\d\d$", changelog, re.MULTILINE)
    return found[1] if found else ""


def check_version(tag: str | None, number: str, changelog: str) -> None:
    """Raises `NotReady` if a tag is given and doesn't say the same as the package and the changelog."""
    if tag is None:
        return
    if tag != f"v{number}":
        raise NotReady(f"the tag is {tag} and pyproject.toml says {number}")
    if newest_section(changelog) != number:
        raise NotReady(f"CHANGELOG.md has no section ## [{number}] - YYYY-MM-DD above the others")
    unreleased = re.search(r"^## \[Unreleased\]\n(.*?)(?=^## )", changelog, re.MULTILINE | re.DOTALL)
    if unreleased and unreleased[1].strip():
        raise NotReady("CHANGELOG.md has lines under Unreleased: they belong to this release")


def run(*command: str | Path, folder: Path, **variables: str) -> str:
    """What a command prints on standard output; it must succeed, and sees nothing of this environment's packages."""
    ours = ("MLXQ_", "REDIS_", "PYTHON")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        env={**inherited, "PIP_DISABLE_PIP_VERSION_CHECK": "1", **variables},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise NotReady(f"{' '.join(map(str, command))} ended with {done.returncode}: {done.stdout}")
    return done.stdout


def build(folder: Path, dist: Path) -> Path:
    """The wheel, made from the source distribution; both are in `dist`."""
    tools = environment(folder / "tools", "build", "twine")
    run(tools / "python", "-m", "build", "--sdist", "--outdir", dist, ROOT, folder=folder)
    [source] = dist.glob("mlxq-*.tar.gz")
    with tarfile.open(source) as archive:
        archive.extractall(folder, filter="data")
    unpacked = folder / source.name.removesuffix(".tar.gz")
    run(tools / "python", "-m", "build", "--wheel", "--outdir", dist, unpacked, folder=folder)
    run(tools / "python", "-m", "twine", "check", "--strict", *sorted(dist.iterdir()), folder=folder)
    [wheel] = dist.glob("mlxq-*.whl")
    return wheel


def environment(folder: Path, *packages: str) -> Path:
    """The bin folder of a fresh one with these packages."""
    run(sys.executable, "-m", "venv", folder, folder=ROOT)
    run(folder / "bin" / "pip", "install", "--quiet", *packages, folder=ROOT)
    return folder / "bin"


def try_producer(folder: Path, wheel: Path) -> None:
    """Without the worker: small, and it puts requests in a queue."""
    light = environment(folder / "light", str(wheel))
    listed = json.loads(run(light / "pip", "list", "--format", "json", folder=folder))
    if heavy := HEAVY & {each["name"].lower() for each in listed}:
        raise NotReady(f"a producer installs {', '.join(sorted(heavy))}")
    if run(light / "mlxq", "--version", folder=folder) != f"mlxq {version()}\n":
        raise NotReady("mlxq --version says something else than pyproject.toml")
    run(light / "mlxq", "deploy", "compose", folder=folder)
    (folder / "in.jsonl").write_text(json.dumps(REQUEST) + "\n")
    with private_redis() as server:
        batch = run(light / "mlxq", "enqueue", "-i", "in.jsonl", "--url", server.url, folder=folder).strip()
        state = json.loads(run(light / "mlxq", "status", batch, "--json", "--url", server.url, folder=folder))
    if state["batch"]["total"] != 1:
        raise NotReady(f"one request was enqueued, and the status is {state}")


def try_worker(folder: Path, wheel: Path) -> None:
    """With everything: it answers a file, with the demo model from the wheel."""
    whole = environment(folder / "whole", f"mlxq[worker,serve] @ {wheel.as_uri()}")
    run(whole / "mlxq", "run", "-i", "in.jsonl", "-o", "out.jsonl", "--set", "temperature=0", folder=folder)
    answer = json.loads((folder / "out.jsonl").read_text())
    if "Paris" not in answer["response"]["body"]["choices"][0]["message"]["content"]:
        raise NotReady(f"the demo model answers {answer}")
    run(whole / "mlxq", "serve", "--help", folder=folder)
    run(whole / "pip", "check", folder=folder)


@click.command(help=__doc__)
@click.option("--dist", type=click.Path(path_type=Path, file_okay=False), required=True)
@click.option("--tag", help="Have the version be this one, with a v before it.")
def main(dist: Path, tag: str | None) -> None:
    dist = dist.absolute()
    shutil.rmtree(dist, ignore_errors=True)
    try:
        check_version(tag or None, version(), (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"))
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            wheel = build(folder, dist)
            try_producer(folder, wheel)
            try_worker(folder, wheel)
    except NotReady as error:
        raise click.ClickException(str(error)) from None
    click.echo(f"Ready: {', '.join(sorted(file.name for file in dist.iterdir()))}")


if __name__ == "__main__":
    main()
