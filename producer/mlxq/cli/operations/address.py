"""Where to serve something, as an option's value."""

from __future__ import annotations

import click

from mlxq.metrics.address import Address


class AddressType(click.ParamType):  # type: ignore[type-arg]  # generic in the newest click only
    """A port of the loopback address, or HOST:PORT."""

    name = "[host:]port"

    def convert(self, value: str | Address, param: click.Parameter | None, ctx: click.Context | None) -> Address:
        """Called by click."""
        if isinstance(value, Address):
            return value
        try:
            return Address.read(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
