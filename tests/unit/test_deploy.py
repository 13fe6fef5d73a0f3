"""`mlxq deploy`: the files of deploy/, and what stands in them once they are filled in."""

from __future__ import annotations

import configparser
import plistlib
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from tests.support.documents import ROOT

from mlxq.cli import main
from mlxq.deploying.files import IN_SOURCES, TEMPLATES, Kind
from mlxq_worker.commands.worker_options import WORKER_OPTIONS
from mlxq_worker.config import WorkerConfig, variable_of


def printed(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["deploy", *arguments])


@pytest.mark.parametrize("kind", TEMPLATES)
def test_without_options_it_is_the_file_of_the_repository(kind: Kind) -> None:
    text = (ROOT / "deploy" / TEMPLATES[kind].path).read_text(encoding="utf-8")

    assert printed(kind).stdout == text
    assert all(text.count(example) for example in TEMPLATES[kind].examples.values())


def test_every_file_in_deploy_is_printed_by_it() -> None:
    files = {str(path.relative_to(IN_SOURCES)) for path in IN_SOURCES.rglob("*") if path.is_file()}

    assert files == {template.path for template in TEMPLATES.values()} | {
        f"acl/{role}.acl" for role in ("producer", "worker", "observer")
    }


def test_a_launchd_agent_has_the_values_and_the_keys_that_a_worker_needs() -> None:
    text = printed("launchd", "--model", "/Models/A & B", "--user", "ann", "--url", "redis://:a<b@q:6379/0").stdout

    agent: dict[str, Any] = plistlib.loads(text.encode())
    environment = agent["EnvironmentVariables"]
    assert environment["MLXQ_MODEL"] == "/Models/A & B"
    assert environment["MLXQ_URL"] == "redis://:a<b@q:6379/0"
    assert agent["ProgramArguments"] == ["/Users/ann/mlxq/bin/mlxq", "worker"]
    assert agent["StandardErrorPath"].startswith("/Users/ann/")
    assert agent["RunAtLoad"]
    assert agent["KeepAlive"] == {"SuccessfulExit": False}
    assert agent["ProcessType"] == "Interactive"
    assert agent["ExitTimeOut"] > float(environment["MLXQ_GRACE_S"]) + 20
    assert set(environment) <= set(map(variable_of, WORKER_OPTIONS)) | {"MLXQ_URL"}
    assert WorkerConfig.from_env(environment).grace_s == 30


def test_a_systemd_unit_has_the_values_and_escapes_what_systemd_would_read() -> None:
    text = printed("systemd", "--model", "org/50%-4bit", "--home", "/srv/mlxq").stdout

    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read_string(text)
    service = unit["Service"]
    assert service["Environment"] == "MLXQ_MODEL=org/50%%-4bit"
    assert service["ExecStart"] == "/srv/mlxq/venv/bin/mlxq worker"
    assert service["ReadWritePaths"] == "/srv/mlxq"
    assert service["KillMode"] == "mixed"
    assert service["RestartPreventExitStatus"] == "2"
    assert "/var/lib/mlxq" not in text


def test_a_prometheus_scrapes_the_worker_that_was_named() -> None:
    config = yaml.safe_load(printed("prometheus", "--worker-address", "mac.local:9401").stdout)

    assert config["scrape_configs"][0]["static_configs"][0]["targets"] == ["mac.local:9401"]
    assert config["rule_files"] == ["alerts.yml"]


def test_the_compose_file_keeps_what_it_is_given() -> None:
    services = yaml.safe_load(printed("compose").stdout)["services"]

    assert "queue:/data" in services["queue"]["volumes"]
    assert "./redis.conf:/etc/mlxq/redis.conf:ro" in services["queue"]["volumes"]
    assert services["queue"]["ports"] == ["127.0.0.1:6379:6379"]
    assert "maxmemory-policy noeviction" in printed("redis").stdout


def test_a_variable_counts_where_there_is_a_place_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLXQ_MODEL", "org/of-all-commands")

    assert "MLXQ_MODEL=org/of-all-commands" in printed("systemd").stdout
    assert printed("compose").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("systemd", "--model", "/My Models/x"), "blanks"),
        (("systemd", "--model", "a\nExecStart=/bin/evil"), "blanks"),
        (("launchd", "--model", "a\nb"), "control characters"),
        (("compose", "--model", "x"), "compose has no place for --model: it takes no options"),
        (("systemd", "--role", "worker"), "no place for --role"),
        (("acl",), "acl needs --role"),
        (("kubernetes",), "is not one of"),
    ],
)
def test_what_a_file_cannot_hold_is_refused_by_name(arguments: tuple[str, ...], words: str) -> None:
    result = printed(*arguments)

    assert result.exit_code == 2
    assert words in result.stderr
