"""Python and the packages, compared with what mlxq's own metadata asks for."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import metadata

from mlxq_worker.commands.doctor.finding import Finding, ok, problem

LEAST_PYTHON = (3, 11)
INSTALL = 'pip install --upgrade "mlxq[worker]"'


def installed_version(name: str) -> str | None:
    """The version of a distribution; `None` if it isn't there."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def wanted() -> list[str]:
    """What mlxq asks for, as its metadata has it; nothing where it isn't installed but run from its source tree."""
    try:
        return metadata.requires("mlxq") or []
    except metadata.PackageNotFoundError:
        return []


def look_at_python(version: Sequence[int] | None = None, machine: str | None = None) -> Iterator[Finding]:
    """Whether this Python can run a worker."""
    version = version or tuple(sys.version_info[:3])
    name = ".".join(map(str, version[:3]))
    machine = machine or platform.machine()
    if tuple(version[:2]) < LEAST_PYTHON:
        yield problem(
            "python", f"Python is {name}", "use Python 3.11 or newer: mlxq is neither made nor tested for less"
        )
    elif sys.platform == "darwin" and machine == "x86_64":
        yield problem(
            "python", f"Python {name} is one for Intel, which MLX has no packages for", "install an arm64 Python"
        )
    else:
        yield ok("python", f"Python {name} on {machine}")


def look_at_packages(
    requirements: Iterable[str], version_of: Callable[[str], str | None] = installed_version
) -> Iterator[Finding]:
    """Whether what mlxq and its workers need is there, in versions that go together.

    Args:
        requirements: as in metadata: ``mlx-lm<0.33,>=0.32.2; extra == "worker"``.
    """
    try:
        from packaging.requirements import Requirement
    except ModuleNotFoundError:
        yield problem("packages", "the packages of a worker are not installed: packaging is missing", INSTALL)
        return
    wrong = 0
    for requirement in map(Requirement, requirements):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": "worker"}):
            continue
        version = version_of(requirement.name)
        if version is None:
            yield problem("packages", f"{requirement.name} is not installed", INSTALL)
        elif not requirement.specifier.contains(version, prereleases=True):
            wanted_text = str(requirement.specifier)
            yield problem(
                "packages",
                f"{requirement.name} is {version}, and mlxq is made for {wanted_text}",
                f'pip install "{requirement.name}{wanted_text}"',
            )
        else:
            continue
        wrong += 1
    if not wrong:
        yield ok("packages", "all packages of a worker are there, in versions that mlxq is made for")
