"""docs/commands.md, made from the commands themselves; ``python -m tests.support.command_table`` writes it."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import click

from mlxq.cli import COMMANDS

DOCUMENT = Path(__file__).parents[2] / "docs" / "commands.md"
HEAD = """# The commands

Made from the code by `python -m tests.support.command_table`: what each command says with `-h`. An option's variable
counts where the option isn't given. A shell completes commands and options: see [start.md](start.md#in-your-shell).
"""
EXAMPLE = "Example: "


def reference() -> str:
    """The whole document."""
    return "\n".join([HEAD, *(section(name) for name in COMMANDS)])


def section(name: str) -> str:
    """One command: what it is for, an example, its arguments and options."""
    command = COMMANDS[name].load()
    context = click.Context(command, info_name=f"mlxq {name}", parent=None, **command.context_settings)
    usage = " ".join(command.collect_usage_pieces(context))
    paragraphs = inspect.cleandoc(command.help or "").split("\n\n")
    texts = [marked(" ".join(text.split())) for text in paragraphs if not text.startswith(EXAMPLE)]
    lines = [f"## mlxq {name}", *texts, f"    mlxq {name} {usage}\n    {example_of(command)}"]
    options = [each for each in command.params if isinstance(each, click.Option) and not each.hidden]
    rows = [row(option, context) for option in options]
    if rows:
        lines.append("\n".join(["| Option | Variable | What it does |", "|---|---|---|", *rows]))
    return "\n\n".join(lines) + "\n"


def example_of(command: click.Command) -> str:
    """The call that the command's own help shows; empty if it shows none."""
    found = re.search(rf"^{EXAMPLE}(.*(?:\n\S.*)*)", inspect.cleandoc(command.help or ""), re.MULTILINE)
    return " ".join(found[1].split()) if found else ""


def row(option: click.Option, context: click.Context) -> str:
    """A line of the table."""
    record = option.get_help_record(context)
    assert record is not None, option.name
    flags, about = record
    about, variables = without_variables(about, option, context)
    cells = (f"`{flags}`", " ".join(f"`{name}`" for name in variables), marked(about))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def without_variables(about: str, option: click.Option, context: click.Context) -> tuple[str, list[str]]:
    """What an option is for, and its variables, which some name in their text."""
    found = re.search(r"\s*\[env var: ([A-Z_, ]+); ", about)
    if found:
        return about.replace(found[0], " ["), found[1].split(", ")
    given = option.envvar
    if given is None and context.auto_envvar_prefix and option.allow_from_autoenv and option.name:
        given = f"{context.auto_envvar_prefix}_{option.name.upper()}"
    return about, [given] if isinstance(given, str) else list(given or ())


def marked(text: str) -> str:
    """What Markdown would take for markup stands as it is."""
    text = " ".join(text.split())
    return re.sub(r"(?<!`)<(?=\w)", "&lt;", text).replace("*", "\\*")


if __name__ == "__main__":
    DOCUMENT.write_text(reference(), encoding="utf-8")
