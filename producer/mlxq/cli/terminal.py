"""Where commands print: everything that a terminal would act on is escaped, whoever wrote it.

Data that goes to a file or a pipe stays as it is. Decides nothing about what is said.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from mlxq.printable import printable, printable_lines

if TYPE_CHECKING:
    from rich.text import Text


def say(message: str) -> None:
    """A line on standard output."""
    click.echo(printable_lines(message))


def tell(message: str) -> None:
    """A line on standard error."""
    click.echo(printable_lines(message), err=True)


def show(data: str) -> None:
    """Data on standard output: escaped for a terminal, as it is for programs."""
    click.echo(printable_lines(data) if sys.stdout.isatty() else data)


def cell(text: str) -> Text:
    """The cell of a table: neither markup nor escape sequences count."""
    from rich.text import Text  # which takes longer to import than most commands to run

    return Text(printable(text))
