"""`mlxq enqueue --route`: each request into the queue of the model that it names, or refused with those there are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from redis import Redis

from mlxq import keys
from mlxq.cli import enqueue as enqueue_module
from mlxq.cli import main
from mlxq.queue.client import Client
from mlxq.queue.overview import queue_states
from mlxq.queue.routing import announce, known_models

NOW = 1_700_000_000.0
MODELS = ("small", "org/poet-1.5", "org/poet-1-5")


def enqueue(url: str, folder: Path, *lines: dict[str, object] | str, options: tuple[str, ...] = ()) -> Result:
    file = folder / "in.jsonl"
    file.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    words = ("enqueue", "-i", str(file), "--route", "--url", url, "--batch-id", "night", *options)
    return CliRunner().invoke(main, words)


def asks(custom_id: str, model: object) -> dict[str, object]:
    return {"custom_id": custom_id, "prompt": "Hi", "model": model}


def test_each_request_goes_to_the_queue_of_its_model_in_a_batch_of_that(
    connection: Redis, redis_url: str, tmp_path: Path
) -> None:
    announce(connection, MODELS, NOW)

    lines = [asks(f"r{index}", MODELS[index % 3]) for index in range(6)]
    result = enqueue(redis_url, tmp_path, *lines)
    again = enqueue(redis_url, tmp_path, *lines, asks("more", "small"))

    ids = result.stdout.split()
    client = Client(connection)
    assert (result.exit_code, again.exit_code) == (0, 0), result.stderr
    assert "6 requests enqueued, 0 lines refused" in result.stderr
    assert "1 request enqueued" in again.stderr
    assert ids[0] == "night-small"
    assert len(set(ids)) == 3  # also of names that an id can't tell apart
    assert [client.batch(each).queue for each in ids] == [f"mlxq:{model}" for model in MODELS]
    assert [client.batch(each).counts().total for each in ids] == [3, 2, 2]
    assert all(client.batch(each).counts().sealed for each in ids)
    states, _ = queue_states(connection, [keys.model_queue(model) for model in MODELS])
    assert [state.waiting for state in states] == [3, 2, 2]


def test_a_request_for_no_model_or_an_unknown_one_is_refused_with_the_known_ones(
    connection: Redis, redis_url: str, tmp_path: Path
) -> None:
    announce(connection, ["small", "large"], NOW)

    result = enqueue(redis_url, tmp_path, asks("a", "small"), asks("b", "smal"), asks("c", None), '{"prompt": 3')

    assert result.exit_code == 1
    assert result.stdout.split() == ["night-small"]
    assert "request b: no worker serves the model 'smal'; known ones are large, small" in result.stderr
    assert "request c: the request names no model; known ones are large, small" in result.stderr
    assert "1 request enqueued, 3 lines refused" in result.stderr


def test_a_single_prompt_is_routed_and_a_queue_beside_that_is_an_error(connection: Redis, redis_url: str) -> None:
    announce(connection, ["small"], NOW)
    words = ("enqueue", "--prompt", "Hi", "--route", "--url", redis_url)

    good = CliRunner().invoke(main, [*words, "--set", "model=small"])
    unknown = CliRunner().invoke(main, [*words, "--set", "model=x"])
    both = CliRunner().invoke(main, [*words, "--queue", "q"])

    assert (good.exit_code, connection.llen("rq:queue:mlxq:small")) == (0, 1)
    assert "no worker serves the model 'x'; known ones are small" in unknown.output
    assert both.exit_code == 2
    assert "--route takes the queue from each request's model: leave --queue out" in both.output


def test_without_any_model_it_says_what_to_start(
    connection: Redis, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(enqueue_module, "ANNOUNCED_S", 0.0)

    result = enqueue(redis_url, tmp_path, asks("a", "small"))

    assert result.exit_code == 1
    assert "start one with `mlxq worker --models FILE`" in result.stderr


def test_a_model_is_forgotten_a_week_after_anybody_announced_it_and_a_strangers_key_makes_room(
    connection: Redis,
) -> None:
    connection.set(keys.MODELS, "a stranger's")
    announce(connection, ["old", "kept"], NOW)
    announce(connection, ["kept", "new"], NOW + keys.MODEL_TTL_S + 1)

    assert known_models(connection) == ("kept", "new")
    assert connection.get(keys.moved(keys.MODELS)) == b"a stranger's"
