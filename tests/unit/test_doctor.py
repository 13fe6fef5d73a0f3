"""Broken set-ups and what the doctor says of each: the finding's name, and what it tells one to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from redis import Redis
from tests.support.fake_engine import FakeEngine, FakePreparer
from tests.support.ports import free_port
from tests.support.queued_jobs import submit
from tests.support.redis_at import redis_at
from tests.support.redis_fixture import MortalRedis
from tests.support.scripted_models import Folder

from mlxq.errors import ModelError
from mlxq.queue.connect import connect
from mlxq_worker.backend import Backend
from mlxq_worker.commands.doctor import machine, model_folder, packages, queues, redis_server
from mlxq_worker.commands.doctor.command import doctor, look_at_queues
from mlxq_worker.commands.doctor.finding import Finding
from mlxq_worker.commands.doctor.rights import COMMANDS, look_at_rights
from mlxq_worker.commands.inspect import model_as_object
from mlxq_worker.decoding.memory_watch import resident_bytes
from mlxq_worker.demo import MODEL_PATH
from mlxq_worker.host.slow_states import Setting
from mlxq_worker.model.load import load_tokenizer_only

ROOT = Path(__file__).parents[2]
GIB = 2**30
SECRET = "hunter2-PASSWORD"
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>'+m.role+'\\n'+m.content+'<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
FOLDER = Folder(template=CHATML, special=("<|im_start|>", "<|im_end|>"), plain=(), eos="<|endoftext|>")


def wrong(findings: Iterable[Finding], *levels: str) -> dict[str, Finding]:
    """What is not as it should be, by name."""
    return {finding.name: finding for finding in findings if finding.level in (levels or ("warning", "problem"))}


def only(findings: Iterable[Finding]) -> Finding:
    """The one thing that is wrong."""
    [finding] = wrong(findings).values()
    return finding


def described(folder: Path) -> Iterator[Finding]:
    return model_folder.look_at_description(lambda: model_as_object(load_tokenizer_only(str(folder)), None, None))


def asked(*options: str) -> tuple[int, dict[str, Any]]:
    """The command's exit code, and its findings by name."""
    result = CliRunner().invoke(doctor, ["--json", *options])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    report = json.loads(result.stdout)
    assert report["ok"] == (result.exit_code == 0)
    return result.exit_code, {finding["name"]: finding for finding in report["findings"]}


# --- The machine ----------------------------------------------------------------------------------------------


def test_a_python_that_is_too_old() -> None:
    finding = only(packages.look_at_python((3, 10, 4)))

    assert (finding.name, finding.level) == ("python", "problem")
    assert "3.11" in finding.todo


def test_a_package_of_another_version_than_mlxq_is_made_for() -> None:
    wanted = ["rq<3.1,>=3.0", 'mlx-lm<0.33,>=0.32.2; extra == "worker"', 'mlx[cuda13]>=9; extra == "cuda"']

    finding = only(packages.look_at_packages(wanted, {"rq": "3.0.0", "mlx-lm": "0.28.1"}.get))

    assert "mlx-lm is 0.28.1" in finding.what
    assert finding.todo == 'pip install "mlx-lm<0.33,>=0.32.2"'


def test_a_package_of_workers_that_is_missing() -> None:
    finding = only(packages.look_at_packages(['llguidance>=1.9; extra == "worker"'], {}.get))

    assert "llguidance is not installed" in finding.what
    assert "mlxq[worker]" in finding.todo


def test_linux_without_openblas() -> None:
    setting = Setting(platform="linux", is_gpu=False, has_openblas=False)

    finding = only(machine.look_at_device(setting, 16 * GIB))

    assert finding.name == "speed"
    assert "libopenblas0-pthread" in finding.todo


def test_a_mac_whose_gpu_is_not_used() -> None:
    finding = only(machine.look_at_device(Setting(platform="darwin", is_gpu=False), 16 * GIB))

    assert "arm64" in finding.todo


def test_weights_that_metal_has_no_room_for() -> None:
    finding = only(machine.look_at_fit("30 in 24", 30 * GIB, 24 * GIB, has_metal=True))

    assert (finding.name, finding.level) == ("memory", "problem")
    assert "iogpu.wired_limit_mb" in finding.todo
    assert only(machine.look_at_fit("22 in 24", 22 * GIB, 24 * GIB, has_metal=False)).level == "warning"


def test_a_disk_that_is_nearly_full(tmp_path: Path) -> None:
    assert only(machine.look_at_disk(tmp_path, free_bytes=5_000_000)).name == "disk"
    assert only(machine.look_at_disk(tmp_path / "none")).level == "problem"


# --- Redis ----------------------------------------------------------------------------------------------------


def test_a_redis_that_is_not_there() -> None:
    finding = only(look_at_queues(f"redis://localhost:{free_port()}", ["mlxq"]))

    assert (finding.name, finding.level) == ("redis", "problem")
    assert "redis-server" in finding.todo


def test_an_address_that_is_none() -> None:
    assert only(look_at_queues("http://localhost", ["mlxq"])).name == "redis"


def test_a_wrong_password_which_is_not_shown(mortal_redis: MortalRedis) -> None:
    with redis_at(mortal_redis.url) as admin:
        admin.config_set("requirepass", SECRET)

    finding = only(look_at_queues(mortal_redis.url.replace("unix://", "unix://:wrong-one@"), ["mlxq"]))

    assert finding.name == "redis_login"
    assert "wrong-one" not in f"{finding.what} {finding.todo}"


def test_a_redis_that_forgets_and_one_that_throws_away(mortal_redis: MortalRedis) -> None:
    with connect(mortal_redis.url) as connection:
        forgets = wrong(redis_server.look_at_redis(connection))
        connection.config_set("maxmemory", "100mb")
        connection.config_set("maxmemory-policy", "allkeys-lru")
        throws = wrong(redis_server.look_at_redis(connection))

    assert set(forgets) == {"redis_persistence"}
    assert "appendonly" in forgets["redis_persistence"].todo
    assert "noeviction" in throws["redis_eviction"].todo


def test_a_redis_that_is_too_old_and_one_that_is_new_enough() -> None:
    assert only(redis_server.look_at_version({"redis_version": "5.0.14"})).name == "redis_version"
    assert not wrong(redis_server.look_at_version({"redis_version": "7.2.4", "valkey_version": "8.1.0"}))


def test_a_redis_that_is_nearly_full() -> None:
    finding = only(redis_server.look_at_memory({"used_memory": 950, "maxmemory": 1000}))

    assert (finding.name, "mlxq delete" in finding.todo) == ("redis_memory", True)


def test_clocks_that_differ() -> None:
    assert only(redis_server.look_at_clock(-42.0)).name == "clock"
    assert not wrong(redis_server.look_at_clock(1.0))


@pytest.fixture
def admin(mortal_redis: MortalRedis) -> Iterator[Redis]:
    with redis_at(mortal_redis.url) as connection:
        yield connection


def rule() -> list[str]:
    """The words of the rule in docs/compatibility.md."""
    text = (ROOT / "docs" / "compatibility.md").read_text(encoding="utf-8")
    _, _, rest = text.partition("    ACL SETUSER mlxq ")
    words = rest.partition("\n\n")[0].replace("\\\n", " ").split()
    return [word.replace(">PASSWORD", f">{SECRET}") for word in words]


def rights_with(admin: Redis, url: str, words: list[str]) -> dict[str, Finding]:
    admin.execute_command("ACL", "SETUSER", "mlxq", "reset", *words)
    with connect(url.replace("unix://", f"unix://mlxq:{SECRET}@")) as connection:
        found = wrong(look_at_rights(connection))
    assert admin.keys("mlxq:doctor:*") == []
    return found


def test_every_right_of_the_documents_rule_is_enough_and_each_one_less_is_named(
    admin: Redis, mortal_redis: MortalRedis
) -> None:
    words = rule()
    tried = {each[0].lower().replace(" ", "|") for each in COMMANDS} | {"multi", "exec", "discard", "subscribe"}

    assert rights_with(admin, mortal_redis.url, words) == {}
    for name in sorted(tried - {"del"}):
        found = rights_with(admin, mortal_redis.url, [word for word in words if word != f"+{name}"])
        assert "rights" in found, name
        assert f"+{name}" in found["rights"].todo.split()
    connecting = {"auth", "hello", "select", "client|info", "client|setname", "unsubscribe"}
    assert {word[1:] for word in words if word[0] == "+"} - tried == connecting


def test_keys_that_a_user_may_not_touch(admin: Redis, mortal_redis: MortalRedis) -> None:
    found = rights_with(admin, mortal_redis.url, [word for word in rule() if word != "~rq:*"])

    assert {name: finding.todo for name, finding in found.items()} == {"rights_keys": "ACL SETUSER NAME ~rq:*"}


def test_channels_that_a_user_may_not_touch(admin: Redis, mortal_redis: MortalRedis) -> None:
    found = rights_with(admin, mortal_redis.url, [word for word in rule() if word != "&rq:pubsub:*"])

    assert set(found) == {"rights_channels"}


# --- Queues ---------------------------------------------------------------------------------------------------


def test_a_queue_that_nobody_serves(connection: Redis) -> None:
    submit(connection, "one", "two")

    finding = only(queues.look_at_queue(connection, "mlxq"))

    assert (finding.name, finding.level) == ("workers", "problem")
    assert "mlxq worker" in finding.todo


def test_jobs_of_a_worker_that_is_gone(connection: Redis) -> None:
    connection.zadd("rq:wip:mlxq", {"job:execution": 1.0})

    assert only(queues.look_at_queue(connection, "mlxq")).name == "leases"


def a_worker(connection: Redis, ttl_s: int, **fields: str) -> None:
    about = {"queues": "mlxq", "state": "idle", "hostname": "mac", "pid": "1", "last_heartbeat": "now", **fields}
    connection.sadd("rq:workers", "rq:worker:w1")
    connection.hset("rq:worker:w1", mapping=about)
    connection.expire("rq:worker:w1", ttl_s)


def test_a_worker_that_is_silent_and_workers_that_are_suspended(connection: Redis) -> None:
    a_worker(connection, ttl_s=60)
    assert not wrong(queues.look_at_queue(connection, "mlxq"))

    a_worker(connection, ttl_s=20)
    assert only(queues.look_at_queue(connection, "mlxq")).name == "silent_workers"

    a_worker(connection, ttl_s=60, state="suspended")
    assert only(queues.look_at_queue(connection, "mlxq")).todo == "rq resume"


def test_jobs_that_wait_for_another_try_are_a_note(connection: Redis) -> None:
    connection.zadd("mlxq:delayed:mlxq", {"job": 9e9})
    a_worker(connection, ttl_s=60)

    assert "delayed_jobs" in wrong(queues.look_at_queue(connection, "mlxq"), "note")


def test_a_key_that_holds_something_else(connection: Redis) -> None:
    connection.set("rq:queue:mlxq", "a stranger's")
    connection.hset("mlxq:broken", "rq:queue:mlxq", "a note")

    assert set(wrong(queues.look_at_queue(connection, "mlxq"))) == {"queue", "broken_keys"}


# --- The model ------------------------------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the demo model, to break."""
    return Path(shutil.copytree(MODEL_PATH, tmp_path / "model"))


def test_a_model_that_is_whole(model: Path) -> None:
    assert not wrong([*model_folder.look_at_files(model), *described(model)])


def test_weights_that_are_pointers_of_git_lfs(model: Path) -> None:
    (model / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")

    assert "git lfs pull" in only(model_folder.look_at_files(model)).todo


def test_weights_whose_download_was_cut_off(model: Path) -> None:
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100])

    assert "download" in only(model_folder.look_at_files(model)).todo


def test_weights_of_another_format(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")

    finding = only(model_folder.look_at_files(model))

    assert "pytorch_model.bin" in finding.what
    assert "mlx_lm.convert" in finding.todo


def test_a_folder_without_a_tokenizer(model: Path) -> None:
    (model / "tokenizer.json").unlink()

    assert "tokenizer.json" in only(described(model)).what


def test_a_folder_without_a_config(model: Path) -> None:
    (model / "config.json").unlink()

    assert "config.json" in only(described(model)).what


def test_an_architecture_that_mlx_lm_does_not_have(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "model_type": "never-heard-of"}))

    assert only(described(model)).name == "model_batching"


def test_a_model_without_a_chat_template(tmp_path: Path) -> None:
    folder = Folder(template=None, special=(), plain=(), eos="<|endoftext|>").write(tmp_path / "base")

    finding = only(described(folder))

    assert (finding.name, finding.level) == ("model_chat", "warning")


def test_a_model_that_names_no_end(tmp_path: Path) -> None:
    nameless = Folder(template=CHATML, config={"eos_token_id": None}, tokenizer_config={"eos_token": None})

    finding = only(described(nameless.write(tmp_path / "endless")))

    assert (finding.name, "--extra-eos-token" in finding.todo) == ("model_eos", True)


def test_a_model_that_generates_and_three_that_do_not() -> None:
    class Raising(FakeEngine):
        def compute(self, running: list[Any]) -> None:
            raise RuntimeError("[metal] no kernel")

    def cannot_load() -> Backend:
        raise ModelError("out of memory")

    def backend(engine: FakeEngine) -> Backend:
        return Backend(FakePreparer(), lambda: engine, 4, "fake")

    assert not wrong(model_folder.look_at_generation(lambda: backend(FakeEngine())))
    assert "no kernel" in only(model_folder.look_at_generation(lambda: backend(Raising()))).what
    assert "out of memory" in only(model_folder.look_at_generation(cannot_load)).what
    assert "never comes to an end" in only(model_folder.look_at_generation(lambda: backend(FakeEngine(0)))).what


# --- The command ----------------------------------------------------------------------------------------------


def test_a_problem_is_the_exit_code(tmp_path: Path) -> None:
    well, _ = asked("--no-redis", "--no-generation", "--output-dir", str(tmp_path))
    ill, found = asked("--no-redis", "--no-generation", "--output-dir", str(tmp_path / "none"))

    assert (well, ill) == (0, 1)
    assert found["disk"]["todo"]


def test_a_model_that_is_not_there_is_one_finding(tmp_path: Path) -> None:
    code, found = asked("--no-redis", "--model", str(tmp_path / "none"), "--output-dir", str(tmp_path))

    assert (code, found["model"]["level"]) == (1, "problem")
    assert "generation" not in found


def test_the_width_of_a_worker_is_said_as_its_own_log_says_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLXQ_CACHE_DIR", str(tmp_path))
    arguments = ("--no-redis", "--no-generation", "--model", "demo", "--output-dir", str(tmp_path))

    _, roomy = asked(*arguments)
    monkeypatch.setenv("MLXQ_MEMORY_LIMIT", str(resident_bytes() + (12 << 20)))
    _, narrow = asked(*arguments)

    assert roomy["width"]["what"].startswith("32 rows at once, the most that pays on a CPU")
    assert (narrow["width"]["level"], "--memory-limit" in narrow["width"]["todo"]) == ("warning", True)


def test_a_variable_that_workers_would_refuse_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLXQ_MAX_NUM_SEQS", "many")

    code, found = asked("--no-redis", "--output-dir", str(tmp_path))

    assert (code, found["configuration"]["level"]) == (1, "problem")
    assert "MLXQ_MAX_NUM_SEQS must be an integer" in found["configuration"]["what"]


def test_a_broken_model_is_not_loaded(model: Path) -> None:
    (model / "model.safetensors").write_bytes(b"nothing")

    code, found = asked("--no-redis", "--model", str(model), "--output-dir", str(model))

    assert (code, found["model_files"]["level"], "generation" in found) == (1, "problem", False)


def test_in_words_each_finding_is_a_line_with_what_to_do_below(tmp_path: Path) -> None:
    result = CliRunner().invoke(doctor, ["--no-redis", "--no-generation", "--output-dir", str(tmp_path / "none")])

    lines = result.stdout.splitlines()
    [number] = [number for number, line in enumerate(lines) if "problem  disk: there is no directory" in line]
    assert "-> create it" in lines[number + 1]
    assert lines[-1].startswith("1 problems")


@pytest.mark.parametrize("level", ["warning", "problem"])
def test_whatever_is_wrong_says_what_to_do(level: Any) -> None:
    with pytest.raises(ValueError, match="says what to do"):
        Finding("name", level, "what")
