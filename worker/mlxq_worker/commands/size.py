"""Sizes as options' values, in the forms that the variables have too: of memory in bytes, of a step in tokens."""

from __future__ import annotations

from typing import Literal

import click

from mlxq_worker.config import SIZE_FORM, to_bytes, to_step_tokens, to_wired_limit


class Size(click.ParamType):  # type: ignore[type-arg]  # generic in the newest click only
    """Bytes, from a text such as 24GB, 24GiB or 70%."""

    name = "size"

    def convert(self, value: str | int, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return to_bytes(str(value))
        except ValueError:
            self.fail(f"{value!r} is not {SIZE_FORM}", param, ctx)


class WiredLimit(click.ParamType):  # type: ignore[type-arg]  # generic in the newest click only
    """Bytes as `Size`, "auto" or "off"."""

    name = "auto|off|size"

    def convert(
        self, value: str | int, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | Literal["auto", "off"]:
        try:
            return to_wired_limit(str(value))
        except ValueError:
            self.fail(f"{value!r} is neither auto nor off nor {SIZE_FORM}", param, ctx)


class StepTokens(click.ParamType):  # type: ignore[type-arg]  # generic in the newest click only
    """A number of tokens, or "auto"."""

    name = "integer|auto"

    def convert(
        self, value: str | int, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | Literal["auto"]:
        try:
            return to_step_tokens(str(value))
        except ValueError:
            self.fail(f"{value!r} is neither an integer nor auto", param, ctx)
