PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: serve install test check format bench clean FORCE

serve: install  ## Install, then serve the shipped model on 127.0.0.1:8000 (LOWFIRST_HOST, LOWFIRST_PORT).
	$(BIN)/lowfirst serve

install: $(VENV)/.installed  ## Make .venv and install the server into it.

test: $(VENV)/.installed-test  ## Install the test packages, then run the whole suite.
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

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

# Rows of the comparison: make runs/ms_resnet18-192-epochs40 DATA=DIR. A name is NETWORK-PIXELS; -plain adds the paper's
# own sum, -soft what L learns from H, -varied changed crops and smoothed targets, -epochs80 how many, -seed1 another
# seed; INIT=runs/NAME starts from that run's weights. What was interrupted goes on. Multi-scale ones are calibrated.
runs/%: $(VENV)/.installed FORCE
	$(if $(word 2,$(words_of)),,$(error $@ names no pixels: make runs/NETWORK-PIXELS DATA=DIR))
	$(if $(unknown),$(error $@: $(unknown) is none of $(if $(multi),plain soft) varied epochs1 … seed1 …))
	$(if $(DATA),,$(error say where the photographs are: make $@ DATA=DIR))
	$(BIN)/lowfirst train $(word 1,$(words_of)) --resolution $(word 2,$(words_of)) --out $@ --data "$(DATA)" \
	  $(variant) $(numbers) $(if $(INIT),--init "$(INIT)") $(if $(wildcard $@/options.json),--resume)
	$(if $(multi),$(BIN)/lowfirst calibrate $@ --data "$(DATA)")
words_of = $(subst -, ,$*)
rest = $(wordlist 3,99,$(words_of))
multi = $(filter ms_%,$*)
unknown = $(strip $(filter-out $(if $(multi),plain soft) varied epochs% seed%,$(rest)) $(filter epochs seed,$(rest)))
variant = $(if $(filter plain,$(rest)),--option fusion=after_relu) $(if $(filter soft,$(rest)),--distillation 1) \
  $(if $(filter varied,$(rest)),--augment --label-smoothing 0.1)
numbers = $(patsubst epochs%,--epochs %,$(patsubst seed%,--seed %,$(filter epochs% seed%,$(rest))))
FORCE:

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
