"""The one table of a worker's options: what it has, what both commands make of it, and the way back to words."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import click
import pytest

from mlxq_worker.commands.run import run
from mlxq_worker.commands.worker import worker
from mlxq_worker.commands.worker_options import WORKER_OPTIONS, words_of, worker_command
from mlxq_worker.config import EngineConfig, WorkerConfig, variable_of


def options_of(command: click.Command) -> dict[str, click.Parameter]:
    return {option.name: option for option in command.params if option.name in WORKER_OPTIONS}


def test_every_option_sets_a_field_of_the_configuration() -> None:
    known = {each.name for config in (WorkerConfig, EngineConfig) for each in fields(config)}

    assert WORKER_OPTIONS.keys() <= known


def test_the_worker_has_every_option_and_run_those_that_it_passes_on() -> None:
    assert options_of(worker).keys() == WORKER_OPTIONS.keys()
    assert options_of(run).keys() == {
        "model",
        "max_num_seqs",
        "default_max_tokens",
        "generation_config",
        "memory_limit_bytes",
        "wired_limit",
        "extra_eos_tokens",
        "allow_no_eos",
        "tool_call_parser",
        "reasoning_parser",
    }


@pytest.mark.parametrize("command", [worker, run], ids=["worker", "run"])
def test_an_option_has_one_flag_and_the_variable_that_the_configuration_reads(command: click.Command) -> None:
    for name, option in options_of(command).items():
        assert option.opts == [WORKER_OPTIONS[name].flag]
        assert option.envvar == variable_of(name)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, []),
        (False, []),
        (True, ["--x"]),
        (0, ["--x", "0"]),
        ("a b", ["--x", "a b"]),
        (("a", "b"), ["--x", "a", "--x", "b"]),
        ((), []),
    ],
)
def test_an_option_as_words_of_a_command_line(value: Any, words: list[str]) -> None:
    assert words_of("--x", value) == words


def test_what_run_passes_on_comes_back_as_it_was() -> None:
    values = {
        "model": "m",
        "max_num_seqs": 4,
        "default_max_tokens": 7,
        "generation_config": "off",
        "memory_limit_bytes": 1_500_000_000,
        "wired_limit": 2_000_000_000,
        "extra_eos_tokens": ("<end>", "two words"),
        "allow_no_eos": True,
    }

    given = worker.make_context("worker", worker_command("q", **values)[4:]).params

    assert {name: given[name] for name in values} == values
    assert given["queues"] == ("q",)
