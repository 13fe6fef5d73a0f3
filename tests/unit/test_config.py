"""The worker's configuration: read from the environment in one place, checked when built."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest

from mlxq.errors import ConfigError
from mlxq_worker.config import EngineConfig, WorkerConfig, to_bytes
from mlxq_worker.decoding.memory_watch import machine_bytes


def test_the_defaults_are_those_of_the_documentation() -> None:
    config = WorkerConfig.from_env({"MLXQ_MODEL": "demo"})

    assert (config.queues, config.url) == (("mlxq",), "redis://localhost:6379/0")
    assert (config.engine.max_num_seqs, config.claim_ahead) == (None, 4)
    assert (config.generation_config, config.lease_s, config.grace_s) == ("auto", 90.0, 30.0)


def test_every_variable_reaches_its_field() -> None:
    config = WorkerConfig.from_env(
        {
            "MLXQ_MODEL": "m",
            "MLXQ_QUEUE": "fast slow",
            "MLXQ_URL": "redis://here:1/0",
            "MLXQ_BURST": "yes",
            "MLXQ_MAX_NUM_SEQS": "8",
            "MLXQ_MAX_NUM_BATCHED_TOKENS": "256",
            "MLXQ_MAX_PREFIX_BYTES": "0",
            "MLXQ_LONGEST_FIRST": "1",
            "MLXQ_DEFAULT_MAX_TOKENS": "10",
            "MLXQ_EXTRA_EOS_TOKEN": "<a> <b>",
            "MLXQ_ALLOW_NO_EOS": "1",
            "MLXQ_CLAIM_AHEAD": "3",
            "MLXQ_LEASE_S": "4.5",
            "MLXQ_GRACE_S": "0",
            "MLXQ_MAINTENANCE_S": "7",
            "MLXQ_STEP_TIMEOUT_S": "60",
        }
    )

    assert config == WorkerConfig(
        model="m",
        queues=("fast", "slow"),
        url="redis://here:1/0",
        burst=True,
        default_max_tokens=10,
        extra_eos_tokens=("<a>", "<b>"),
        allow_no_eos=True,
        claim_ahead=3,
        lease_s=4.5,
        grace_s=0.0,
        maintenance_s=7.0,
        step_timeout_s=60.0,
        engine=EngineConfig(max_num_seqs=8, max_num_batched_tokens=256, max_prefix_bytes=0, longest_first=True),
    )


def test_redis_url_is_honoured_unless_there_is_a_more_specific_one() -> None:
    env = {"MLXQ_MODEL": "m", "REDIS_URL": "redis://general"}

    assert WorkerConfig.from_env(env).url == "redis://general"
    assert WorkerConfig.from_env(env | {"MLXQ_URL": "redis://specific"}).url == "redis://specific"


def test_given_values_win_and_none_is_not_given() -> None:
    env = {"MLXQ_MODEL": "m", "MLXQ_MAX_NUM_SEQS": "8", "MLXQ_GRACE_S": "9"}

    config = WorkerConfig.from_env(env, max_num_seqs=4, grace_s=None)

    assert (config.engine.max_num_seqs, config.grace_s) == (4, 9.0)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("MLXQ_MAX_NUM_SEQS", "many"),
        ("MLXQ_MAX_NUM_SEQS", "0"),
        ("MLXQ_MAX_NUM_BATCHED_TOKENS", "-1"),
        ("MLXQ_MAX_NUM_BATCHED_TOKENS", "most"),
        ("MLXQ_MAX_PREFIX_BYTES", "-1"),
        ("MLXQ_LONGEST_FIRST", "perhaps"),
        ("MLXQ_LEASE_S", "soon"),
        ("MLXQ_LEASE_S", "0.1"),
        ("MLXQ_LEASE_S", "91"),
        ("MLXQ_LEASE_S", "nan"),
        ("MLXQ_GRACE_S", "-1"),
        ("MLXQ_GRACE_S", "nan"),
        ("MLXQ_MAINTENANCE_S", "0"),
        ("MLXQ_STEP_TIMEOUT_S", "0"),
        ("MLXQ_MEMORY_LIMIT", "plenty"),
        ("MLXQ_MEMORY_LIMIT", "0GB"),
        ("MLXQ_MEMORY_LIMIT", "150%"),
        ("MLXQ_WIRED_LIMIT", "some"),
        ("MLXQ_WIRED_LIMIT", "0"),
        ("MLXQ_KV_BITS", "4"),
        ("MLXQ_MAX_JOBS", "0"),
        ("MLXQ_MAX_GENERATED_TOKENS", "-1"),
        ("MLXQ_BURST", "maybe"),
        ("MLXQ_CLAIM_AHEAD", "0"),
        ("MLXQ_DEFAULT_MAX_TOKENS", "1.5"),
    ],
)
def test_a_bad_value_is_an_error_that_names_its_variable(variable: str, value: str) -> None:
    with pytest.raises(ConfigError, match=variable):
        WorkerConfig.from_env({"MLXQ_MODEL": "m", variable: value})


def test_a_missing_model_is_an_error_that_says_how_to_name_one() -> None:
    with pytest.raises(ConfigError, match="MLXQ_MODEL"):
        WorkerConfig.from_env({})


def test_a_configuration_never_changes() -> None:
    config = WorkerConfig(model="m")

    with pytest.raises(FrozenInstanceError):
        config.model = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1234", 1234),
        ("24GB", 24 * 10**9),
        ("24 gib", 24 * 2**30),
        ("1.5G", 1_500_000_000),
        ("512KiB", 2**19),
        ("10B", 10),
    ],
)
def test_sizes_are_read_in_decimal_and_binary_units(text: str, size: int) -> None:
    assert to_bytes(text) == size


def test_a_percentage_is_of_the_machines_memory() -> None:
    assert to_bytes("50%") == round(machine_bytes() / 2)


@pytest.mark.parametrize("text", ["", "GB", "24XB", "-1GB", "1e9", "50 percent", "1%B"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        to_bytes(text)


def test_the_size_of_a_step_is_measured_unless_it_is_given() -> None:
    env = {"MLXQ_MODEL": "m", "MLXQ_MAX_NUM_BATCHED_TOKENS": "64"}

    assert EngineConfig().max_num_batched_tokens == "auto"
    assert WorkerConfig.from_env(env, max_num_batched_tokens="auto").engine.max_num_batched_tokens == "auto"
    assert WorkerConfig.from_env(env).engine.max_num_batched_tokens == 64
