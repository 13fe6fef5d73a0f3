"""`mlxq deploy WHAT`: prints a file for whoever starts workers and queues, or the rights in Redis of a role."""

from __future__ import annotations

import re
from typing import cast

import click
from click.core import ParameterSource

from mlxq.cli import options
from mlxq.cli.operations.address import AddressType
from mlxq.cli.terminal import say, show, tell
from mlxq.deploying.files import TEMPLATES, Kind, text_of
from mlxq.deploying.roles import ABOUT, COMMANDS, Role, acl_line
from mlxq.metrics.address import Address

ACL = "acl"


def _redis_user(_ctx: click.Context, _param: click.Parameter, name: str | None) -> str | None:
    if name is not None and not re.fullmatch(r"\S+", name):
        raise click.BadParameter("a user's name has no blanks")
    return name


@click.command(context_settings=options.SETTINGS)
@click.argument("what", type=click.Choice([*TEMPLATES, ACL]), metavar="WHAT")
@click.option("--model", help="launchd, systemd and their kin: the model that the worker serves.")
@click.option("--url", help="launchd, launchd-daemon: the Redis URL; the file then holds its password.")
@click.option("--user", callback=_redis_user, help="launchd and its kin: your user name. acl: the user in Redis.")
@click.option("--home", help="systemd and its kin: the directory of its user, where its venv is.")
@click.option("--worker-address", type=AddressType(), help="prometheus: where a worker serves metrics, as HOST:PORT.")
@click.option("--queues-address", type=AddressType(), help="prometheus: where mlxq metrics serves them, as HOST:PORT.")
@click.option("--role", type=click.Choice(list(COMMANDS)), help="acl: what the user is to be.")
@click.pass_context
def deploy(
    ctx: click.Context,
    /,
    what: str,
    model: str | None,
    url: str | None,
    user: str | None,
    home: str | None,
    worker_address: Address | None,
    queues_address: Address | None,
    role: str | None,
) -> None:
    """Print a file that starts, keeps or watches mlxq, with your values in it. What to do with it stands in it.

    launchd, launchd-daemon, systemd and systemd-cuda start a worker, systemd-serve the Batch API; systemd-redis,
    compose and redis keep the queue, and redis-backup a copy of it; prometheus, alerts and grafana watch all of them,
    and launchd-logs keeps a log small. acl is a line of a Redis ACL file for a producer, a worker or an observer: put
    a password in place of CHANGE-ME.

    Example: mlxq deploy systemd --model mlx-community/Qwen3-4B-4bit > mlxq-worker.service
    """
    if what == ACL:
        if role is None:
            raise click.UsageError(f"acl needs --role: {', '.join(COMMANDS)}")
        known = cast("Role", role)
        tell(f"# {ABOUT[known]}")
        say(acl_line(known, user))
        return
    kind = cast("Kind", what)
    given = {
        "model": model,
        "url": url,
        "user": user,
        "home": home,
        "worker-address": str(worker_address) if worker_address is not None else None,
        "queues-address": str(queues_address) if queues_address is not None else None,
        "role": role,
    }
    values = {name: value for name, value in given.items() if name in TEMPLATES[kind].examples or _is_asked(ctx, name)}
    show(text_of(kind, values).rstrip("\n"))


def _is_asked(ctx: click.Context, name: str) -> bool:
    """Whether it is on the command line; a variable is for all commands, and counts where there is a place for it."""
    return ctx.get_parameter_source(name.replace("-", "_")) is ParameterSource.COMMANDLINE
