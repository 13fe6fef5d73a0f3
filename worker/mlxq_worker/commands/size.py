"""A size in bytes as an option's value, in the form that the variables have too."""

from __future__ import annotations

import click

from mlxq_worker.config import SIZE_FORM, to_bytes


class Size(click.ParamType):  # type: ignore[type-arg]  # generic in the newest click only
    """Bytes, from a text such as 24GB, 24GiB or 70%."""

    name = "size"

    def convert(self, value: str | int, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return to_bytes(str(value))
        except ValueError:
            self.fail(f"{value!r} is not {SIZE_FORM}", param, ctx)
