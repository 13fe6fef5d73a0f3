"""The README says what is there: its commands, options, fields and reasons are looked up in the code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import click
import pytest

from mlxq.cli import COMMANDS
from mlxq.contract import FINISH_REASONS, StopType
from mlxq.requests.field_table import renewed
from mlxq.requests.fields import FIELDS

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")

NEVER_IN_ANSWERS = frozenset({"error"})
"""A row that ends by an error makes its request fail."""


def flags_of(command: str) -> set[str]:
    parameters = COMMANDS[command].load().params
    return {flag for parameter in parameters if isinstance(parameter, click.Option) for flag in parameter.opts}


def shown_calls() -> list[tuple[str, set[str]]]:
    """Every call of mlxq in the README's code: the command, and the flags it is given."""
    spans = [*re.findall(r"`(mlxq [^`\n]+)`", README), *re.findall(r"^(mlxq [^#\n]+)", README, re.MULTILINE)]
    calls = [(span.split()[1], set(re.findall(r"(?<!\S)--?[a-z][a-z-]*", span))) for span in spans]
    return [(command, flags) for command, flags in calls if command in COMMANDS or flags]


def test_every_command_is_shown() -> None:
    assert {command for command, _ in shown_calls()} == set(COMMANDS)


@pytest.mark.parametrize(("command", "flags"), shown_calls())
def test_every_call_that_is_shown_has_flags_that_exist(command: str, flags: set[str]) -> None:
    assert flags <= flags_of(command)


def test_every_flag_that_is_mentioned_belongs_to_some_command() -> None:
    mentioned = set(re.findall(r"`(--[a-z-]+)", README))

    assert len(mentioned) > 5
    assert mentioned <= set().union(*map(flags_of, COMMANDS))


def test_the_tables_of_fields_are_those_that_the_code_makes() -> None:
    assert renewed(README) == README, "run: python -m mlxq.requests.field_table README.md"


def test_the_tables_have_every_field() -> None:
    assert set(FIELDS) <= set(re.findall(r"^\| `(\w+)` \|", README, re.MULTILINE))


def test_a_text_without_marks_can_not_be_renewed() -> None:
    with pytest.raises(ValueError, match="there is no"):
        renewed("no tables")


@pytest.mark.parametrize("stop_type", sorted(set(get_args(StopType)) - NEVER_IN_ANSWERS))
def test_every_reason_to_stop_is_explained_with_its_finish_reason(stop_type: StopType) -> None:
    assert f"| `{stop_type}` | `{FINISH_REASONS[stop_type]}` |" in README
