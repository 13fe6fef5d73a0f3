"""Where commands print: everything that a terminal would act on is escaped, whoever wrote it.

Data that goes to a file or a pipe stays as it is. Decides nothing about what is said.
"""

from __future__ import annotations

import sys

import click
from rich.text import Text

from mlxq.printable import printable, printable_lines


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
    return Text(printable(text))
