# Every target sets up what it needs. `make` alone says what there is.
PYTHON ?= python3
SEEDS ?= 1
VENV := .venv
INSTALLED := $(VENV)/.installed

.PHONY: help setup demo test test-fast live prerequisites validate check format chaos bench bench-journey bench-rest bench-audit lock clean

help: ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  make %-14s %s\n", $$1, $$2}'

setup: $(INSTALLED) ## .venv from the lock file, so that .venv/bin/hub is the command

$(INSTALLED): requirements-dev.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "Python 3.11 or later is missing ($(PYTHON) is older or absent). Install it, or say where it is: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "Python's venv module is missing. On Debian: apt-get install python3-venv" >&2; exit 1; }
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing what the lock file names into $(VENV) …"
	@if command -v uv >/dev/null 2>&1; then \
	  uv pip install --quiet --python $(VENV)/bin/python --require-hashes -r requirements-dev.lock && \
	  uv pip install --quiet --python $(VENV)/bin/python --no-deps --no-build-isolation -e . ; \
	else \
	  $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock && \
	  $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e . ; \
	fi || { echo "The packages could not be installed: is a Python package index reachable from here?" >&2; exit 1; }
	@touch $(INSTALLED)

demo: setup ## watch a patient move from Torbay to Exeter (ONCE=1 tells the story and leaves)
	@$(VENV)/bin/hub demo $(if $(ONCE),--once --json)

prerequisites: setup ## install Java, Maven and PostgreSQL where this machine allows it; say what is missing where it does not
	@$(VENV)/bin/python -m tests.harness.prerequisites --install || true

test: prerequisites ## unit, property, story and contract tests, then the live ones on real Kafka and PostgreSQL
	@$(VENV)/bin/python -m pytest -q -n 2 --dist worksteal -m "not long and not validator" tests/unit tests/stories tests/contracts tests/corpus tests/edges tests/live/test_stories.py
	@$(VENV)/bin/python -m pytest -q -n 2 --dist worksteal -m "not long" tests/live --ignore=tests/live/test_stories.py

test-fast: setup ## all but the live tests
	@$(VENV)/bin/python -m pytest -q -n 2 --dist worksteal --ignore=tests/live

live: prerequisites ## all the tests on real Kafka and PostgreSQL, the long ones too
	@$(VENV)/bin/python -m pytest -q tests/live

validate: prerequisites ## what the hub says in FHIR, judged by the FHIR validator; skipped, with the reason, where that is absent
	@$(VENV)/bin/python -m pytest -q -m validator

check: setup ## format, lint, types, layers
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/mypy
	@$(VENV)/bin/lint-imports
	@$(VENV)/bin/hub trust check

format: setup ## let ruff format and mend what it can
	@$(VENV)/bin/ruff format . && $(VENV)/bin/ruff check --fix .

chaos: prerequisites ## hundreds of transfers while everything is killed in turn (SEEDS=n); the last line is JSON
	@$(VENV)/bin/python -m tests.chaos --seeds $(SEEDS)

bench: prerequisites ## events a second and latency, against a bare passthrough in the same run; the last line is JSON
	@$(VENV)/bin/python -m tests.bench.end_to_end

bench-rest: prerequisites ## messages a second over REST, latency, and searches among a million transfers; the last line is JSON
	@$(VENV)/bin/python -m tests.bench.rest

bench-journey: setup ## what the journey of one message costs the processor, part by part; the last line is JSON
	@$(VENV)/bin/python -m tests.bench.journey

bench-audit: prerequisites ## a patient's trail among ten million audit entries, by the store and over REST; the last line is JSON
	@$(VENV)/bin/python -m tests.bench.audit

lock: ## bring the lock files up to date (needs uv); they hold hashes and no addresses
	uv pip compile -q pyproject.toml --universal --python-version 3.11 --generate-hashes --no-header -o requirements.lock
	uv pip compile -q pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes --no-header -o requirements-dev.lock

clean: ## forget .venv and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
