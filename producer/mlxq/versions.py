"""Which version of a package is installed."""

from __future__ import annotations


def version_of(package: str) -> str | None:
    """``0.1.0``; `None` for a package that isn't there."""
    from importlib.metadata import PackageNotFoundError, version  # brings all that reads e-mails

    try:
        return version(package)
    except PackageNotFoundError:
        return None
