"""Which lines of an input a rerun knows without reading them, and that all others are judged by what they say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.support.fake_worker import echo

from mlxq.contract import Request
from mlxq.files.input import BadLine, read_unknown
from mlxq.files.known_lines import KnownBlock, KnownLines
from mlxq.files.output.retry import Retry
from mlxq.files.output.sink import Sink
from mlxq.requests.openai import ParsedLine
from mlxq.tables.columns import Columns

Lines = list[dict[str, Any]]


class Run:
    """A run over an input whose lines are answered at once. `known` and `read` are the ids of its lines, by whether
    they were known; `asked` those that had to be answered; `refused` has the messages of bad lines."""

    def __init__(
        self, folder: Path, name: str = "in.jsonl", answer: Any = echo, *, sink: Any = None, **how: Any
    ) -> None:
        self.known: list[str] = []
        self.read: list[str] = []
        self.asked: list[str] = []
        self.refused: list[str] = []
        self.kept: list[Any] = []
        known = KnownLines()
        known.expect((sink or {}).get("sampling_defaults"))
        lines = read_unknown(folder / name, known, **how)
        with Sink(folder / "out.jsonl", folder / "out.errors", known=known, **sink or {}) as self.sink:
            for line in lines:
                self._take(line, answer)
        self.tally = self.sink.tally

    def _take(self, line: ParsedLine | BadLine | KnownBlock, answer: Any) -> None:
        if isinstance(line, KnownBlock):
            self.known += line.custom_ids
            self.kept += line.kept
            self.sink.skip_block(line)
        elif isinstance(line, BadLine):
            self.refused.append(line.error.message)
            self.sink.refuse(line)
        else:
            self.read.append(line.request.custom_id)
            if not self.sink.skip_request(line):
                self.asked.append(line.request.custom_id)
                self.sink.write(answer(line.request, "job"), mark=line.mark)


def write(folder: Path, *lines: dict[str, Any]) -> None:
    (folder / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def numbered(count: int) -> Lines:
    return [{"custom_id": f"r{number}", "prompt": f"p{number}", "user": "u"} for number in range(count)]


def test_a_line_that_stands_there_as_before_is_not_read_again_and_counts_as_skipped(tmp_path: Path) -> None:
    write(tmp_path, *numbered(600))
    first, second = Run(tmp_path), Run(tmp_path)
    assert (first.known, len(first.asked)) == ([], 600)
    assert (second.known, second.read) == ([f"r{i}" for i in range(600)], [])
    assert (second.tally.skipped, second.sink.summary().models) == (600, (("echo", 600),))
    assert second.sink.summary().unasked == 0


def test_a_line_that_changed_is_judged_by_what_it_says(tmp_path: Path) -> None:
    # given answers to four lines, of which one changes its prompt, one its label, one its spelling
    lines = numbered(4)
    write(tmp_path, *lines)
    Run(tmp_path)
    lines[1] |= {"prompt": "another"}
    lines[2] |= {"user": "another"}
    lines[3] |= {"temperature": 1.0}
    write(tmp_path, {"custom_id": "new", "prompt": "n"}, *lines)

    # when
    run = Run(tmp_path)

    # then all but one are read, and only what asks for something else is asked again
    assert run.known == ["r0"]
    assert run.asked == ["new", "r1"]
    assert (run.tally.skipped, run.tally.changed) == (3, 1)


@pytest.mark.parametrize(
    ("how", "asked"),
    [
        ({"defaults": {"top_p": 0.5}}, ["r0", "r1"]),
        ({"defaults": {"user": "u"}}, []),
        ({"columns": Columns(prompt="prompt")}, []),
        ({"columns": Columns(prompt="user")}, ["r0", "r1"]),
        ({"allow_unknown": True}, []),
    ],
)
def test_other_options_have_every_line_read(tmp_path: Path, how: dict[str, Any], asked: list[str]) -> None:
    write(tmp_path, *numbered(2))
    Run(tmp_path)
    run = Run(tmp_path, **how)
    assert (run.known, run.read, run.asked) == ([], ["r0", "r1"], asked)


def test_what_is_to_be_asked_again_is_no_known_line(tmp_path: Path) -> None:
    write(tmp_path, *numbered(2))

    def cut(request: Any, job_id: str) -> dict[str, Any]:
        line = echo(request, job_id)
        stop = {"type": "deadline" if request.custom_id == "r0" else "max_tokens"}
        line["response"]["body"]["choices"][0] |= {"finish_reason": "length", "stop_details": stop}
        line["response"]["body"]["mlxq"]["default_max_tokens"] = 8
        return line

    Run(tmp_path, answer=cut, sink={"default_max_tokens": 8})
    # One was cut off; the other is whole, unless its ends or its limit are to be others.
    assert Run(tmp_path, answer=cut, sink={"default_max_tokens": 8}).known == ["r1"]
    assert Run(tmp_path, answer=cut, sink={"retry": Retry.read(("length",), None)}).known == []
    assert Run(tmp_path, answer=cut, sink={"default_max_tokens": 16}).asked == ["r0", "r1"]


def test_lines_without_ids_and_rows_of_tables_are_known_too(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("one\n\ntwo\none\n")
    ids = Run(tmp_path, "in.txt").asked
    again = Run(tmp_path, "in.txt")
    assert (again.known, again.read) == (ids[:2], [ids[2]])  # of lines that are alike the second is read
    assert (ids[2], again.tally.skipped) == (f"{ids[0]}-2", 3)

    (tmp_path / "in.csv").write_text('number,prompt\n1,"a\nb"\n2,ü\n')
    columns = Columns(prompt="prompt", id="number", keep=("prompt",))
    assert Run(tmp_path, "in.csv", columns=columns).asked == ["1", "2"]
    again = Run(tmp_path, "in.csv", columns=columns)
    assert (again.known, again.kept) == (["1", "2"], [{"prompt": "a\nb"}, {"prompt": "ü"}])


def test_an_id_that_is_used_twice_is_refused_whether_its_line_is_known_or_not(tmp_path: Path) -> None:
    lines = numbered(3)
    write(tmp_path, *lines)
    Run(tmp_path)
    write(tmp_path, *lines, lines[1], {"custom_id": "r2", "prompt": "p9"})
    run = Run(tmp_path)
    assert (run.known, run.asked) == (["r0", "r1", "r2"], [])
    assert [message.partition(":")[0] for message in run.refused] == [
        "line 4 has the custom_id of line 2",
        "line 5 has the custom_id of line 3",
    ]


def test_nothing_is_known_where_an_id_has_two_answers(tmp_path: Path) -> None:
    # given what a killed run may leave: r1 was answered, then its line changed and was answered again
    lines, output = numbered(2), tmp_path / "out.jsonl"
    write(tmp_path, *lines)
    Run(tmp_path)
    older = output.read_text()
    write(tmp_path, lines[0], {"custom_id": "r1", "prompt": "newer"})
    assert Run(tmp_path).asked == ["r1"]
    output.write_text(older + output.read_text())

    # then the line as it first was isn't taken for what its id has an answer to
    write(tmp_path, *lines)
    run = Run(tmp_path)
    assert (run.known, run.asked) == ([], ["r1"])


def test_lines_are_read_again_where_something_else_would_be_filled_in_now(tmp_path: Path) -> None:
    write(tmp_path, {"custom_id": "a", "prompt": "p"}, {"custom_id": "b", "prompt": "p", "temperature": 0.5})
    before, now = {"temperature": 0.6, "top_k": 20.0}, {"temperature": 0.6, "top_k": 40.0}

    def filled(request: Request, job_id: str) -> dict[str, Any]:
        line = echo(request, job_id)
        own = {name: value for name, value in before.items() if name in request.left_out}
        line["response"]["body"]["mlxq"] |= {"generation_config": "auto", "sampling_defaults": own}
        return line

    first = Run(tmp_path, answer=filled, sink={"sampling_defaults": before})
    same = Run(tmp_path, sink={"sampling_defaults": before})
    unknown = Run(tmp_path)
    other = Run(tmp_path, sink={"sampling_defaults": now})

    assert (first.asked, same.known, same.read) == (["a", "b"], ["a", "b"], [])
    assert (unknown.read, unknown.asked) == (["a", "b"], [])
    assert (other.read, other.asked) == (["a", "b"], ["a", "b"])
