"""Metrics from where they are recorded to what is served: tables, figures, sums over processes, text and HTTP."""

from __future__ import annotations

import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from prometheus_client import generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families
from tests.support.fake_engine import FakeEngine
from tests.support.metric_table import ALL_METRICS, DOCUMENT, written
from tests.support.row_specs import row_spec
from tests.support.waiting import DEADLINE_S

from mlxq.errors import ConfigError
from mlxq.metrics.address import Address
from mlxq.metrics.exposition import Table, registry_of
from mlxq.metrics.figures import Figures, Snapshot
from mlxq.metrics.metric import Metric
from mlxq.metrics.server import MetricsServer, Verdict
from mlxq_worker.decoding.loop import DecodeLoop
from mlxq_worker.messages import Admit, Channel, Measured, StepRaised
from mlxq_worker.metrics import table
from mlxq_worker.metrics.decode_figures import DecodeFigures
from mlxq_worker.metrics.job_figures import MAX_TOKEN_IDS, JobFigures, Times
from mlxq_worker.metrics.report import Reporter, ReportReader
from mlxq_worker.step_watch import StepWatch
from mlxq_worker.supervision.totals import FRESH_S, Totals

COUNT = Metric("things_total", "counter", "Things.")
BY_KIND = Metric("kinds_total", "counter", "Things by kind.", ("kind",))
LEVEL = Metric("level", "gauge", "A level.")
SPREAD = Metric("took_seconds", "histogram", "Durations.", (), (0.1, 1.0))
WELL = Verdict(is_well=True)


def samples(text: str) -> dict[str, float]:
    """Every sample that Prometheus's own parser finds, by its name and labels."""
    return {
        f"{sample.name}{''.join(f' {name}={value}' for name, value in sorted(sample.labels.items()))}": sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def served(metrics: tuple[Metric, ...], figures: Snapshot) -> dict[str, float]:
    return samples(generate_latest(registry_of(Table(metrics, lambda: figures))).decode())


def value(snapshot: Snapshot, metric: Metric, *labels: str) -> float:
    return next(number.value for number in snapshot.numbers if (number.name, number.labels) == (metric.name, labels))


def names(snapshot: Snapshot) -> set[str]:
    return {each.name for each in (*snapshot.numbers, *snapshot.spreads)}


# --- Tables ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ALL_METRICS, ids=lambda metric: metric.name)
def test_a_metric_is_named_as_prometheus_wants_it(metric: Metric) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9_]*", metric.name)
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    assert metric.help.endswith(".")
    assert "|" not in metric.help
    assert (metric.kind == "histogram") == bool(metric.buckets)
    assert list(metric.buckets) == sorted(set(metric.buckets))


def test_no_two_metrics_have_one_name() -> None:
    assert len({metric.name for metric in ALL_METRICS}) == len(ALL_METRICS)


def test_the_document_has_the_tables_of_the_code() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")

    assert written(text) == text
    assert written(text.replace("Tokens generated and kept.", "Anything.")) == text


# --- Text -----------------------------------------------------------------------------------------------------


def test_what_is_recorded_is_what_prometheus_reads() -> None:
    figures = Figures()
    figures.add(COUNT, 2)
    figures.add(COUNT)
    figures.add(BY_KIND, 5, 'a "quoted"\\ kind\n')
    figures.set(LEVEL, 0.5)
    figures.observe(SPREAD, 0.1)
    figures.observe(SPREAD, 0.5, 3)
    figures.observe(SPREAD, 7.0)

    assert served((COUNT, BY_KIND, LEVEL, SPREAD), figures.snapshot()) == {
        "mlxq_things_total": 3,
        'mlxq_kinds_total kind=a "quoted"\\ kind\n': 5,
        "mlxq_level": 0.5,
        "mlxq_took_seconds_bucket le=0.1": 1,
        "mlxq_took_seconds_bucket le=1.0": 4,
        "mlxq_took_seconds_bucket le=+Inf": 5,
        "mlxq_took_seconds_count": 5,
        "mlxq_took_seconds_sum": pytest.approx(8.6),
    }


def test_a_count_without_labels_is_there_before_anything_is_counted_and_a_level_is_not() -> None:
    read = served((COUNT, BY_KIND, LEVEL, SPREAD), Snapshot())

    assert read["mlxq_things_total"] == 0
    assert read["mlxq_took_seconds_count"] == 0
    assert not any("level" in name or "kinds" in name for name in read)


# --- HTTP -----------------------------------------------------------------------------------------------------


@contextmanager
def serving(*, health: Verdict = WELL, ready: Verdict = WELL) -> Iterator[str]:
    figures = Figures()
    figures.add(COUNT, 4)
    registry = registry_of(Table((COUNT,), figures.snapshot))
    with MetricsServer(Address(0), registry, health=lambda: health, ready=lambda: ready) as server:
        yield f"http://{server.address}"


def get(url: str, accept: str = "*/*") -> tuple[int, str]:
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, headers={"Accept": accept}), timeout=DEADLINE_S
        ) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_metrics_are_served_in_both_text_formats() -> None:
    with serving() as url:
        status, text = get(f"{url}/metrics?x=1")
        _, openmetrics = get(f"{url}/metrics", "application/openmetrics-text; version=1.0.0")

    assert (status, samples(text)) == (200, {"mlxq_things_total": 4})
    assert [family.name for family in parse_openmetrics(openmetrics)] == ["mlxq_things"]


def test_health_and_readiness_are_told_by_status_and_in_words() -> None:
    with serving(ready=Verdict(is_well=False, about={"reason": "no model"})) as url:
        health, about = get(f"{url}/health")
        ready, why = get(f"{url}/ready")
        elsewhere, _ = get(f"{url}/admin")

    assert (health, json.loads(about)) == (200, {"ok": True})
    assert (ready, json.loads(why)) == (503, {"ok": False, "reason": "no model"})
    assert elsewhere == 404


def test_a_port_that_is_taken_is_an_error_that_names_it() -> None:
    with serving() as url:
        port = int(url.rpartition(":")[2])
        with pytest.raises(ConfigError, match=f"127.0.0.1:{port}"):
            MetricsServer(Address(port), registry_of(), health=lambda: WELL, ready=lambda: WELL)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("9400", Address(9400, "127.0.0.1")),
        ("0.0.0.0:9400", Address(9400, "0.0.0.0")),
        ("[::1]:9400", Address(9400, "::1")),
        ("mac.local:80", Address(80, "mac.local")),
    ],
)
def test_an_address_is_a_port_or_a_host_with_a_port(text: str, address: Address) -> None:
    assert Address.read(text) == address
    assert Address.read(str(address)) == address


@pytest.mark.parametrize("text", ["", ":9400", "host", "::1:9400", "70000", "http://host:9400", "-1"])
def test_anything_else_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match="HOST:PORT"):
        Address.read(text)


# --- From process to process ----------------------------------------------------------------------------------


def counted(number: int, level: float = 1.0) -> Snapshot:
    figures = Figures()
    figures.add(table.GENERATION_TOKENS, number)
    figures.set(table.NUM_RUNNING, level)
    figures.observe(table.STEPS, 0.2, number)
    return figures.snapshot()


def test_the_newest_report_arrives() -> None:
    reader = ReportReader()
    numbers = iter((1, 2, 3))
    reporter = Reporter(reader.writer_fd, lambda: counted(next(numbers)))
    reporter.hear(Snapshot())

    assert reader.read() is None
    for now in (10.0, 10.1, 11.0):  # the second one is too early
        reporter.report_if_due(now)

    assert reader.read() == counted(2)
    reporter.close()
    assert reader.read() == counted(3)
    reader.close()


def test_a_report_holds_what_both_threads_have_recorded() -> None:
    reader = ReportReader()
    reporter = Reporter(reader.writer_fd, lambda: JobFigures().snapshot(5))
    reporter.hear(counted(7))
    reporter.close()

    report = reader.read()

    assert report is not None
    assert (value(report, table.ACTIVE_JOBS), value(report, table.GENERATION_TOKENS)) == (5, 7)
    reader.close()


def test_a_worker_never_waits_for_a_reader_that_is_slow_and_no_report_is_torn() -> None:
    reader = ReportReader()
    figures = Figures()
    for number in range(500):
        figures.add(table.STOPS, number, "stop_token", str(number))
    large = figures.snapshot()
    reporter = Reporter(reader.writer_fd, lambda: large)

    for second in range(100):
        reporter.report_if_due(float(second + 1))

    assert reader.read() == large
    reporter.report_if_due(200.0)
    reporter.report_if_due(300.0)
    assert reader.read() == large
    reporter.close()
    reader.close()


def test_a_worker_outlives_whoever_reads_its_reports() -> None:
    reader = ReportReader()
    reporter = Reporter(reader.writer_fd, Snapshot)
    reader.close()

    reporter.report_if_due(1.0)
    reporter.report_if_due(2.0)
    reporter.close()


def test_what_is_no_report_is_passed_over() -> None:
    reader = ReportReader()

    os.write(reader.writer_fd, b"[mps] some library's last words\n")

    assert reader.read() is None
    os.close(reader.writer_fd)
    reader.close()


def test_counts_go_on_over_all_processes_and_levels_end_with_theirs() -> None:
    totals = Totals()
    for number in (3, 4):
        totals.is_up(is_up=True)
        totals.reported(counted(1))
        totals.reported(counted(number))
        totals.ended()
        totals.restarts("died")

    snapshot = totals.snapshot()

    assert value(snapshot, table.GENERATION_TOKENS) == 7
    assert value(snapshot, table.RESTARTS, "died") == 2
    assert value(snapshot, table.WORKER_UP) == 0
    totals.rests()
    assert table.WORKER_UP.name not in names(totals.snapshot()), "nobody waits for it"
    assert table.NUM_RUNNING.name not in names(snapshot)
    [steps] = snapshot.spreads
    assert (sum(steps.counts), steps.total) == (7, pytest.approx(1.4))


def test_a_worker_is_ready_while_its_process_is_up_reports_and_has_redis() -> None:
    now = [100.0]
    totals = Totals(clock=lambda: now[0])
    figures = JobFigures()
    reasons = [totals.why_not_ready()]

    totals.is_up(is_up=True)
    reasons.append(totals.why_not_ready())
    figures.redis_failed()
    totals.reported(figures.snapshot(0))
    reasons.append(totals.why_not_ready())
    figures.redis_answers()
    totals.reported(figures.snapshot(0))
    is_ready = totals.why_not_ready() is None
    now[0] += FRESH_S + 1
    reasons.append(totals.why_not_ready())

    assert is_ready
    for reason, words in zip(reasons, ("isn't running", "hasn't reported", "Redis", "hasn't reported"), strict=True):
        assert words in str(reason)


def test_a_supervisor_that_doesnt_look_around_shows() -> None:
    now = [100.0]
    totals = Totals(clock=lambda: now[0])

    now[0] = 140.0
    assert totals.idle_s == 40.0
    totals.turned()
    assert totals.idle_s == 0.0


# --- What is recorded -----------------------------------------------------------------------------------------


def turns(prompts: list[str], times: list[float]) -> tuple[Snapshot, list[type]]:
    """The figures of a decode loop over a fake engine two rows wide, and what it has sent."""
    channel = Channel.open()
    loop = DecodeLoop(lambda: FakeEngine(2), channel, 2, StepWatch(1.0), figures=DecodeFigures(2))
    for index, prompt in enumerate(prompts):
        spec = row_spec(row_id=f"r{index}", prompt_ids=tuple(map(ord, prompt)), max_tokens=3)
        channel.to_decode.put(Admit((spec,)))
    for now in times:
        loop.receive(0.0)
        loop.turn(now)
    loop.close()
    sent = [channel.to_io.get_nowait() for _ in range(channel.to_io.qsize())]
    return next(message.figures for message in reversed(sent) if isinstance(message, Measured)), [*map(type, sent)]


def test_steps_and_tokens_are_counted() -> None:
    figures, _ = turns(["a", "b", "c"], [1.0, 1.02, 1.08, 1.1, 1.2, 1.3, 9.0])

    [steps] = [spread for spread in figures.spreads if spread.name == table.STEPS.name]
    assert value(figures, table.GENERATION_TOKENS) == 9
    assert value(figures, table.ROWS_COMPUTED) == 9
    assert value(figures, table.ROW_EFFICIENCY) == 1
    assert value(figures, table.NUM_RUNNING) == 0
    # The last step's end can't be told from the wait for more work.
    assert sum(steps.counts) == 5
    assert steps.total == pytest.approx(0.3)


def test_while_rows_run_the_batch_is_told_of() -> None:
    figures, _ = turns(["a", "b", "c"], [1.0])

    assert value(figures, table.NUM_RUNNING) == 2
    assert value(figures, table.NUM_WAITING) == 1
    assert value(figures, table.BATCH_OCCUPANCY) == 1
    assert value(figures, table.KV_USAGE) == 1
    assert value(figures, table.WIDTH) == 2


def test_a_step_that_raises_is_counted() -> None:
    figures, sent = turns(["boom"], [1.0])

    assert StepRaised in sent
    assert value(figures, table.STEPS_RAISED) == 1
    assert value(figures, table.NUM_RUNNING) == 0


def test_a_loop_that_nobody_watches_tells_nothing() -> None:
    channel = Channel.open()
    loop = DecodeLoop(lambda: FakeEngine(2), channel, 2, StepWatch(1.0))

    loop.turn(5.0)
    loop.close()

    assert channel.to_io.empty()


def test_requests_choose_only_so_many_labels() -> None:
    figures = JobFigures()
    for token_id in range(MAX_TOKEN_IDS + 10):
        figures.answered(["stop"], {f"stop:stop_token:{token_id}": 1, "prompt_tokens": 9}, Times(1.0, 0.1, 2.0))

    snapshot = figures.snapshot(0)

    stops = [number for number in snapshot.numbers if number.name == table.STOPS.name]
    assert len(stops) == MAX_TOKEN_IDS + 1
    assert value(snapshot, table.STOPS, "stop_token", "other") == 10
    assert value(snapshot, table.SUCCESS, "stop") == MAX_TOKEN_IDS + 10


def test_what_an_alert_sees_rise_is_there_before_it_does() -> None:
    fresh = JobFigures().snapshot(0).beside(Totals().snapshot())
    alarming = {(each.name, each.labels) for each in fresh.numbers if not each.value and each.labels}

    assert {(table.FAILURE.name, (code,)) for code in ("worker_crashed", "engine_error")} <= alarming
    assert (table.RESTARTS.name, ("died",)) in alarming
    assert {(table.RETRIES.name, (reason,)) for reason in ("worker_died", "step_raised")} <= alarming


def test_the_first_token_comes_after_the_queue_and_the_prefill() -> None:
    figures = JobFigures()
    figures.answered(["length"], {}, Times(queue_s=4.0, prefill_s=0.5, decode_s=10.0))

    totals = {spread.name: spread.total for spread in figures.snapshot(0).spreads}

    assert totals[table.FIRST_TOKEN.name] == 4.5
    assert totals[table.E2E.name] == 14.5


def test_strikes_are_counted_for_jobs_that_go_on_and_for_those_that_fail_by_them() -> None:
    figures = JobFigures()
    figures.gave_back(3, strikes=1)
    figures.gave_back(2, strikes=0)
    figures.recovered(4)
    figures.failed("worker_crashed")
    figures.failed("invalid_value")

    snapshot = figures.snapshot(0)

    assert value(snapshot, table.STRIKES) == 8
    assert value(snapshot, table.RETRIES, "step_raised") == 3
    assert value(snapshot, table.RETRIES, "worker_died") == 4
    assert value(snapshot, table.RETURNED) == 2
    assert value(snapshot, table.FAILURE, "invalid_value") == 1
