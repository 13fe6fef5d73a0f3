"""A click group that knows its commands by name and imports one only when it is called.

Also where errors become sentences: what mlxq raises on purpose is one line on stderr and an exit code;
anything else is a bug and keeps its traceback.
"""

from __future__ import annotations

import errno
import gc
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from typing import Any

import click

from mlxq.cli.signals import die_by
from mlxq.cli.streams import open_closed_streams
from mlxq.errors import ConfigError, MlxqError
from mlxq.printable import printable_lines

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""What writing raises anywhere once a disk is full."""
EXTRAS = {
    "prometheus_client": "metrics",
    **dict.fromkeys(("anyio", "h11", "python_multipart", "starlette", "uvicorn"), "serve"),
}
"""Which extra brings a package, where it isn't `worker`."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A command: where it is, as ``module:attribute``, and one sentence about it."""

    target: str
    help: str

    def load(self) -> click.Command:
        """Import the command, without collecting garbage meanwhile: what an import makes is there to stay."""
        module, _, attribute = self.target.partition(":")
        was_enabled = gc.isenabled()
        gc.disable()
        try:
            command: click.Command = getattr(import_module(module), attribute)
        finally:
            if was_enabled:
                gc.enable()
        return command


class LazyGroup(click.Group):
    """A group over a table of entries."""

    def __init__(self, *args: Any, entries: Mapping[str, Entry], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._entries = entries

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of the table, which is that of use."""
        return list(self._entries)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command; `None` if there is none of that name."""
        entry = self._entries.get(cmd_name)
        if entry is None:
            return None
        with clear_errors():
            return entry.load()

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or say which one may be meant."""
        if args[0] not in self._entries and (close := get_close_matches(args[0], self._entries, 1)):
            ctx.fail(f"No such command {args[0]!r}. Did you mean {close[0]!r}?")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands from the table, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in self._entries.items()])

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Read the options; help and the version are printed meanwhile."""
        with clear_errors():
            return super().make_context(*args, **kwargs)

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run as a program."""
        open_closed_streams()
        try:
            return super().main(*args, **kwargs)
        finally:
            if not args and kwargs.get("args") is None:  # else somebody calls it whose process goes on
                gc.freeze()  # what is left ends with the process: to look for cycles in it takes longer than help

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command. One that is interrupted, and had nothing to bring to an end, dies by that."""
        try:
            with clear_errors():
                return super().invoke(ctx)
        except KeyboardInterrupt:
            die_by(signal.SIGINT)
            raise


class CommandFailed(click.ClickException):
    """An error of ours as click shows it."""

    def __init__(self, error: MlxqError) -> None:
        super().__init__(printable_lines(error))
        self.exit_code = error.exit_code  # type: ignore[misc]  # click's commands all have one, ours depends


@contextmanager
def clear_errors() -> Iterator[None]:
    """Turns errors that a user can act on into click's: one line, and the error's own exit code (`mlxq.errors`)."""
    try:
        yield
    except ConfigError as error:
        raise click.UsageError(printable_lines(error)) from error
    except MlxqError as error:
        raise CommandFailed(error) from error
    except click.ClickException as error:
        if type(error) is not click.ClickException:  # a wrong option, say: the user's own words
            raise
        raise click.ClickException(printable_lines(error.message)) from error
    except OSError as error:
        if error.errno not in NO_ROOM or error.filename is not None:
            raise
        raise click.ClickException(f"can't write to standard output or a file: {error.strerror}") from error
    except ModuleNotFoundError as error:
        if (missing := missing_package(error)) is None:
            raise
        raise missing from error


def missing_package(error: ModuleNotFoundError) -> click.ClickException | None:
    """The error of a package that `pip install mlxq` leaves out; `None` if it is one of ours, which is a bug."""
    if (error.name or "mlxq").startswith("mlxq"):
        return None
    extra = EXTRAS.get((error.name or "").partition(".")[0], "worker")
    return click.ClickException(f'this command needs {error.name}: install "mlxq[{extra}]"')
