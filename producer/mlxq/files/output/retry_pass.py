"""A pass over an output file that asks once more for each answer that ended so or so, however often it is interrupted.

What such a pass has written may well end the same way, and isn't to be asked for again by the rerun that goes on with
the pass, only by the pass after that. So each line of a pass has its name, and while one isn't over a small file beside
the output says which it is. Knows nothing of queues, nor of what answers say.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import msgspec

from mlxq.errors import ConfigError
from mlxq.files.output.done import Done
from mlxq.files.output.durable import replace_file
from mlxq.files.output.retry import Retry
from mlxq.files.paths import file_errors
from mlxq.formats.names import named


class _Unfinished(msgspec.Struct, frozen=True):
    """What stands in the small file: the pass's name, and what it asks for again."""

    mlxq_retry: str
    retry: Retry


def retry_path(output: Path) -> Path:
    """``out.jsonl``, ``out.jsonl.gz`` and ``out.answers.jsonl`` -> ``out.retry.json``, ``out.answers.retry.json``."""
    plain = output.with_suffix("") if named(output).packing else output
    return plain.with_name(f"{plain.stem}.retry.json")


@dataclass(frozen=True, slots=True)
class RetryPass:
    """The pass that a run makes, or goes on with. Its `name` is `None` if the run asks for no whole answer again, or
    its output is no file; `is_resumed` if an earlier run began it."""

    retry: Retry
    path: Path
    name: str | None = None
    is_resumed: bool = False

    @classmethod
    def begin(cls, output: Path, retry: Retry, *, keep: bool) -> Self:
        """Go on with the pass over a file that isn't over and asks for the same, or begin one.

        Args:
            keep: whether the file keeps what it holds.

        Raises:
            ConfigError: something else is where the pass is to be noted.
            InputFileError: it can't be read or written.
        """
        path = retry_path(output)
        if retry == Retry() or not output.is_file():
            return cls(retry, path)
        unfinished = _read(path)
        if keep and unfinished is not None and unfinished.retry == retry:
            return cls(retry, path, unfinished.mlxq_retry, is_resumed=True)
        begun = _Unfinished(secrets.token_hex(4), retry)
        with file_errors(path, "write"):
            replace_file(path.resolve(), lambda out: out.writelines([msgspec.json.encode(begun), b"\n"]))
        return cls(retry, path, begun.mlxq_retry)

    def wants(self, done: Done) -> bool:
        """Whether this whole answer is to be asked for again, and hasn't been in this pass."""
        return self.retry.wants(done) and (self.name is None or done.retry_pass != self.name)

    def about_line(self) -> Mapping[str, Any]:
        """What an answer's line says of the pass."""
        return {} if self.name is None else {"retry": self.name}

    def end(self) -> None:
        """It has come to its end, and all that it wrote is on the disk.

        Raises:
            InputFileError: the small file can't be removed.
        """
        if self.name is not None:
            with file_errors(self.path, "remove"):
                self.path.unlink(missing_ok=True)


def _read(path: Path) -> _Unfinished | None:
    if not path.exists():
        return None
    try:
        with file_errors(path, "read"):
            return msgspec.json.decode(path.read_bytes(), type=_Unfinished)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise ConfigError(f"{path} is none of mlxq's, and would become a note on the retries: move it") from None
