# `make quickstart` and `make test` set up all they need in .venv and can be run again.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.deepmetric-installed

.PHONY: quickstart test lint format clean

$(READY): pyproject.toml
	$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 10) or sys.exit("deepmetric needs Python 3.10 or newer; this is %d.%d. Name another one: make PYTHON=python3.12 ..." % v[:2])'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $(READY)

quickstart: $(READY)  ## train on glyphs, evaluate on unseen classes, index, search
	PATH="$(CURDIR)/$(BIN):$$PATH" bash scripts/quickstart.sh

test: $(READY)  ## the whole test suite
	$(BIN)/python -m pytest -n 2

lint: $(READY)  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv build dist .pytest_cache .ruff_cache
