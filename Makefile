# Two commands: `make demo` and `make test`. Each sets up its own .venv first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
TSC := $(BIN)/npm exec --yes --prefer-offline --loglevel=error --package=typescript@5.9.3 -- tsc
PROGRAMS := $(wildcard ssl/unlabeled/*/assets)  # of pages, in JavaScript

.PHONY: demo test setup lint types clean

demo: $(READY)
	$(BIN)/python benchmarks/demo.py

test: $(READY) lint types
	$(BIN)/python -m pytest tests -n 2 --dist worksteal

setup: $(READY)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy
	for folder in $(PROGRAMS); do $(TSC) -p $$folder || exit 1; done

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) runs .pytest_cache .mypy_cache .ruff_cache
