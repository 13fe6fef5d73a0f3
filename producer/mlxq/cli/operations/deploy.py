"""`mlxq acl ROLE`: the rights in Redis that a role needs, as a line of an ACL file."""

from __future__ import annotations

import re
from typing import cast

import click

from mlxq.access.roles import ABOUT, COMMANDS, Role, acl_line
from mlxq.cli import options
from mlxq.cli.terminal import say, tell


def _user(_ctx: click.Context, _param: click.Parameter, name: str | None) -> str | None:
    if name is not None and not re.fullmatch(r"\S+", name):
        raise click.BadParameter("a user's name has no blanks")
    return name


@click.command(context_settings=options.SETTINGS)
@click.argument("role", type=click.Choice(list(COMMANDS)))
@click.option("--user", callback=_user, help="The user's name.  [default: mlxq- and the role]")
def acl(role: str, user: str | None) -> None:
    """Print the line of a Redis ACL file for a ROLE: producer, worker or observer.

    It allows what that role needs, on keys of RQ and mlxq, and nothing else. Put a password in place of CHANGE-ME.

    Example: mlxq acl worker >> /etc/redis/users.acl
    """
    known = cast("Role", role)
    tell(f"# {ABOUT[known]}")
    say(acl_line(known, user))
