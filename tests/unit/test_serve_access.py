"""Who may use `mlxq serve`: what a file of keys may hold, and which addresses need one."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlxq.errors import ConfigError, InputFileError
from mlxq.serve.api.access import read_keys
from mlxq_worker.commands.serve import is_loopback

KEY, OTHER = "sk-1111222233334444", "sk-fedcba9876543210"


def written(folder: Path, text: str) -> Path:
    path = folder / "keys"
    path.write_text(text)
    return path


def test_each_line_is_a_name_and_its_key(tmp_path: Path) -> None:
    keys = read_keys(written(tmp_path, f"# ours\n\nalice {KEY}\n  bob.smith-2\t{OTHER}  \nalice {KEY}x\n"))

    assert len(keys) == 3
    assert [keys.name_of(key) for key in (KEY, OTHER, f"{KEY}x")] == ["alice", "bob.smith-2", "alice"]
    assert [keys.name_of(key) for key in ("", KEY[:-1], f"{KEY} ", "sk-\u00e4\udcff")] == [None] * 4


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "has no keys"),
        ("# alice sk-0123456789abcdef\n", "has no keys"),
        (f"{KEY}\n", "line 1 of .* is not a name and a key"),
        (f"alice\n{KEY}\n", "line 1 of .* is not a name and a key"),
        (f"alice {KEY} {OTHER}\n", "line 1 of .* is not a name and a key"),
        ("alice short\n", "line 1 of .* is shorter than 16 characters"),
        (f"alice {KEY}\nbob {KEY}\n", "line 2 of .* is there twice"),
        ("alice " + "\u00e4" * 20, "line 1 of .* is not a name and a key"),
    ],
)
def test_a_file_of_keys_that_is_wrong_is_named_by_its_line_and_never_by_a_key(
    text: str, fault: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=fault) as caught:
        read_keys(written(tmp_path, text))

    assert KEY not in str(caught.value)
    assert "short\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_an_error_of_ours(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match="can't read"):
        read_keys(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("host", "is_ours"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.5", False),
        ("my-mac.local", False),
        ("", False),
    ],
)
def test_only_this_machines_own_addresses_need_no_keys(host: str, is_ours: bool) -> None:
    assert is_loopback(host) is is_ours
