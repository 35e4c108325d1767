PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: serve install test check format bench clean

serve: install  ## Install, then serve the shipped model on 127.0.0.1:8000 (LOWFIRST_HOST, LOWFIRST_PORT).
	$(BIN)/lowfirst serve

install: $(VENV)/.installed  ## Make .venv and install the server into it.

test: $(VENV)/.installed-test  ## Install the test packages, then run the whole suite.
	$(BIN)/python -m pytest -n auto --dist loadgroup

check: $(VENV)/.installed-test  ## Lint, formatting, types, and the direction of imports.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed-test  ## Format, and mend what the linter can.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.installed-bench  ## Beside other servers: make bench BENCH="--data DIR". Takes wrk, a package of most systems.
	$(BIN)/python loadtest/bench.py $(BENCH)

clean:  ## Remove what the other targets made.
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[openvino]'
	touch $@

$(VENV)/.installed-test: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[openvino,test]'
	touch $@ $(VENV)/.installed

$(VENV)/.installed-bench: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[openvino,bench]'
	touch $@ $(VENV)/.installed
