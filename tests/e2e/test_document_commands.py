"""Every command that the documents show does what they say, on a real queue with the demo model."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.document_run import Reader, is_part
from tests.support.documents import DOCUMENTS, NOT_RUN, blocks_of


def runs_something(document: Path) -> bool:
    return any(block.is_command and block.mark != NOT_RUN for block in blocks_of(document.read_text()))


@pytest.mark.slow
@pytest.mark.parametrize("document", list(filter(runs_something, DOCUMENTS)), ids=lambda document: document.name)
def test_a_reader_who_types_the_blocks_of_a_document_gets_what_it_shows(
    document: Path, tmp_path: Path, redis_url: str
) -> None:
    Reader(tmp_path, redis_url).follow(blocks_of(document.read_text()))


@pytest.mark.parametrize(
    "text",
    [
        "```sh\nfalse\n```\n",
        "```sh\nfalse | cat\n```\n",
        "```sh\nfalse\ntrue\n```\n",
        "```python\nraise SystemExit(1)\n```\n",
        "<!-- exit code: 1 -->\n```sh\ntrue\n```\n",
        "```sh\necho one\n```\n<!-- output -->\n```\ntwo\n```\n",
        '```sh\necho \'{"a": 1, "b": 2}\' > out\n```\n<!-- part of: out -->\n```json\n{"a": 2}\n```\n',
        "<!-- background -->\n```sh\nfalse\n```\n",
        (
            "<!-- background -->\n```sh\ntrap 'exit 3' TERM; touch there; while :; do sleep 0.05; done\n```\n"
            "```sh\nuntil [ -e there ]; do sleep 0.05; done\n```\n"
        ),
    ],
)
def test_a_document_that_is_wrong_is_found_out(text: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        Reader(tmp_path, "redis://nowhere").follow(blocks_of(text))


def test_a_document_that_is_right_is_followed_to_its_end(tmp_path: Path) -> None:
    text = (
        '<!-- file: in -->\n```json\n{"a": [{"b": 1, "c": 2}], "d": 3}\n```\n'
        "```sh\ncp in out\n```\n"
        '<!-- part of: out -->\n```json\n{"a": [\n  {"c": 2}]}\n```\n'
        "<!-- exit code: 2 -->\n```python\nraise SystemExit(2)\n```\n"
        "<!-- not run: needs a Mac -->\n```sh\nfalse\n```\n"
        "```sh\nwc -l < out\n```\n<!-- output -->\n```\n1\n```\n"
    )

    Reader(tmp_path, "redis://nowhere").follow(blocks_of(text))


@pytest.mark.parametrize(
    ("shown", "whole"),
    [({"a": 1}, {"b": 1}), ({"a": 1}, {"a": 2}), ([1], [1, 2]), ([{"a": 1}], [{"a": 2}]), ({"a": 1}, [1]), ({}, None)],
)
def test_what_is_not_there_is_no_part(shown: object, whole: object) -> None:
    assert not is_part(shown, whole)
