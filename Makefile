PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: serve install test check format bench gpu faults pictures wheel image digests sbom audit site lock proto evidence imagenet-lite0 clean FORCE

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

proto:  ## Compile the messages of gRPC, after a change of inference.proto.
	$(PYTHON) -m venv build/proto
	build/proto/bin/python -m pip install --quiet --disable-pip-version-check 'grpcio-tools>=1.70,<2'
	build/proto/bin/python -m grpc_tools.protoc --proto_path=service/api/rpc \
	  --descriptor_set_out=service/api/rpc/inference.binpb inference.proto

gpu: $(VENV)/.installed-test  ## All that waits for a GPU, in ten minutes: make gpu GPU="--data DIR". Takes wrk.
	$(BIN)/python loadtest/gpu.py $(GPU)

faults: $(VENV)/.installed-test  ## Attacks, faults and load, as one table: make faults FAULTS="--data DIR". FAULTS=--quick: as CI.
	$(BIN)/python loadtest/faults.py $(FAULTS)

wheel: $(VENV)/.installed  ## dist/lowfirst-VERSION-py3-none-any.whl: the server, and the models of model_store/.
	rm -rf build/lib build/bdist.* dist/*.whl
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir dist .

image:  ## lowfirst:cpu, labelled with this commit; make image TARGET=cuda, or ray. Takes Docker.
	docker build --file docker/Dockerfile --target $(TARGET) --tag lowfirst:$(TARGET) \
	  --label org.opencontainers.image.revision=$$(git rev-parse HEAD) .
TARGET := cpu

digests:  ## The digest that each image's tag has in its registry today, to pin. Takes Docker with buildx.
	@sed -nE 's,^( *image: |ARG PYTHON_IMAGE=)([a-z0-9/.-]+:[a-z0-9.-]+).*,\2,p' $(NAMING_IMAGES) | grep -v ^lowfirst: | sort -u \
	  | while read -r image; do echo "$$image@$$(docker buildx imagetools inspect --format '{{.Manifest.Digest}}' $$image)"; done
NAMING_IMAGES := docker-compose.yml docker/Dockerfile docker/kubernetes/base/redis.yaml

sbom: $(VENV)/.installed-test  ## dist/sbom.cdx.json: what the image installs, in CycloneDX, with hashes.
	mkdir -p build/sbom dist
	sed 's/^dynamic = .*/version = "$(VERSION)"/' pyproject.toml > build/sbom/pyproject.toml
	$(BIN)/cyclonedx-py requirements requirements/serve.txt --pyproject build/sbom/pyproject.toml \
	  --output-reproducible --output-format JSON --output-file dist/sbom.cdx.json
VERSION = $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' service/__init__.py)

audit: $(VENV)/.installed-test  ## Known vulnerabilities of locked packages; make audit LOCKS=serve. Asks pypi.org.
	@failed=0; for lock in $(LOCKS); do echo "requirements/$$lock.txt"; \
	  $(BIN)/pip-audit --disable-pip --progress-spinner off --requirement requirements/$$lock.txt || failed=1; \
	done; exit $$failed
LOCKS := serve ray test bench

site: $(VENV)/.installed-test  ## The documents as a site, in build/site.
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

pictures: $(VENV)/.installed-test  ## Take the pictures of the console and of the dashboards again, in ten minutes.
	$(BIN)/python -m docs.screenshots
	$(BIN)/python -m docs.dashboards

# Versions stay while pyproject.toml allows them. LOCK=--upgrade takes the newest of everything, LOCK="--upgrade-package
# NAME" of one package. The server and Ray get what is tested; bench is by itself, since the peers pin packages of ours.
# What is locked is for every system and Python from 3.11 on; tried is Python 3.11 on Linux, x86_64.
lock: build/uv/bin/uv  ## Lock what pyproject.toml asks for, with hashes, in requirements/.
	$(call compile,test,openvino signing docs test)
	$(call compile,serve,openvino signing) --constraint requirements/test.txt
	$(call compile,ray,openvino signing ray) --constraint requirements/test.txt
	$(call compile,bench,openvino bench)
compile = build/uv/bin/uv pip compile pyproject.toml --quiet --universal --python-version 3.11 --generate-hashes \
  --no-annotate --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" $(LOCK) \
  $(addprefix --extra ,$(2)) --output-file requirements/$(1).txt
build/uv/bin/uv:
	$(PYTHON) -m venv build/uv
	build/uv/bin/python -m pip install --quiet --disable-pip-version-check uv

# Rows of the comparison: make runs/ms_resnet18-192-epochs40 DATA=DIR. A name is NETWORK-PIXELS; -plain adds the paper's
# own sum, -soft what L learns from H, -varied changed crops and smoothed targets, -epochs80 how many, -seed1 another
# seed; INIT=runs/NAME starts from that run's weights, and -adapt takes the recipe for it; TRAIN="…" are more options.
# What was interrupted goes on. Multi-scale ones are calibrated.
runs/%: $(VENV)/.installed FORCE
	$(if $(word 2,$(words_of)),,$(error $@ names no pixels: make runs/NETWORK-PIXELS DATA=DIR))
	$(if $(unknown),$(error $@: $(unknown) is none of $(if $(multi),plain soft ungated) adapt varied epochs1 … seed1 …))
	$(if $(DATA),,$(error say where the photographs are: make $@ DATA=DIR))
	$(BIN)/lowfirst train $(word 1,$(words_of)) --resolution $(word 2,$(words_of)) --out $@ --data "$(DATA)" \
	  $(variant) $(numbers) $(if $(INIT),--init "$(INIT)") $(TRAIN) $(if $(wildcard $@/options.json),--resume)
	$(if $(multi),$(BIN)/lowfirst calibrate $@ --data "$(DATA)")
words_of = $(subst -, ,$*)
rest = $(wordlist 3,99,$(words_of))
multi = $(filter ms_%,$*)
unknown = $(strip $(filter-out $(if $(multi),plain soft ungated) adapt varied epochs% seed%,$(rest)) $(filter epochs seed,$(rest)))
variant = $(if $(filter plain,$(rest)),--option fusion=after_relu) $(if $(filter ungated,$(rest)),--option gated=false) $(if $(filter soft,$(rest)),--distillation 1) \
  $(if $(filter varied,$(rest)),--augment --label-smoothing 0.1) $(if $(filter adapt,$(rest)),--recipe adapt)
numbers = $(patsubst epochs%,--epochs %,$(patsubst seed%,--seed %,$(filter epochs% seed%,$(rest))))
FORCE:

# Runs of docs/results/comparisons.toml: their states, the logits of those that were trained since, and the tables and
# figures of docs/results.md from all that is kept. TIME=--time measures milliseconds first, on a machine that is idle.
evidence: $(VENV)/.installed-test  ## make evidence DATA=DIR GROCERY=DIR [RUNS=runs] [TIME=--time]
	$(BIN)/python -m service.evaluation.evidence --runs "$(RUNS)" --data "imagenette=$(DATA)" \
	  --data "grocery=$(GROCERY)" $(TIME)
RUNS ?= runs

# The package with the weights is among those of the tests.
imagenet-lite0: $(VENV)/.installed-test  ## A cascade of 1,000 classes in the store: EfficientNet-Lite0 at two sizes, not trained.
	$(BIN)/lowfirst import efficientnet_lite0 --weights efficientnet-lite0 --name lite0
	$(BIN)/lowfirst compose imagenet-lite0 --stage lite0@128 --stage lite0@224

clean:  ## Remove what the other targets made.
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# The locked packages, then lowfirst itself, built by the locked setuptools. Those of test hold those of serve. Those of
# bench may differ, which pip remarks upon; bench and test each bring their own back.
define install
@echo "installing what requirements/$(1).txt locks into $(VENV): some minutes the first time"
$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements/$(1).txt
$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
endef

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml requirements/serve.txt
	$(call install,serve)
	touch $@

$(VENV)/.installed-test: $(VENV)/bin/python pyproject.toml requirements/test.txt
	$(call install,test)
	rm -f $(VENV)/.installed-bench
	touch $@ $(VENV)/.installed

$(VENV)/.installed-bench: $(VENV)/bin/python pyproject.toml requirements/bench.txt
	$(call install,bench)
	rm -f $(VENV)/.installed-test
	touch $@ $(VENV)/.installed
