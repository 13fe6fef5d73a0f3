"""OpenAI's own client, unmodified, against `mlxq serve`: files, batches, lists, errors, and whose is whose."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import openai
import pytest
from openai import OpenAI
from redis import Redis
from tests.support.fake_worker import FakeWorker
from tests.support.file_runs import Files, run
from tests.support.served import (
    CHAT,
    begun,
    chat_line,
    ended,
    ids_of,
    jsonl,
    lines_of,
    openai_client,
    service,
    uploaded,
)
from tests.support.waiting import DEADLINE_S, wait_until

from mlxq.serve.api.access import KeyRing
from mlxq.serve.api.service import Limits
from mlxq.serve.work.batch_run import Rules

ALICE, BOB = "sk-alice-0123456789", "sk-bob-0123456789"


@pytest.fixture
def url(redis_url: str, tmp_path: Path) -> Iterator[str]:
    with service(redis_url, tmp_path / "data") as url:
        yield url


@pytest.fixture
def client(url: str) -> OpenAI:
    return openai_client(url)


@pytest.fixture(scope="module")
def strict_url(redis_server_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One service for all that is refused."""
    with service(redis_server_url, tmp_path_factory.mktemp("served"), rules=Rules(max_requests=4)) as url:
        yield url


@pytest.fixture(scope="module")
def strict(strict_url: str) -> OpenAI:
    return openai_client(strict_url)


def asked(url: str, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, Any]:
    """The status and the JSON of a request that OpenAI's client wouldn't send."""
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        with urlopen(Request(url + path, data=body, method=method, headers=names), timeout=DEADLINE_S) as response:
            return response.status, json.loads(response.read())
    except HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


def test_a_batch_goes_from_upload_to_answers_and_all_can_be_deleted(
    client: OpenAI, redis_url: str, tmp_path: Path
) -> None:
    with FakeWorker(redis_url):
        begin = begun(client, [chat_line(f"r{i}", f"text {i}") for i in range(20)], metadata={"for": "me"})
        done = ended(client, begin.id)

    assert (begin.status, begin.object, begin.metadata) == ("validating", "batch", {"for": "me"})
    assert done.expires_at == begin.created_at + 24 * 3600
    assert done.status == "completed"
    assert done.request_counts is not None
    assert done.request_counts.model_dump() == {"total": 20, "completed": 20, "failed": 0}
    assert done.usage is not None
    assert (done.usage.input_tokens, done.usage.output_tokens, done.usage.total_tokens) == (100, 60, 160)
    assert None not in (done.in_progress_at, done.finalizing_at, done.completed_at, done.output_file_id)
    assert (done.error_file_id, done.errors) == (None, None)
    answers = {
        line["custom_id"]: line["response"]["body"]["choices"][0]["message"]["content"]
        for line in lines_of(client, done.output_file_id)
    }
    assert answers == {f"r{i}": f"text {i}" for i in range(20)}

    output = client.files.retrieve(str(done.output_file_id))
    assert (output.purpose, output.bytes) == ("batch_output", len(client.files.content(output.id).content))
    for file in client.files.list():
        assert client.files.delete(file.id).deleted
    assert list(client.files.list()) == []
    assert list((tmp_path / "data" / "files").iterdir()) == list((tmp_path / "data" / "batches").iterdir()) == []
    assert client.batches.retrieve(done.id).status == "completed"


def test_nothing_of_a_batch_that_has_ended_stays_in_redis(client: OpenAI, connection: Redis, redis_url: str) -> None:
    with FakeWorker(redis_url):
        ended(client, begun(client, [chat_line("a")]).id)

    assert [key for key in connection.scan_iter("*") if b"batch_" in key] == []


def test_the_lines_are_those_of_mlxq_run(client: OpenAI, redis_url: str, tmp_path: Path) -> None:
    lines = [chat_line("a"), chat_line("b", temprature=1), chat_line("c", n=-1), chat_line("d", "x" * 5000)]
    files = Files(tmp_path)
    files.write_input(*lines)
    with FakeWorker(redis_url):
        done = ended(client, begun(client, lines).id)
        run(redis_url, files)

    def without_ids(line: dict[str, Any]) -> dict[str, Any]:
        response = {**line["response"], "request_id": "", "body": {**line["response"]["body"], "id": ""}}
        line = {name: value for name, value in line.items() if name != "mlxq"}  # a run's own mark of its input line
        return {**line, "id": "", "response": response}

    def by_id(lines: list[dict[str, Any]]) -> dict[str, Any]:
        return {line["custom_id"]: without_ids(line) for line in lines}

    assert by_id(lines_of(client, done.output_file_id)) == by_id(read(files.output))
    assert by_id(lines_of(client, done.error_file_id)) == by_id(read(files.errors))
    assert done.request_counts is not None
    assert (done.request_counts.completed, done.request_counts.failed) == (2, 2)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_batch_of_completions_is_answered_too(client: OpenAI, redis_url: str) -> None:
    line = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"model": "m", "prompt": "Count"}}
    with FakeWorker(redis_url):
        done = ended(client, begun(client, [line], endpoint="/v1/completions").id)

    assert lines_of(client, done.output_file_id)[0]["response"]["body"]["object"] == "text_completion"


@pytest.mark.parametrize(
    ("lines", "codes"),
    [
        (["nope", chat_line("a"), chat_line("a")], [("invalid_json", 1), ("duplicate_custom_id", 3)]),
        ([{**chat_line("a"), "method": "GET"}], [("out_of_range", 1)]),
        ([{**chat_line("a"), "url": "/v1/embeddings"}], [("out_of_range", 1)]),
        ([{"custom_id": "a", "body": {"prompt": "x"}}], [("mismatched_endpoint", None)]),
        ([{"custom_id": "a", "url": "/v1/responses", "body": {"input": "x"}}], [("mismatched_endpoint", None)]),
        ([], [("empty_file", None)]),
        (['{"custom_id": "a", "response": {"status_code": 200}, "error": null}'], [("invalid_file", None)]),
        ([chat_line(str(i)) for i in range(5)], [("too_many_requests", None)]),
    ],
)
def test_a_file_whose_answers_could_not_be_told_apart_fails_as_a_whole(
    lines: list[Any], codes: list[tuple[str, int | None]], strict: OpenAI
) -> None:
    done = ended(strict, begun(strict, lines).id)

    assert (done.status, done.output_file_id, done.error_file_id) == ("failed", None, None)
    assert done.failed_at is not None
    assert done.errors is not None
    assert [(error.code, error.line) for error in done.errors.data or []] == codes
    assert all("/batches/" not in str(error.message) for error in done.errors.data or [])


def test_a_batch_is_cancelled_and_every_line_has_an_outcome(client: OpenAI, redis_url: str) -> None:
    begin = begun(client, [chat_line(f"r{i}") for i in range(10)])
    cancelling = client.batches.cancel(begin.id)
    done = ended(client, begin.id)

    assert cancelling.status in ("cancelling", "cancelled")
    assert done.status == "cancelled"
    assert None not in (done.cancelling_at, done.cancelled_at)
    if done.error_file_id is not None:  # it was not cancelled before its lines were counted
        assert ids_of(client, done.error_file_id) == sorted(f"r{i}" for i in range(10))
        assert {line["error"]["code"] for line in lines_of(client, done.error_file_id)} == {"batch_cancelled"}
    with pytest.raises(openai.ConflictError, match="Cannot cancel a batch with status 'cancelled'"):
        client.batches.cancel(begin.id)


def test_lists_come_in_pages_newest_first(client: OpenAI) -> None:
    file_ids = [uploaded(client, [chat_line("a")], f"{i}.jsonl") for i in range(5)]
    batch_ids = [
        client.batches.create(input_file_id=file_ids[0], endpoint=CHAT, completion_window="24h").id for _ in range(5)
    ]

    page = client.batches.list(limit=2)
    assert [batch.id for batch in page.data] == batch_ids[:2:-1]
    assert page.has_more
    assert [batch.id for batch in client.batches.list(limit=2)] == batch_ids[::-1]
    assert [batch.id for batch in client.batches.list(after=batch_ids[1])] == batch_ids[:1]
    assert [file.id for file in client.files.list(limit=2, purpose="batch")] == file_ids[::-1]
    assert [file.filename for file in client.files.list(order="asc", limit=4)][:2] == ["0.jsonl", "1.jsonl"]
    assert list(client.files.list(purpose="batch_output")) == []


def test_a_batch_keeps_its_input_when_the_file_is_deleted(client: OpenAI, redis_url: str) -> None:
    begin = begun(client, [chat_line("a")])
    client.files.delete(begin.input_file_id)
    with FakeWorker(redis_url):
        done = ended(client, begin.id)

    assert ids_of(client, done.output_file_id) == ["a"]


def test_a_file_that_expires_says_when(client: OpenAI) -> None:
    file = client.files.create(
        file=("a.jsonl", b"{}"), purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
    )

    assert file.expires_at == file.created_at + 3600


def test_results_expire_when_the_batch_says_so(client: OpenAI, redis_url: str) -> None:
    with FakeWorker(redis_url):
        expiry = {"anchor": "created_at", "seconds": 7200}
        done = ended(client, begun(client, [chat_line("a")], output_expires_after=expiry).id)

    output = client.files.retrieve(str(done.output_file_id))
    assert output.expires_at == output.created_at + 7200


@pytest.mark.parametrize(
    ("parameters", "param"),
    [
        ({"endpoint": "/v1/embeddings"}, "endpoint"),
        ({"completion_window": "1h"}, "completion_window"),
        ({"completion_window": "soon"}, "completion_window"),
        ({"metadata": {"a": "b" * 513}}, "metadata"),
        ({"metadata": {str(i): "" for i in range(17)}}, "metadata"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 10}}, "output_expires_after.seconds"),
        ({"output_expires_after": {"anchor": "now", "seconds": 3600}}, "output_expires_after.anchor"),
        ({"extra_body": {"priority": 1}}, "priority"),
    ],
)
def test_a_batch_that_can_not_be_is_refused_by_the_name_of_its_field(
    parameters: dict[str, Any], param: str, strict: OpenAI
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        begun(strict, [chat_line("a")], **parameters)

    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"


def test_only_files_for_batches_are_taken(strict: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="purpose batch only"):
        strict.files.create(file=("a.jsonl", b"{}"), purpose="fine-tune")
    with pytest.raises(openai.BadRequestError) as caught:
        strict.files.create(file=("a", b"{}"), purpose="batch", expires_after={"anchor": "created_at", "seconds": 1})
    assert caught.value.param == "expires_after.seconds"


def test_the_answers_of_one_batch_are_no_input_of_another(client: OpenAI, redis_url: str) -> None:
    with FakeWorker(redis_url):
        done = ended(client, begun(client, [chat_line("a")]).id)

    with pytest.raises(openai.BadRequestError, match="purpose batch_output"):
        client.batches.create(input_file_id=str(done.output_file_id), endpoint=CHAT, completion_window="24h")


def test_a_file_that_is_too_long_is_refused_and_leaves_nothing(redis_url: str, tmp_path: Path) -> None:
    with service(redis_url, tmp_path, limits=Limits(max_file_bytes=100_000)) as url:
        client = openai_client(url)
        with pytest.raises(openai.APIStatusError) as caught:
            client.files.create(file=("a.jsonl", b"x" * 100_001), purpose="batch")
        assert client.files.create(file=("a.jsonl", b"x" * 100_000), purpose="batch").bytes == 100_000

    assert (caught.value.status_code, caught.value.code) == (413, "file_too_large")
    assert list((tmp_path / "uploads").iterdir()) == []


def test_a_key_has_so_many_batches_at_a_time(redis_url: str, tmp_path: Path) -> None:
    with service(redis_url, tmp_path, limits=Limits(max_open_batches=2)) as url:
        client = openai_client(url)
        for _ in range(2):
            begun(client, [chat_line("a")])
        with pytest.raises(openai.RateLimitError, match="2 batches that have not ended"):
            begun(client, [chat_line("a")])


@pytest.mark.parametrize("name", ["../../etc/passwd", "file-" + "0" * 32, "file-%2e%2e%2fx", "batch_" + "0" * 32, ".x"])
def test_an_id_of_nothing_is_not_found_and_reaches_no_disk(name: str, strict: OpenAI) -> None:
    for ask in (strict.files.retrieve, strict.files.content, strict.files.delete, strict.batches.retrieve):
        with pytest.raises((openai.NotFoundError, openai.BadRequestError)):
            ask(name)
    with pytest.raises(openai.NotFoundError):
        strict.batches.create(input_file_id=name, endpoint=CHAT, completion_window="24h")


def test_what_is_uploaded_as_a_path_is_called_by_its_last_part(client: OpenAI, tmp_path: Path) -> None:
    file = client.files.create(file=("../../../tmp/x\\y.jsonl", b"{}"), purpose="batch")

    assert file.filename == "y.jsonl"
    assert [path.name for path in (tmp_path / "data" / "files").iterdir()] == [file.id]


def test_each_key_sees_its_own_files_and_batches_only(redis_url: str, tmp_path: Path) -> None:
    with service(redis_url, tmp_path, keys=KeyRing({ALICE: "alice", BOB: "bob"})) as url, FakeWorker(redis_url):
        alice, bob = openai_client(url, ALICE), openai_client(url, BOB)
        hers = ended(alice, begun(alice, [chat_line("a")]).id)
        his = begun(bob, [chat_line("a")])

        assert [batch.id for batch in bob.batches.list()] == [his.id]
        assert [batch.id for batch in alice.batches.list()] == [hers.id]
        assert list(bob.batches.list(after=hers.id)) == []
        assert {file.id for file in alice.files.list()} == {hers.input_file_id, hers.output_file_id}
        for file_id in (hers.input_file_id, str(hers.output_file_id)):
            for ask in (bob.files.retrieve, bob.files.content, bob.files.delete):
                with pytest.raises(openai.NotFoundError):
                    ask(file_id)
        for ask in (bob.batches.retrieve, bob.batches.cancel):
            with pytest.raises(openai.NotFoundError):
                ask(hers.id)
        with pytest.raises(openai.NotFoundError):
            bob.batches.create(input_file_id=hers.input_file_id, endpoint=CHAT, completion_window="24h")


def test_without_its_key_nobody_gets_anything_but_the_health(redis_url: str, tmp_path: Path) -> None:
    with service(redis_url, tmp_path, keys=KeyRing({ALICE: "alice"})) as url:
        with pytest.raises(openai.AuthenticationError, match="Incorrect API key"):
            openai_client(url, "sk-wrong-0123456789").files.list()
        for path in ("/v1/files", "/v1/batches", "/v1/nonsense", "/docs"):
            assert asked(url, "GET", path)[0] == 401
        assert asked(url, "GET", "/health") == (200, {"status": "ok", "workers": 0})


def test_prometheus_is_told_of_batches_files_and_answers_but_of_no_key(redis_url: str, tmp_path: Path) -> None:
    with service(redis_url, tmp_path, keys=KeyRing({ALICE: "alice"})) as url:
        client = openai_client(url, ALICE)
        begin = begun(client, [chat_line(f"r{i}") for i in range(3)])
        wait_until(lambda: client.batches.retrieve(begin.id).status == "in_progress", "the batch to be looked at")
        with pytest.raises(openai.AuthenticationError):
            openai_client(url, BOB).files.list()
        asked_with_key = Request(f"{url}/metrics", headers={"Authorization": f"Bearer {ALICE}"})
        with urlopen(asked_with_key, timeout=DEADLINE_S) as response:
            text = response.read().decode()
        assert asked(url, "GET", "/metrics")[0] == 401

    for line in (
        'mlxq_serve_open_batches{status="in_progress"} 1.0',
        'mlxq_serve_open_batches{status="validating"} 0.0',
        "mlxq_serve_open_requests 3.0",
        "mlxq_serve_files 1.0",
        'mlxq_serve_http_requests_total{status="401"} 1.0',
        "mlxq_redis_up 1.0",
    ):
        assert f"\n{line}\n" in text
    assert "alice" not in text


def test_a_web_page_can_not_use_a_server_without_keys(strict_url: str) -> None:
    status, body = asked(strict_url, "GET", "/v1/files", Origin="https://example.org")

    assert (status, body["error"]["code"]) == (403, "no_browsers")


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status", "code"),
    [
        ("GET", "/v1/nonsense", None, {}, 404, "unknown_url"),
        ("PUT", "/v1/files", b"", {}, 405, "unknown_url"),
        ("GET", "/v1/files?limit=0", None, {}, 400, "invalid_value"),
        ("GET", "/v1/batches?limit=101", None, {}, 400, "invalid_value"),
        ("GET", "/v1/files?color=red", None, {}, 400, "unknown_parameter"),
        ("POST", "/v1/batches", b"{}", {"Content_Type": "text/plain"}, 400, "invalid_content_type"),
        ("POST", "/v1/batches", b"[]", {"Content_Type": "application/json"}, 400, "invalid_type"),
        ("POST", "/v1/batches", b"{", {"Content_Type": "application/json"}, 400, "invalid_json"),
        ("POST", "/v1/batches", b"{}", {"Content_Type": "application/json"}, 400, "missing_required_parameter"),
        ("POST", "/v1/batches", b" " * 2**21, {"Content_Type": "application/json"}, 413, "body_too_large"),
        ("POST", "/v1/files", b"x", {"Content_Type": "application/json"}, 400, "invalid_form"),
        ("POST", "/v1/files", b"x", {"Content_Type": "multipart/form-data; boundary=b"}, 400, "invalid_form"),
        ("POST", "/v1/files", b"--b--\r\n", {"Content_Type": "multipart/form-data; boundary=b"}, 400, None),
    ],
)
def test_what_no_client_of_openai_sends_is_answered_in_its_words(
    method: str, path: str, body: bytes | None, headers: dict[str, str], status: int, code: str | None, strict_url: str
) -> None:
    got, answer = asked(strict_url, method, path, body, **headers)

    assert got == status
    assert answer["error"].keys() == {"message", "type", "param", "code"}
    assert code in (None, answer["error"]["code"])


def test_an_upload_that_breaks_off_leaves_nothing(url: str, tmp_path: Path) -> None:
    body = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + jsonl([chat_line("a")])

    assert asked(url, "POST", "/v1/files", body, Content_Type="multipart/form-data; boundary=b")[0] == 400
    assert list((tmp_path / "data" / "uploads").iterdir()) == list((tmp_path / "data" / "files").iterdir()) == []
