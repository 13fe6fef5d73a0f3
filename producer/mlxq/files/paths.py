"""The paths that a command is given: what goes wrong with them in words, which of them are one file, how long one is.

Knows nothing of what the files hold.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import stat
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from mlxq.errors import ConfigError, InputFileError, NoSuchFile

STDIN = "-"
BLOCK_BYTES = 64 * 1024
SOURCE_DIGITS = 8


@contextlib.contextmanager
def file_errors(path: Path | str, action: str) -> Iterator[None]:
    """Turns what the operating system raises inside the block into a sentence: "can't {action} {path}: ...".

    Raises:
        NoSuchFile: it is to be read and isn't there.
        InputFileError: in place of any other `OSError`.
    """
    try:
        yield
    except OSError as error:
        kind = NoSuchFile if isinstance(error, FileNotFoundError) and action == "read" else InputFileError
        raise kind(f"can't {action} {path}: {error.strerror or error}") from error


def count_lines(path: Path | str) -> int | None:
    """How many lines a regular file has, blank ones too; `None` for standard input, pipes and devices.

    Raises:
        InputFileError: the file can't be read.
    """
    if str(path) == STDIN:
        return None
    with file_errors(path, "read"):
        if not stat.S_ISREG(Path(path).stat().st_mode):  # `is_file` would say of a missing file that it is none
            return None
        with Path(path).open("rb") as source:
            blocks = iter(partial(source.read, BLOCK_BYTES), b"")
            newlines, last = 0, b"\n"
            for last in blocks:
                newlines += last.count(b"\n")
        return newlines + (not last.endswith(b"\n"))


def source_name(*paths: Path | str) -> str | None:
    """A name for an input, of one file or several, that no other has and that tells nobody where it lies:
    ``in.jsonl-5f7c01ab``; `None` for standard input, pipes and devices, which may be anything."""
    if not paths or any(str(path) == STDIN or not Path(path).is_file() for path in paths):
        return None
    places = "\0".join(str(Path(path).resolve()) for path in paths)
    return f"{Path(paths[0]).name}-{hashlib.sha256(places.encode()).hexdigest()[:SOURCE_DIGITS]}"


def refuse_same_file(paths: Mapping[str, Path | str]) -> None:
    """Check that no two of a command's files are one file.

    Args:
        paths: what the user calls each of them (``--output``) -> its path; ``-`` is never the same.

    Raises:
        ConfigError: names the two.
    """
    for (name, path), (other_name, other) in itertools.combinations(paths.items(), 2):
        if _is_same_file(Path(path), Path(other)):
            raise ConfigError(f"{name} and {other_name} are the same file: {path}")


def _is_same_file(path: Path, other: Path) -> bool:
    if STDIN in (str(path), str(other)):
        return False
    if path.exists() and other.exists():
        return path.is_file() and path.samefile(other)
    return path.resolve() == other.resolve()
