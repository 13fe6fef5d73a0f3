"""The documents say what is there: their commands, options, fields, reasons, paths and links are looked up.

What their commands do is tried in `tests/e2e/test_document_commands.py`.
"""

from __future__ import annotations

import json
import re
import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

import click
import pytest
from tests.support.documents import DOCUMENTS, FILE, ROOT, Block, blocks_of, faults

from mlxq.cli import COMMANDS
from mlxq.contract import FINISH_REASONS, StopType
from mlxq.requests.field_table import renewed
from mlxq.requests.fields import FIELDS
from mlxq.requests.openai import parse_object

README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = ROOT / "docs"
FIRST_SCREEN = README.partition("\n## ")[0]
TEXTS = {document: document.read_text(encoding="utf-8") for document in DOCUMENTS}
EVERYTHING = "\n".join(TEXTS.values())

NEVER_IN_ANSWERS = frozenset({"error"})
"""A row that ends by an error makes its request fail."""


def name_of(document: object) -> str | None:
    return document.name if isinstance(document, Path) else None


def flags_of(command: str) -> set[str]:
    parameters = COMMANDS[command].load().params
    return {flag for parameter in parameters if isinstance(parameter, click.Option) for flag in parameter.opts}


def spans_of(program: str) -> list[str]:
    """Every call of a program that some document shows, in a sentence or in a block, without its comment."""
    code = "".join(block.code for block in blocks_of(EVERYTHING)).replace("\\\n", " ")
    return [
        *re.findall(rf"`({program} [^`]+)`", EVERYTHING),
        *re.findall(rf"^(?:\w+=\S+ )*({program} [^#\n|]+)", code, re.MULTILINE),
    ]


def flags_in(call: str) -> set[str]:
    return set(re.findall(r"(?<!\S)--?[a-z][a-z-]*", call))


def shown_calls() -> list[tuple[str, set[str]]]:
    """Every call of mlxq: the command, and the flags it is given."""
    calls = [(span.split()[1], flags_in(span)) for span in spans_of("mlxq")]
    return [(command, flags) for command, flags in calls if command in COMMANDS or flags]


# --- Commands and flags ---------------------------------------------------------------------------------------


def test_the_readme_shows_every_command() -> None:
    assert {command for command in COMMANDS if f"`mlxq {command} " in README} == set(COMMANDS)


@pytest.mark.parametrize(("command", "flags"), shown_calls())
def test_every_call_that_is_shown_has_flags_that_exist(command: str, flags: set[str]) -> None:
    assert flags - {"-h"} <= flags_of(command)


def test_every_flag_that_is_mentioned_belongs_to_some_command_or_benchmark() -> None:
    benchmarks = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests" / "bench").glob("*.py"))
    known = set().union(*map(flags_of, COMMANDS)) | set(re.findall(r'"(--[a-z-]+)"', benchmarks))
    mentioned = set(re.findall(r"`(--[a-z-]+)", EVERYTHING))

    assert len(mentioned) > 5
    assert mentioned <= known


@pytest.mark.parametrize("call", spans_of("python -m"))
def test_every_module_that_is_shown_as_a_command_is_there_and_knows_its_flags(call: str) -> None:
    _, _, module, *_ = call.split()
    spec = find_spec(module)

    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin).read_text(encoding="utf-8")
    assert [flag for flag in flags_in(call) - {"-m"} if f'"{flag}"' not in source] == []


@pytest.mark.parametrize("call", spans_of("make"))
def test_every_target_of_make_that_is_shown_is_there(call: str) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")

    assert re.search(rf"^{re.escape(call.split()[1])}:", makefile, re.MULTILINE)


# --- Blocks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_block_is_run_or_compared_or_says_why_not(document: Path) -> None:
    assert [f"line {block.line}: {fault}" for block in blocks_of(TEXTS[document]) for fault in faults(block)] == []
    assert TEXTS[document].count("```") == 2 * len(list(blocks_of(TEXTS[document])))


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_comment_stands_right_before_its_block(document: Path) -> None:
    marks = re.findall(r"^<!-- (?!(?:fields|arguments): |end of |panels).*-->$", TEXTS[document], re.MULTILINE)

    assert len(marks) == sum(block.mark is not None for block in blocks_of(TEXTS[document]))


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_json_that_is_not_marked_is_a_request(document: Path) -> None:
    for block in blocks_of(TEXTS[document]):
        if block.language == "json" and block.mark is None:
            parse_object(json.loads(block.code), default_custom_id="none")


@pytest.mark.parametrize(
    "block",
    [
        Block(1, "bash", "true\n", None, None),
        Block(1, "console", "$ true\n", None, None),
        Block(1, "", "mlxq run\n", None, None),
        Block(1, "sh", "true\n", "skip", None),
        Block(1, "sh", "true\n", "not run", "nobody has tried"),
        Block(1, "sh", "true\n", "not run", None),
        Block(1, "sh", "true\n", "output", None),
        Block(1, "sh", "true\ntrue\n", "background", None),
        Block(1, "json", "{}\n", "exit code", "1"),
    ],
)
def test_a_block_of_which_nobody_could_tell_whether_it_is_right_is_a_fault(block: Block) -> None:
    assert list(faults(block))


def test_blocks_are_read_with_their_comments_and_lines() -> None:
    text = "One.\n\n<!-- file: a.jsonl -->\n```json\n{}\n```\n\n```sh\ntrue\nfalse\n```\n<!-- output -->\n```\n```\n"

    assert list(blocks_of(text)) == [
        Block(5, "json", "{}\n", FILE, "a.jsonl"),
        Block(9, "sh", "true\nfalse\n", None, None),
        Block(14, "", "", "output", None),
    ]


# --- Links and paths ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_link_leads_to_a_file(document: Path) -> None:
    targets = re.findall(r"\]\((?!https?://)([^)#]+)", TEXTS[document])

    assert [target for target in targets if not (document.parent / target).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_path_that_is_mentioned_is_there(document: Path) -> None:
    paths = re.findall(r"`((?:producer|worker|tests|docs|deploy|examples)/[\w./-]*)`", TEXTS[document])

    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_every_document_can_be_found_from_the_readme() -> None:
    assert {path.name for path in DOCS.glob("*.md")} == set(re.findall(r"\(docs/([\w.]+)\)", README))


def test_a_source_distribution_has_every_document_and_all_that_they_mention() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]
    paths = re.findall(r"`((?:producer|worker|tests|docs|deploy|examples|\.ci)/[\w./-]*)`", EVERYTHING)
    links = [str(document.relative_to(ROOT)) for document in DOCUMENTS]
    links += re.findall(r"\]\((?!https?://|\.\.)([^)#]+)", README)

    needed = {f"/{path.split('/')[0]}" for path in (*paths, *links)}
    assert needed <= set(settings["targets"]["sdist"]["include"])


# --- What the README promises on its first screen -------------------------------------------------------------


def test_the_first_screen_says_that_nobody_ran_this_on_a_mac() -> None:
    assert "It was never run on a Mac." in FIRST_SCREEN


def test_the_first_screen_is_short_and_its_python_shorter() -> None:
    shown = re.sub(r"^<!--.*-->\n", "", FIRST_SCREEN, flags=re.MULTILINE)
    [python] = [block for block in blocks_of(FIRST_SCREEN) if block.language == "python"]

    assert len(shown.splitlines()) <= 50
    assert sum(bool(line.strip()) for line in python.code.splitlines()) <= 5


def test_the_speed_on_the_first_screen_is_that_of_the_measurements() -> None:
    table = (DOCS / "performance.md").read_text(encoding="utf-8")
    ratios = [float(ratio) for ratio in re.findall(r"\| (\d+\.\d\d) \(", table.partition("Three rounds")[0])]

    assert len(ratios) == 16
    assert f"{min(ratios)} to {max(ratios)} times" in FIRST_SCREEN


# --- Tables that are made from the code, or checked against it ------------------------------------------------


def test_the_tables_of_fields_are_those_that_the_code_makes() -> None:
    text = (DOCS / "fields.md").read_text(encoding="utf-8")

    assert renewed(text) == text, "run: python -m mlxq.requests.field_table docs/fields.md"


def test_the_tables_have_every_field() -> None:
    text = (DOCS / "fields.md").read_text(encoding="utf-8")

    assert set(FIELDS) <= set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE))


def test_a_text_without_marks_can_not_be_renewed() -> None:
    with pytest.raises(ValueError, match="there is no"):
        renewed("no tables")


@pytest.mark.parametrize("stop_type", sorted(set(get_args(StopType)) - NEVER_IN_ANSWERS))
def test_every_reason_to_stop_is_explained_with_its_finish_reason(stop_type: StopType) -> None:
    text = (DOCS / "stopping.md").read_text(encoding="utf-8")

    assert f"| `{stop_type}` | `{FINISH_REASONS[stop_type]}` |" in text
