"""What commands say of themselves: each shows an example that can be typed, and a shell completes them."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete
from tests.support.command_table import DOCUMENT, example_of, reference
from tests.support.documents import ROOT

from mlxq.cli import COMMANDS, main

DOCS = ROOT / "docs"
CODE = "\n".join(
    path.read_text(encoding="utf-8")
    for package in ("producer", "worker")
    for path in [*(ROOT / package).rglob("*.py"), *(ROOT / package).rglob("*.lua")]
)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_commands_help_has_an_example_that_click_understands(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.jsonl").touch()
    command = COMMANDS[name].load()

    program, called, *words = shlex.split(example_of(command).partition(" > ")[0])

    assert (program, called) == ("mlxq", name)
    assert command.make_context(name, words, **command.context_settings).params


def test_the_reference_is_made_from_the_commands() -> None:
    assert reference() == DOCUMENT.read_text(encoding="utf-8"), "run: python -m tests.support.command_table"


@pytest.mark.parametrize(
    ("words", "begun", "expected"),
    [
        ([], "st", {"status"}),
        (["status"], "--js", {"--json"}),
        (["worker"], "--metrics", {"--metrics-port"}),
        (["deploy"], "system", {"systemd", "systemd-cuda", "systemd-serve", "systemd-redis"}),
    ],
)
def test_a_shell_completes_commands_options_and_choices(words: list[str], begun: str, expected: set[str]) -> None:
    found = ShellComplete(main, {}, "mlxq", "_MLXQ_COMPLETE").get_completions(words, begun)

    assert {item.value for item in found} == expected


# --- Pages that say what commands say, or what is on the dashboard --------------------------------------------


def test_every_panel_of_the_dashboard_is_explained() -> None:
    panels = json.loads((ROOT / "deploy" / "grafana" / "mlxq.json").read_text(encoding="utf-8"))["panels"]
    _, _, rest = (DOCS / "operating.md").read_text(encoding="utf-8").partition("<!-- panels -->\n")
    explained = re.findall(r"^\| ([^|]+) \|", rest.partition("\n\n")[0], re.MULTILINE)

    assert {panel["title"] for panel in panels if panel["type"] != "row"} == {*explained} - {"Panel"}


def test_whatever_troubleshooting_quotes_is_said_somewhere() -> None:
    text = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    quoted = [part.strip() for words in re.findall(r'^\| "([^"]+)"', text, re.MULTILINE) for part in words.split("...")]
    spoken = re.sub(r'"\s+f?"', "", CODE)
    codes = re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`\w+_\w+`(?:, `\w+`)*) \|", text, re.MULTILINE)))

    assert len(quoted) > 4
    assert len(codes) > 8
    assert [part for part in filter(None, quoted) if part not in spoken] == []
    assert [code for code in codes if f'"{code}"' not in CODE] == []


def test_what_can_be_deployed_is_listed_where_it_is_explained() -> None:
    [choice] = [param.type for param in COMMANDS["deploy"].load().params if param.name == "what"]
    assert isinstance(choice, click.Choice)
    _, _, rest = (DOCS / "operating.md").read_text(encoding="utf-8").partition("| `mlxq deploy` |")
    listed = re.findall(r"^\| ((?:`[\w-]+`(?:, )?)+) \|", rest.partition("\n\n")[0], re.MULTILINE)

    assert set(re.findall(r"`([\w-]+)`", "".join(listed))) == set(choice.choices)
