# Works on a machine with Python 3.11 or newer and nothing else; `make` alone lists the targets.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Processes of tests. They wait a lot for servers, so there is one more than there are cores.
JOBS := $(shell getconf _NPROCESSORS_ONLN)
WORKERS := $(shell expr $(JOBS) + 1)
# tests/groups.py says what runs in one process, and in which order.
SIDE_BY_SIDE := -n $(WORKERS) --dist loadscope --no-loadscope-reorder

# Some images set it. Each process of a test would then compile all modules anew, which takes longer than most tests.
unexport PYTHONDONTWRITEBYTECODE

# make test KUBERNETES=1.34 REDIS=7.4: other versions than the default ones, see docs/versions.md
export PODLINK_TEST_KUBERNETES ?= $(KUBERNETES)
export PODLINK_TEST_REDIS ?= $(REDIS)

.DEFAULT_GOAL := help
.PHONY: help run test unit proofs coverage timings bench check docs manifests recording lock venv clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: $(STAMP) ## a real API server, Valkey, the operator, a sample service and a live table, until Ctrl-C
	@exec env PYTHONPATH=tests $(BIN)/python -m sandbox.run

test: check ## every check and every test, in several processes; PYTEST="-k lobby" adds options, KUBERNETES=1.34 REDIS=7.4 chooses versions
	$(BIN)/pytest $(SIDE_BY_SIDE) $(PYTEST)

unit: $(STAMP) ## the unit tests, which need no server
	$(BIN)/pytest -n $(JOBS) --dist worksteal tests/unit $(PYTEST)

proofs: $(STAMP) ## the tests that look for rare faults, for as long as they like: for a night
	$(BIN)/pytest --hypothesis-profile=long --timeout=0 tests/unit tests/proofs tests/store/test_names.py \
	    tests/store/test_failover.py $(PYTEST)

coverage: $(STAMP) ## every test with its coverage, which takes twice as long
	$(BIN)/coverage erase
	$(BIN)/pytest $(SIDE_BY_SIDE) --cov --cov-report=term $(PYTEST)

timings: $(STAMP) ## every test, and write into docs/maintainers/tests.md how long they take
	PYTHONPATH=tests $(BIN)/python -m sandbox.timings $(SIDE_BY_SIDE) -q $(PYTEST)

bench: $(STAMP) ## measure PodLink beside its alternatives on a server of its own, and write what docs/ says about speed
	PYTHONPATH=tests $(BIN)/python -m sandbox.bench --memory-links 1000000 --docs docs $(BENCH)

# The slowest first. They do not depend on each other, so make runs them side by side.
CHECKS := check-types check-pages check-layers check-style check-lua check-dockerfile
.PHONY: $(CHECKS)

check: $(STAMP) ## style, types, layers, the syntax of the Lua scripts, the Dockerfile, and the documentation
	@$(MAKE) --no-print-directory -j $(JOBS) $(CHECKS)

check-types:
	$(BIN)/mypy

check-pages:
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

check-layers:
	$(BIN)/lint-imports --no-logo

check-style:
	$(BIN)/ruff check
	$(BIN)/ruff format --check

check-lua:
	PYTHONPATH=tests $(BIN)/python -m sandbox.lua_syntax

check-dockerfile:
	$(BIN)/hadolint Dockerfile

docs: $(STAMP) ## the documentation at http://127.0.0.1:8000, until Ctrl-C
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

manifests: $(STAMP) ## write what follows from the chart and the version: deploy/install.yaml, deploy/kustomize and others
	PYTHONPATH=tests $(BIN)/python -m sandbox.manifests

recording: $(STAMP) ## keep what this version sends to Redis, and its CRD, for the tests of later versions
	PYTHONPATH=tests $(BIN)/python -m sandbox.recording

LOCK_FLAGS := --quiet --universal --python-version 3.11 --generate-hashes \
    --no-emit-index-url --no-annotate --no-header $(UV)

lock: ## write requirements*.lock anew from pyproject.toml; UV="--upgrade" takes newer versions
	$(PYTHON) -m venv $(VENV)/lock
	$(VENV)/lock/bin/pip install --quiet uv
	$(VENV)/lock/bin/uv pip compile pyproject.toml $(LOCK_FLAGS) --extra operator --extra embedded --extra tracing \
	    -o requirements.lock
	$(VENV)/lock/bin/uv pip compile pyproject.toml $(LOCK_FLAGS) --all-extras --group dev -o requirements-dev.lock
	$(VENV)/lock/bin/uv pip compile --group build $(LOCK_FLAGS) -o requirements-build.lock
	rm -rf $(VENV)/lock

venv: $(STAMP) ## the virtual environment, .venv, with everything in it

$(STAMP): requirements-dev.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "PodLink needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) --version 2>&1):" \
	        "install one, or name it: make PYTHON=python3.13" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check --quiet --no-deps --require-hashes -r requirements-dev.lock
	$(BIN)/pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation -e .
	$(BIN)/pip --disable-pip-version-check check
	touch $@

clean: ## remove the virtual environment, caches and what `make run` left (not what tests built: ~/.cache/podlink)
	rm -rf $(VENV) build .sandbox .pytest-kind .coverage .coverage.* .hypothesis
	rm -rf .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
