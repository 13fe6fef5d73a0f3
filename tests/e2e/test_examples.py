"""The examples do what they say, as a reader would run them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.document_run import path_with_programs
from tests.support.documents import ROOT
from tests.support.processes import MLXQ, run, running

EXAMPLES = ROOT / "examples"


def test_every_example_is_run_here() -> None:
    assert {path.name for path in EXAMPLES.iterdir()} == {"from_python.py", "with_pandas.py", "pipeline.sh"}


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
def test_from_python_prints_answers_and_why_they_stopped(served_redis: str) -> None:
    done = python("from_python.py", REDIS_URL=served_redis)

    assert sorted(done.stdout.splitlines()) == [
        "France: The capital of France is Paris. [eos_token <|eot_id|>]",
        "Gabon: The capital of Gabon is Libreville. [eos_token <|eot_id|>]",
        "Greece: The capital of Greece is Athens. [eos_token <|eot_id|>]",
        "Romania: The capital of Romania is Bucharest. [eos_token <|eot_id|>]",
        "numbers: 1 2 3 4 5 6 7 8 [max_tokens ]",
        "until 5: 1 2 3 4 [stop_string  5]",
    ]


@pytest.mark.slow
def test_with_pandas_puts_each_answer_beside_its_question(served_redis: str) -> None:
    done = python("with_pandas.py", REDIS_URL=served_redis)

    assert done.stdout.splitlines() == [
        ",country,answer,stopped_by",
        "fr,France,The capital of France is Paris.,eos_token",
        "gr,Greece,The capital of Greece is Athens.,eos_token",
        "ga,Gabon,The capital of Gabon is Libreville.,eos_token",
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
