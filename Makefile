# Two commands do everything: `make demo` and `make test`. Both set up what they need, once.
#   make demo [BROKER=embedded|kafka]    from events to predictions on real data
#   make drift [BROKER=embedded|kafka]   real data that shifts: noticed, learnt from, rolled out, recovered
#   make test [BROKER=embedded|kafka]    all tests; with kafka, those that need a broker, on Apache Kafka
#   make test-kills [COUNT=20]           the tests that kill processes at their worst moments, so often each
#   make test-chaos [EVENTS=1000000] [FAULTS=100]   ingestion while its processes are killed and paused at random
#   make up | down                       start the stack and leave it running | stop it
#   make fuzz [SECONDS=60]               bytes that break a decoder, searched for by coverage, so long for each of them
#   make lint | format | protos | lock | clean
.DEFAULT_GOAL := help
SHELL := /bin/sh
PYTHON ?= python3.11
BROKER ?= embedded
COUNT ?= 20
EVENTS ?= 1000000
FAULTS ?= 100
SECONDS ?= 60
BIN := .venv/bin
UV_VERSION := 0.13.9
UV := .cache/uv/bin/uv
COMPILE := $(UV) pip compile --quiet --generate-hashes --no-emit-index-url --no-annotate --no-header \
	--python-version 3.11 --python-platform x86_64-manylinux_2_35
SERVICES := ingestion scheduling training registry inference
# ONNX Runtime's build for CUDA, with CUDA's libraries, where there is a GPU: with CUDA= (or CUDA=1)
# given to make or exported, none is looked for.
ifeq ($(origin CUDA),undefined)
CUDA := $(shell nvidia-smi --list-gpus 2>/dev/null)
endif
TRITON_LOCK := deploy/triton/requirements$(if $(CUDA),-cuda).lock
TRITON_SIZE := about $(if $(CUDA),3,0.4) GB
# What benchmarks compare with, each in an environment of its own.
PEERS := kserve mlserver bentoml rayserve

.PHONY: help setup demo drift test test-kills test-chaos fuzz lint format protos lock up down clean

help:
	@sed -n '1,/^\.DEFAULT_GOAL/ s/^# \{0,1\}//p' Makefile

# --- environments: filled when what their lock file says has changed since ---------------------------------------

setup: $(UV)
	@tools/fill_environment.sh "the services' environment (about 7 GB, most of it PyTorch's CUDA build)" \
		.venv requirements.lock $(UV) $(PYTHON) .
	@tools/fill_environment.sh "Triton's environment ($(TRITON_SIZE))" \
		.venv-triton $(TRITON_LOCK) $(UV) $(PYTHON)

$(UV):
	@echo "Getting uv $(UV_VERSION), which fills the environments ..."
	@rm -rf .cache/uv
	@$(PYTHON) -m venv .cache/uv
	@.cache/uv/bin/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)

# --- using it ----------------------------------------------------------------------------------------------------

demo: setup
	@$(BIN)/python -m examples.demo --broker $(BROKER)

drift: setup
	@$(BIN)/python -m examples.drift --broker $(BROKER)

up: setup
	@$(BIN)/headrace up --broker $(BROKER)

down: setup
	@$(BIN)/headrace down

# --- working on it -----------------------------------------------------------------------------------------------

test: setup
ifeq ($(BROKER),embedded)
	$(BIN)/python -m pytest
else
	HEADRACE_TEST_BROKER=$(BROKER) $(BIN)/python -m pytest -m broker
endif

test-kills: setup
	$(BIN)/python -m pytest -m kill --count $(COUNT)

test-chaos: setup
	HEADRACE_TEST_BROKER=$(BROKER) HEADRACE_CHAOS_EVENTS=$(EVENTS) HEADRACE_CHAOS_FAULTS=$(FAULTS) \
		$(BIN)/python -m pytest -s tests/component/ingestion/test_chaos.py

fuzz: setup
	@for target in records json protobuf avro messages envelopes; do \
		$(BIN)/python -m tests.fuzz.decoders $$target -max_total_time=$(SECONDS) -timeout=60 || exit 1; \
	done

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/buf lint protos --path protos/headrace
	$(BIN)/buf format protos --path protos/headrace --exit-code > /dev/null
	PATH="$$PWD/$(BIN):$$PATH" $(BIN)/python tools/generate_protos.py --check

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/buf format protos --path protos/headrace --write

protos: setup
	PATH="$$PWD/$(BIN):$$PATH" $(BIN)/python tools/generate_protos.py

# Resolves the direct ranges of pyproject.toml and deploy/triton/requirements.in anew; a service's image gets
# its own extra only, at the versions of the whole lock. NVIDIA's image of Triton has Python 3.12.
lock: $(UV)
	$(COMPILE) pyproject.toml --extra embedded --extra dev --output-file requirements.lock
	$(COMPILE) deploy/triton/requirements.in --output-file deploy/triton/requirements.lock
	$(COMPILE) deploy/triton/requirements-cuda.in --constraint deploy/triton/requirements.lock \
		--output-file deploy/triton/requirements-cuda.lock
	$(COMPILE) deploy/docker/build.in --output-file deploy/docker/build.lock
	for onnx in onnx onnx-cuda; do \
		$(COMPILE:3.11=3.12) deploy/triton/runtime.in deploy/triton/$$onnx.in \
			--constraint deploy/triton/requirements.lock \
			--output-file deploy/docker/triton$${onnx#onnx}.lock || exit 1; \
	done
	$(COMPILE:3.11=3.12) deploy/triton/torch.in --constraint requirements.lock \
		--output-file deploy/docker/torch.lock
	$(COMPILE) deploy/triton/packages.in --constraint deploy/triton/requirements.lock \
		--output-file deploy/docker/packages.lock
	$(COMPILE) tests/support/kserve_client.in --output-file tests/support/kserve_client.lock
	for service in $(SERVICES); do \
		$(COMPILE) pyproject.toml --extra $$service --constraint requirements.lock \
			--output-file deploy/docker/$$service.lock || exit 1; \
	done
	for peer in $(PEERS); do \
		$(COMPILE) benchmarks/peers/$$peer/requirements.in \
			--output-file benchmarks/peers/$$peer/requirements.lock || exit 1; \
	done

clean:
	rm -rf .venv .venv-triton .venv-kserve .cache .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
