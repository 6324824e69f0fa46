# `make` or `make help` lists what there is. Every command installs first where that is needed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
OLDEST := .venv-oldest

.DEFAULT_GOAL := help
.PHONY: help install demo test test-all test-oldest check clean

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(INSTALLED) ## make .venv and install lspread with everything for development (PYTHON=python3.12 picks another)

# The stamp is newer than pyproject.toml exactly when the last installation succeeded and is current. An interrupted
# one leaves no stamp, so the next command goes on with it.
$(INSTALLED): pyproject.toml
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -e ".[dev]"
	@touch $@

demo: $(INSTALLED) ## ten labeled digits in, a trained classifier and a report out
	$(BIN)/lspread demo

test: $(INSTALLED) ## fast tests
	$(BIN)/python -m pytest -m "not slow"

test-all: $(INSTALLED) ## every test
	$(BIN)/python -m pytest

test-oldest: ## fast tests with the oldest versions that pyproject.toml allows, without extras (PYTHON=python3.10)
	test -x $(OLDEST)/bin/pip || $(PYTHON) -m venv $(OLDEST)
	sed -n '/^dependencies = /,/^]/s/^ *"\([^">]*\)>=\([^",]*\).*/\1==\2/p' pyproject.toml > $(OLDEST)/oldest.txt
	$(OLDEST)/bin/python -m pip install -e . -r $(OLDEST)/oldest.txt pytest hypothesis pandas
	$(OLDEST)/bin/python -m pytest -m "not slow"

check: $(INSTALLED) ## style, types, import directions, fast tests
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_architecture.py
	$(BIN)/python -m pytest -m "not slow" --ignore=tests/test_architecture.py

clean: ## remove caches and build outputs; .venv and runs/ stay
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
	find . -path ./$(VENV) -prune -o -type d -name __pycache__ -prune -exec rm -rf {} +
