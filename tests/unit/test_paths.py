"""The paths that a command is given: how long the files are, and which of them are one."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.result_files import request_file

from mlxq.errors import ConfigError, InputFileError
from mlxq.files.paths import count_lines, refuse_same_file


@pytest.mark.parametrize(("content", "count"), [("", 0), ("a", 1), ("a\n", 1), ("a\n\nb", 3)])
def test_lines_are_counted_with_or_without_a_last_newline(content: str, count: int, tmp_path: Path) -> None:
    assert count_lines(request_file(tmp_path, content)) == count


@pytest.mark.parametrize("path", ["/dev/null", "-"])
def test_what_is_no_regular_file_has_no_line_count(path: str) -> None:
    assert count_lines(path) is None


def test_counting_the_lines_of_a_missing_file_names_it(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match=r"missing\.jsonl: No such file"):
        count_lines(tmp_path / "missing.jsonl")


def test_two_names_of_one_file_are_refused(tmp_path: Path) -> None:
    # given a file, a link to it, and a file that doesn't exist yet
    path = request_file(tmp_path, "")
    link = tmp_path / "link"
    link.symlink_to(path)
    new = tmp_path / "new"

    # then
    for pair in [(path, path), (path, link), (new, tmp_path / "x" / ".." / "new")]:
        with pytest.raises(ConfigError, match="--input and --output are the same file"):
            refuse_same_file({"--input": pair[0], "--output": pair[1]})
    refuse_same_file({"--input": path, "--output": new, "--error-file": tmp_path / "errors"})
    refuse_same_file({"--input": "-", "--output": "-"})
