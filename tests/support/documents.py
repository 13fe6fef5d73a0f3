"""Markdown documents as tests see them: their code blocks, and what an invisible comment before a block says of it.

The comments are these, each on the line before its block:

    <!-- not run: needs a network -->   the reason must be one of `REASONS`
    <!-- background -->                 a command that runs until the document ends, as in a second terminal
    <!-- exit code: 1 -->               how the commands end, if not with 0
    <!-- file: in.jsonl -->             the block is that file, for the blocks after it
    <!-- output -->                     what the block before has printed
    <!-- part of: out.jsonl -->         a JSON object that some line of that file has, with whatever else

Knows Markdown, and runs nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENTS = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))

NOT_RUN = "not run"
BACKGROUND = "background"
EXIT_CODE = "exit code"
FILE = "file"
OUTPUT = "output"
PART_OF = "part of"
MARKS = frozenset({NOT_RUN, BACKGROUND, EXIT_CODE, FILE, OUTPUT, PART_OF})

COMMANDS = frozenset({"sh", "python"})
"""Languages of blocks that are run."""
DATA = frozenset({"json", ""})
"""Languages of blocks that are shown: without a mark, json is a request, one or one per line."""

REASONS = frozenset({"needs a Mac", "needs a network", "needs the Hub", "takes many minutes"})
"""Why a block may be left out."""

_BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>[a-z ]+)(?:: (?P<value>.+))? -->\n)?^```(?P<language>.*)\n(?P<code>(?:.*\n)*?)^```$",
    re.MULTILINE,
)


@dataclass(frozen=True, slots=True)
class Block:
    """One block of code. `line` is the number of its first line; `mark` and `value` are those of its comment."""

    line: int
    language: str
    code: str
    mark: str | None
    value: str | None

    @property
    def is_command(self) -> bool:
        return self.language in COMMANDS


def blocks_of(text: str) -> Iterator[Block]:
    """The blocks of a document, in order."""
    for found in _BLOCK.finditer(text):
        line = text.count("\n", 0, found.start("code")) + 1
        yield Block(line, found["language"], found["code"], found["mark"], found["value"])


def faults(block: Block) -> Iterator[str]:
    """What keeps a test from telling whether the block is right."""
    if block.language not in COMMANDS | DATA:
        yield f"blocks in {block.language!r} are neither run nor compared; use one of {sorted(COMMANDS | DATA)}"
    if block.mark is not None and block.mark not in MARKS:
        yield f"no block can be marked {block.mark!r}"
    if block.mark == NOT_RUN and block.value not in REASONS:
        yield f"{block.value!r} is no reason not to run a block; those are {sorted(REASONS)}"
    if block.mark is None and block.language == "":
        yield f"text must be marked {OUTPUT!r} or {PART_OF!r}; commands are 'sh' or 'python'"
    if block.mark == BACKGROUND and len(block.code.splitlines()) != 1:
        yield "what runs in the background must be one command on one line"
    if block.mark in (NOT_RUN, BACKGROUND, EXIT_CODE) and not block.is_command:
        yield f"only commands can be marked {block.mark!r}"
    if block.mark in (FILE, OUTPUT, PART_OF) and block.is_command:
        yield f"a command can't be marked {block.mark!r}"
