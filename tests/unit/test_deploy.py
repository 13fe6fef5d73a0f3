"""`mlxq deploy`: the files of deploy/, and what stands in them once they are filled in."""

from __future__ import annotations

import configparser
import gzip
import plistlib
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from tests.support.documents import ROOT
from tests.support.programs import program_on_path

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


@pytest.mark.parametrize("kind", ["launchd", "launchd-daemon"])
def test_a_launchd_job_has_the_values_and_the_keys_that_a_worker_needs(kind: str) -> None:
    text = printed(kind, "--model", "/Models/A & B", "--user", "ann", "--url", "redis://:a<b@q:6379/0").stdout

    agent: dict[str, Any] = plistlib.loads(text.encode())
    assert TEMPLATES[kind].path == f"{agent['Label']}.plist"  # type: ignore[index]
    assert agent.get("UserName") == ("ann" if kind == "launchd-daemon" else None)
    environment = agent["EnvironmentVariables"]
    assert environment["MLXQ_MODEL"] == "/Models/A & B"
    assert environment["MLXQ_URL"] == "redis://:a<b@q:6379/0"
    assert agent["ProgramArguments"] == ["/Users/ann/mlxq/bin/mlxq", "worker"]
    assert agent["StandardErrorPath"].startswith("/Users/ann/")
    assert agent["RunAtLoad"]
    assert agent["KeepAlive"] == {"SuccessfulExit": False}
    assert agent["ProcessType"] == "Interactive"
    assert agent["ExitTimeOut"] > float(environment["MLXQ_GRACE_S"]) + 20
    assert set(environment) <= set(map(variable_of, WORKER_OPTIONS)) | {"MLXQ_URL", "HOME"}
    assert environment.get("HOME") == ("/Users/ann" if kind == "launchd-daemon" else None)
    assert WorkerConfig.from_env(environment).grace_s == 30


def test_a_macs_log_is_packed_and_emptied_once_it_is_large_while_it_is_written_to(tmp_path: Path) -> None:
    job: dict[str, Any] = plistlib.loads(printed("launchd-logs", "--user", "ann").stdout.encode())
    *command, path = job["ProgramArguments"]
    log = tmp_path / "mlxq worker.log"
    sizes = (10, 2_000_000, *([1_500_000] * 8))

    with log.open("a", encoding="utf-8") as writer:  # launchd appends, too
        for number, size in enumerate(sizes):
            writer.write(f"{number}" + "x" * (size - 1))
            writer.flush()
            subprocess.run([*command, str(log)], check=True)
        writer.write("goes on")

    assert path == "/Users/ann/Library/Logs/mlxq-worker.log"
    assert job["StartCalendarInterval"]["Hour"] == 4
    assert log.read_text() == "goes on"
    kept = {file.name: gzip.decompress(file.read_bytes())[:1] for file in tmp_path.glob("*.gz")}
    assert kept == {f"mlxq worker.log.{age}.gz": str(10 - age).encode() for age in range(1, 8)}


@pytest.mark.parametrize("kind", ["systemd", "systemd-cuda", "systemd-serve", "systemd-redis"])
def test_systemd_finds_nothing_wrong_with_a_unit(kind: Kind, tmp_path: Path) -> None:
    program = tmp_path / "venv" / "bin" / "mlxq"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    home = ("--home", str(tmp_path)) if "home" in TEMPLATES[kind].examples else ()
    unit = tmp_path / TEMPLATES[kind].path
    unit.write_text(printed(kind, *home).stdout)

    done = subprocess.run(verify(str(unit)), capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def verify(unit: str) -> list[str]:
    """The command that has systemd look at a unit; the test is left out where there is none, but not in CI."""
    return [program_on_path("systemd-analyze"), "verify", unit]


@pytest.mark.parametrize("kind", ["systemd", "systemd-cuda"])
def test_a_systemd_unit_has_the_values_and_escapes_what_systemd_would_read(kind: str) -> None:
    text = printed(kind, "--model", "org/50%-4bit", "--home", "/srv/mlxq").stdout

    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read_string(text)
    service = unit["Service"]
    assert "Environment=MLXQ_MODEL=org/50%%-4bit" in text.splitlines()
    assert ("Environment=CUDA_VISIBLE_DEVICES=%i" in text.splitlines()) == (kind == "systemd-cuda")
    assert service["ExecStart"] == "/srv/mlxq/venv/bin/mlxq worker"
    assert service["ReadWritePaths"] == "/srv/mlxq"
    assert service["KillMode"] == "mixed"
    assert service["RestartPreventExitStatus"] == "2"
    assert "/var/lib/mlxq" not in text


def test_a_prometheus_scrapes_what_was_named() -> None:
    addresses = ("--worker-address", "mac.local:9401", "--queues-address", "queue:9400")
    config = yaml.safe_load(printed("prometheus", *addresses).stdout)

    assert [job["static_configs"][0]["targets"] for job in config["scrape_configs"]] == [
        ["mac.local:9401"],
        ["queue:9400"],
    ]
    assert config["rule_files"] == ["alerts.yml"]


def test_the_compose_file_keeps_what_it_is_given() -> None:
    services = yaml.safe_load(printed("compose").stdout)["services"]

    assert "queue:/data" in services["queue"]["volumes"]
    assert "./redis.conf:/etc/mlxq/redis.conf:ro" in services["queue"]["volumes"]
    assert services["queue"]["ports"] == ["127.0.0.1:6379:6379"]
    assert "maxmemory-policy noeviction" in printed("redis").stdout


def test_prometheus_and_grafana_come_when_they_are_asked_for_and_find_each_other() -> None:
    compose = yaml.safe_load(printed("compose").stdout)
    services = compose["services"]
    dashboards = yaml.safe_load(compose["configs"]["dashboards"]["content"])
    [source] = yaml.safe_load(compose["configs"]["datasource"]["content"])["datasources"]

    assert {name for name, service in services.items() if service.get("profiles") == ["watch"]} == {
        "prometheus",
        "grafana",
    }
    assert source["url"] == "http://prometheus:9090"
    assert {config["source"] for config in services["grafana"]["configs"]} == set(compose["configs"])
    assert f"./grafana:{dashboards['providers'][0]['options']['path']}:ro" in services["grafana"]["volumes"]
    assert "./prometheus:/etc/prometheus:ro" in services["prometheus"]["volumes"]
    assert all(port.startswith("127.0.0.1:") for service in services.values() for port in service["ports"])
    assert all("max-size" in service["logging"]["options"] for service in services.values())


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
        (("prometheus", "--worker-address", "mac:99999"), "'mac:99999' is not a port"),
        (("systemdd",), "Invalid value for 'WHAT': 'systemdd' is not one of 'launchd'"),
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
