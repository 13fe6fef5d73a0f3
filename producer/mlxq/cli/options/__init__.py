"""Options that several commands share, under one name and one help text each."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlxq import keys

if TYPE_CHECKING:
    from mlxq.queue.client import Client

SETTINGS = {"auto_envvar_prefix": "MLXQ", "show_default": True}
"""For every command: the variable of an option is the same wherever the option appears.

It comes from the parameter's name, so an option whose parameter is called otherwise names its variable itself."""

URL_VARIABLES = ["MLXQ_URL", "REDIS_URL"]

url = click.option("--url", envvar=URL_VARIABLES, help="Redis URL.  [default: redis://localhost:6379/0]")
queue = click.option("--queue", default=keys.DEFAULT_QUEUE, help="RQ queue.")

ordered = click.option("--ordered", is_flag=True, help="In the end, put the output in the order of the input.")


class ResultFile(click.Path):
    """The path of a file of answers, which is read again by a rerun: standard output can't be one."""

    def __init__(self) -> None:
        super().__init__(path_type=Path, dir_okay=False)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path; `-`, which stands for standard output elsewhere, is an error."""
        if str(value) == "-":
            self.fail("answers go to a file, not to standard output; a file called - is ./-", param, ctx)
        return super().convert(value, param, ctx)


def open_client(url: str | None, queue: str = keys.DEFAULT_QUEUE) -> Client:
    """The client of a command, once its Redis is known to be one that mlxq can use.

    Raises:
        ConfigError: the URL can't be read, or leads to a Redis Cluster.
        QueueUnavailable: Redis can't be reached.
    """
    from mlxq.queue.client import Client  # redis and rq take longer to import than all else
    from mlxq.queue.connect import refuse_cluster

    client = Client(url or keys.DEFAULT_URL, queue)
    refuse_cluster(client.redis)
    return client


class OnlyOnce(click.Option):
    """An option that is an error when it is given twice: the first value would be lost without a word."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "multiple": True})

    def value_from_envvar(self, ctx: click.Context) -> Any:
        """The variable is one value; paths may have colons."""
        value = self.resolve_envvar_value(ctx)
        return None if value is None else (value,)

    def process_value(self, ctx: click.Context, value: Any) -> Any:
        """The one value, or `None`."""
        values = super().process_value(ctx, value)
        if values and len(values) > 1:
            raise click.BadParameter("it can be given once", ctx, self)
        return values[0] if values else None


error_file = click.option(
    "--error-file",
    cls=OnlyOnce,
    type=ResultFile(),
    help="Where failed requests go.  [default: the output's name with .errors before the suffix]",
)
output = partial(
    click.option,
    "-o",
    "--output",
    cls=OnlyOnce,
    type=ResultFile(),
    help="File of answers: .jsonl, also .jsonl.gz and .jsonl.zst.",
)
"""Called with `required`, since one command can do without it."""
