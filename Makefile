# `make demo`, `make test`, `make installed` (a second stage of tests, minutes) and `make docs`. Each sets up its own .venv first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
TSC := $(BIN)/npm exec --yes --prefer-offline --loglevel=error --fetch-retries=1 --package=typescript@5.9.3 -- tsc
PROGRAMS := $(wildcard ssl/unlabeled/*/assets)  # of pages, in JavaScript

.PHONY: demo test installed docs setup lint types clean
unexport PYTHONDONTWRITEBYTECODE  # each process of the tests would compile the package again

demo: $(READY)
	$(BIN)/python benchmarks/demo.py

test: $(READY) lint types
	$(BIN)/python -m pytest tests --ignore=tests/installed -n 2 --dist worksteal

installed: $(READY)
	$(BIN)/python -m pytest tests/installed -n 2 --dist loadscope

docs: $(READY)
	cd docs && ../$(BIN)/python -m make

setup: $(READY)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy
	@if $(TSC) --version >/dev/null 2>&1; then \
		for folder in $(PROGRAMS); do $(TSC) -p $$folder || exit 1; done; \
	else echo "npm cannot fetch TypeScript: the programs of pages are not checked."; fi

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) runs site build/docs .pytest_cache .mypy_cache .ruff_cache
