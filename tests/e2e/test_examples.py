"""The examples do what they say, as a reader would run them."""

from __future__ import annotations

import ast
import importlib.util
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support import datasets_stand_in
from tests.support.document_run import path_with_programs
from tests.support.documents import DOCUMENTS, NOT_RUN, ROOT, blocks_of
from tests.support.processes import MLXQ, run, running

import mlxq

EXAMPLES = ROOT / "examples"


RUN_HERE = frozenset(
    {
        "errors.py",
        "from_python.py",
        "in_a_loop.py",
        "offline.py",
        "pipeline.sh",
        "with_datasets.py",
        "with_pandas.py",
    }
)


def test_every_example_is_run_here() -> None:
    assert {path.name for path in EXAMPLES.iterdir()} == RUN_HERE


def names_used(code: str) -> set[str]:
    """The public names that a program imports and does something with."""
    tree = ast.parse(code)
    imported = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "mlxq"
        for alias in node.names
    }
    return imported & {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def test_every_public_name_is_used_by_an_example_that_tests_run() -> None:
    programs = [(EXAMPLES / name).read_text() for name in RUN_HERE if name.endswith(".py")]
    programs += [
        block.code
        for document in DOCUMENTS
        for block in blocks_of(document.read_text())
        if block.language == "python" and block.mark != NOT_RUN
    ]

    used = set().union(*map(names_used, programs))

    assert set(mlxq.__all__) - used == set()


def test_a_name_that_is_only_imported_or_only_told_of_is_not_used() -> None:
    assert names_used("from mlxq import A, B\nfrom other import C\nprint(A, C)  # B") == {"A"}


def python(name: str, **variables: str) -> subprocess.CompletedProcess[str]:
    done = run(sys.executable, str(EXAMPLES / name), **variables)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture
def served_redis(redis_url: str) -> Iterator[str]:
    """The URL of a Redis with a worker."""
    with running(*MLXQ, "worker", "--model", "demo", REDIS_URL=redis_url):
        yield redis_url


@pytest.mark.slow
def test_programs_that_ask_the_queue_print_its_answers(
    served_redis: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done = python("from_python.py", REDIS_URL=served_redis)
    *answers, summary, once_more = done.stdout.splitlines()
    assert sorted(answers) == [
        "France: The capital of France is Paris. [eos_token <|eot_id|>]",
        "Gabon: The capital of Gabon is Libreville. [eos_token <|eot_id|>]",
        "Greece: The capital of Greece is Athens. [eos_token <|eot_id|>]",
        "Romania: The capital of Romania is Bucharest. [eos_token <|eot_id|>]",
        "numbers: 1 2 3 4 5 6 7 8 [max_tokens ]",
        "until 5: 1 2 3 4 [stop_string  5]",
    ]
    assert summary == "6 answered: 1 by max_tokens, 1 by stop_string, 4 by eos_token"
    assert once_more == "once more, The capital of Gabon is Libreville. [eos_token <|eot_id|>]"

    done = python("with_pandas.py", REDIS_URL=served_redis)
    assert done.stdout.splitlines() == [
        ",country,answer,stopped_by",
        "fr,France,The capital of France is Paris.,eos_token",
        "gr,Greece,The capital of Greece is Athens.,eos_token",
        "ga,Gabon,The capital of Gabon is Libreville.,eos_token",
    ]

    monkeypatch.setenv("REDIS_URL", served_redis)
    assert in_process("in_a_loop.py", capsys) == [
        str(
            [
                ["The capital of France is Paris.", "The capital of Greece is Athens."],
                ["The capital of Gabon is Libreville."],
            ]
        ),
        "Romania: The capital of Romania is Bucharest.",
    ]


def in_process(name: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What an example prints that is run in this process, which has its imports already."""
    capsys.readouterr()
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    return capsys.readouterr().out.splitlines()


def test_the_offline_class_answers_in_the_process(capsys: pytest.CaptureFixture[str]) -> None:
    assert in_process("offline.py", capsys) == [
        "'Count from 1 to 3:' -> ' 1 2 3' (stop)",
        "'Count from 11 to 14:' -> ' 11 12 13 14' (stop)",
        " 1 2 3<|end_of_text|>",
        "Athens",
        "555",
    ]


def test_with_datasets_adds_the_columns_of_the_answers(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if importlib.util.find_spec("datasets") is None:  # no dependency, not even of the tests
        monkeypatch.setitem(sys.modules, "datasets", datasets_stand_in)

    assert in_process("with_datasets.py", capsys) == [
        str({"country": country, "answer": f"The capital of {country} is {city}.", "stopped_by": "stop"})
        for country, city in (("France", "Paris"), ("Greece", "Athens"), ("Gabon", "Libreville"))
    ]


def test_each_error_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert in_process("errors.py", capsys) == [
        "a wrong field: RequestError: mend the request: temprature",
        "no such model: ModelError: somebody has to change something; the same again would end the same way",
        "not an address: ConfigError: somebody has to change something; the same again would end the same way",
        "nobody there: QueueUnavailable: try again later, with the same batch id",
    ]


QUESTIONS = r"'%s\n' 'What is the capital of Gabon?' 'What is the capital of France?'"


@pytest.mark.slow
def test_the_pipeline_answers_in_the_order_of_its_input(tmp_path: Path) -> None:
    command = f"printf {QUESTIONS} | sh '{EXAMPLES}/pipeline.sh'"

    done = run("bash", "-euo", "pipefail", "-c", command, PATH=path_with_programs(tmp_path / "bin"))

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ['"The capital of Gabon is Libreville."', '"The capital of France is Paris."']
    assert "2 answered, 0 failed" in done.stderr


@pytest.mark.slow
def test_the_pipeline_fails_with_a_question_that_is_refused(tmp_path: Path) -> None:
    command = f"(printf {QUESTIONS}; yes word | head -n 1100 | tr '\\n' ' ') | sh '{EXAMPLES}/pipeline.sh'"

    done = run("bash", "-euo", "pipefail", "-c", command, PATH=path_with_programs(tmp_path / "bin"))

    assert done.returncode == 1
    assert "2 answered, 1 failed" in done.stderr
    assert "context_length_exceeded" in done.stderr
