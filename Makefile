# make demo   the whole path on the bundled sample, on a CPU, in minutes
# make test   lint, types, layers and the quick tests; what continuous integration runs
# Both create .venv and install what they need; a second call finds everything in place.
# make bench  ours against the published way of computing, timed in turn (BENCH="--quick" only checks that it runs)
# Another interpreter: make PYTHON=python3.12 test      Another folder: make VENV=.venv312 test

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

IS_NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(or $(firstword $(foreach name,python3 python3.13 python3.12 python3.11,$(shell \
	$(name) -c '$(IS_NEW_ENOUGH)' 2>/dev/null && echo $(name)))),python3)
VENV ?= .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

# Two processes of one machine share its cores; more threads than that make small tensors slower.
TEST_ENV := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false

.PHONY: help demo test test-all bench check lint types layers format wheel clean

help:
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile | expand -t 20

$(VENV)/.created:
	@$(PYTHON) -c '$(IS_NEW_ENOUGH)' 2>/dev/null || { \
		echo "vidsim needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1 || true)." >&2; \
		echo "Fix: install one, or name it: make PYTHON=python3.12 <target>" >&2; exit 1; }
	@echo "Creating $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV) || { \
		echo "'$(PYTHON) -m venv' failed. Fix: install Python's venv module (Debian: apt-get install python3-venv)" >&2; \
		rm -rf $(VENV); exit 1; }
	@touch $@

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/.created
	@echo "Installing vidsim and its dependencies into $(VENV) (the first time takes some minutes)"
	@$(PIP_INSTALL) -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(VENV)/.created
	@echo "Installing vidsim and its development tools into $(VENV) (the first time takes some minutes)"
	@$(PIP_INSTALL) -e '.[dev,extract,qdrant,retrieval,tensorboard]'
	@touch $(VENV)/.installed $@

demo: $(VENV)/.installed ## the whole path on the bundled sample data, with a score table and a report
	@$(BIN)/python -m vidsim.launch.demo

test: check ## lint, types, layers and the quick tests
	@echo "== pytest"
	@$(TEST_ENV) $(BIN)/python -m pytest -q -m "not slow and not gpu"

test-all: check ## the same with the slow tests, and the GPU tests where there is a GPU
	@echo "== pytest, slow tests too"
	@$(TEST_ENV) $(BIN)/python -m pytest -q --durations=15

bench: $(VENV)/.installed-dev ## ours against the published way of computing, in turn; tables in runs/bench/
	@$(BIN)/python -m tests.benchmarks.bench --out runs/bench/bench.json $(BENCH)

check: lint types layers ## lint, types and layers only

lint: $(VENV)/.installed-dev
	@echo "== ruff"
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet . || { \
		$(BIN)/ruff format --check . 2>&1 | head -20; echo "Fix: make format" >&2; exit 1; }

types: $(VENV)/.installed-dev
	@echo "== mypy"
	@$(BIN)/mypy

layers: $(VENV)/.installed-dev
	@echo "== import-linter"
	@report=$$($(BIN)/lint-imports --no-logo 2>&1) || { echo "$$report"; exit 1; }; tail -n 1 <<< "$$report"

format: $(VENV)/.installed-dev ## sort imports, mend what ruff can mend, format
	@$(BIN)/ruff check --fix --quiet . || true
	@$(BIN)/ruff format .

wheel: $(VENV)/.installed-dev ## dist/vidsim-*.whl
	@$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir dist .
	@rm -rf build
	@ls dist

clean: ## remove caches and build leftovers; .venv and runs stay
	@rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	@find . -name __pycache__ -type d -not -path './.venv*' -prune -exec rm -rf {} +
