# Everything runs in .venv, which is made on first use. `make PYTHON=python3.12 ...` makes it with another Python.
# Works with the GNU Make 3.81 that macOS has.

PYTHON ?= python3
SEED ?= 0
MODEL ?= demo
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PARITY := $(VENV)/parity
COMPAT := $(VENV)/compat
DEMO := demo-out
# Test data and an oracle: their dependencies are no concern of ours.
WITHOUT_DEPS := axolotl==0.19.0 llm-router-utils==0.8.1
# A process for each core and three more, as many tests wait for processes of their own. A file's tests stay together; the
# files come in their order, which begins with the longest.
SIDE_BY_SIDE = --numprocesses $$(( $$($(BIN)/python -c 'import os; print(os.cpu_count())') + 3 )) --dist loadfile --no-loadscope-reorder

.PHONY: help install demo test test-quick thorough parity compat alerts bench mac mac-short faults release-check clean need-python need-openblas

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "make %-12s %s\n", $$1, $$2 }'

install: $(INSTALLED) ## make .venv and install mlxq, the worker and the tools for developers

$(INSTALLED): pyproject.toml | need-python
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/pip install --quiet --editable '.[worker,serve]' --group dev
	@touch $@

demo: $(INSTALLED) ## answer 240 mixed requests with the demo model and show why two of them stopped
	rm -rf $(DEMO)
	mkdir -p $(DEMO)
	$(BIN)/python -m mlxq_worker.demo.tasks --n 240 --seed 0 > $(DEMO)/requests.jsonl
	$(BIN)/mlxq run -i $(DEMO)/requests.jsonl -o $(DEMO)/results.jsonl
	@echo; echo "The stop_details of the first two lines of $(DEMO)/results.jsonl:"
	@head -n 2 $(DEMO)/results.jsonl | $(BIN)/python -c "$$SHOW_STOP_DETAILS"

test: $(INSTALLED) need-openblas ## lint, types, and every test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/pytest $(SIDE_BY_SIDE)

test-quick: $(INSTALLED) need-openblas ## the tests that take no more than a few seconds each
	$(BIN)/pytest $(SIDE_BY_SIDE) -m 'not slow'

thorough: $(INSTALLED) need-openblas ## the tests that try samples, on far more than a sample: half an hour
	MLXQ_THOROUGH=1 $(BIN)/pytest $(SIDE_BY_SIDE) -m thorough

# Beside the packages of .venv and not among them: with torch there, transformers takes three times as long to import.
parity: $(INSTALLED) need-openblas ## compare with transformers' beam search, SGLang's tool parsers, openai-harmony, axolotl's templates
	@[ -d $(PARITY)/openai_harmony ] || $(BIN)/pip install --quiet --target $(PARITY) --group parity
	@[ -d $(PARITY)/axolotl ] || $(BIN)/pip install --quiet --no-deps --target $(PARITY) $(WITHOUT_DEPS)
	PYTHONPATH=$(PARITY) $(BIN)/pytest tests/parity

# They need older versions of redis-py and RQ than ours.
compat: $(INSTALLED) need-openblas ## try rq-dashboard and rq-exporter on our jobs, litellm and instructor on mlxq serve, schemas on our files
	@[ -x $(COMPAT)/bin/check-jsonschema ] || { $(PYTHON) -m venv $(COMPAT) && \
	  $(COMPAT)/bin/pip install --quiet --upgrade 'pip>=25.1' && $(COMPAT)/bin/pip install --quiet --group compat; }
	MLXQ_COMPAT=$(CURDIR)/$(COMPAT)/bin $(BIN)/pytest tests/compat

bench: $(INSTALLED) need-openblas ## every workload through mlxq and what else there is; half an hour
	$(BIN)/python -m tests.bench.suite

alerts: $(INSTALLED) need-openblas ## have promtool try each alert, and Prometheus watch a fleet (apt-get install prometheus)
	promtool check config deploy/prometheus/prometheus.yml
	promtool test rules tests/alerts/alerts_test.yml
	MLXQ_PROMETHEUS=1 $(BIN)/pytest tests/alerts

mac: $(INSTALLED) ## on a Mac: parity, launches, benchmark and wired limits, into mac-report.md; an hour
	$(BIN)/python -m tests.bench.mac --model $(MODEL)

mac-short: $(INSTALLED) ## on a Mac: parity, launches and one run, into mac-report.md; a quarter of an hour
	$(BIN)/python -m tests.bench.mac --only machine --only parity --only masks --only launches --only 'wired limit auto'

faults: $(INSTALLED) need-openblas ## kill workers, Redis, mlxq run and mlxq serve, and have Redis answer with errors: 40 minutes
	$(BIN)/python -m tests.faults --seconds 300 --requests 3000 --workers 3 --seed $(SEED)
	$(BIN)/python -m tests.faults --redis-errors --seconds 375 --requests 3000 --workers 3 --seed $(SEED)
	$(BIN)/python -m tests.faults.killed_runs --lines 20000 --kills 10 --seed $(SEED)
	$(BIN)/python -m tests.faults.served --seconds 180 --clients 50 --batches 200 --lines 100 --seed $(SEED)

release-check: $(INSTALLED) need-openblas ## build wheel and source distribution into dist, and try them in fresh environments; TAG=v0.2.0
	$(BIN)/python -m tests.release --dist dist --tag '$(TAG)'

clean: ## remove .venv, the demo's files and every cache
	rm -rf $(VENV) $(DEMO) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find producer worker tests -name __pycache__ -prune -exec rm -rf {} +

need-python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "mlxq needs Python 3.11 or newer, and $(PYTHON) is not: use make PYTHON=python3.12 ..." >&2; exit 1; }

# On Linux the tests load OpenBLAS before mlx, whose own BLAS is far slower.
need-openblas:
	@[ "$$(uname)" != Linux ] || $(PYTHON) -c 'import ctypes; ctypes.CDLL("libopenblas.so.0")' 2>/dev/null || { \
	  echo "libopenblas.so.0 is missing: apt-get install libopenblas0-pthread, or your system's package for it" >&2; exit 1; }

define SHOW_STOP_DETAILS
import json, sys
for line in map(json.loads, sys.stdin):
    choice = line["response"]["body"]["choices"][0]
    print(line["custom_id"], choice["finish_reason"], json.dumps(choice["stop_details"]))
endef
export SHOW_STOP_DETAILS
