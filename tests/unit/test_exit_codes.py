"""What exit codes promise, where others rely on it: the service files and the README say what the errors say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from mlxq.cli import main
from mlxq.errors import ConfigError, LoginRefused, MlxqError, ModelError, QueueUnavailable, WorkerFailed

ROOT = Path(__file__).parents[2]


def test_systemd_restarts_what_may_do_better_the_next_time_and_nothing_else() -> None:
    service = (ROOT / "deploy" / "mlxq-worker.service").read_text()
    [prevented] = re.findall(r"^RestartPreventExitStatus=(.*)$", service, re.MULTILINE)

    assert re.search(r"^Restart=on-failure$", service, re.MULTILINE)
    assert {error.exit_code for error in (ConfigError, ModelError, LoginRefused)} == {int(prevented)}
    assert not {error.exit_code for error in (QueueUnavailable, WorkerFailed, MlxqError)} & {0, int(prevented)}


def test_the_readme_lists_every_exit_code_of_an_error() -> None:
    _, _, table = (ROOT / "README.md").read_text().partition("| exit code |")
    table = table.partition("\n\n")[0]
    listed = {int(code) for code in re.findall(r"^\| (\d) \|", table, re.MULTILINE)}

    assert listed == {0, *(error.exit_code for error in (MlxqError, *_all_kinds(MlxqError)))}


@pytest.mark.parametrize(
    "command",
    [
        ["bench", "--model", "{nothing}"],
        ["bench", "--adapter-path", "{folder}"],
        ["eos", "{nothing}"],
        ["eos", "demo", "--extra-eos-token", "<|eot|>"],
        ["inspect", "{nothing}"],
        ["inspect", "demo", "--tool-call-parser", "nobodys"],
    ],
    ids=" ".join,
)
def test_a_command_that_can_not_use_the_model_says_that_the_same_again_will_not_help(
    command: list[str], tmp_path: Path
) -> None:
    words = [word.format(folder=tmp_path, nothing=tmp_path / "nothing") for word in command]

    result = CliRunner().invoke(main, words)

    assert result.exit_code == ModelError.exit_code
    assert "Error: " in result.stderr
    assert "Traceback" not in result.output


def _all_kinds(kind: type[MlxqError]) -> list[type[MlxqError]]:
    return [each for child in kind.__subclasses__() for each in (child, *_all_kinds(child))]
