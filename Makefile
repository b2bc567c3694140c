PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PROTOS := kakuri/agentapi/v1/agent.proto $(wildcard cri/v1/*.proto)
PROTOC = PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc -I.
COMPILE = CUSTOM_COMPILE_COMMAND="make requirements" $(BIN)/pip-compile --quiet --generate-hashes --allow-unsafe \
	--strip-extras --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --no-emit-options
PYTEST_ARGS ?=
SOAK_MINUTES ?= 60
SOAK_ARGS ?=
CHAOS_MINUTES ?= 10
CHAOS_KILLS ?= 1000
CHAOS_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: setup
setup: packages $(INSTALLED) ## what kakuri runs with: Debian packages that are missing, and .venv with everything

.PHONY: packages
packages: ## only the Debian packages, if any is missing
	@PYTHON="$(PYTHON)" scripts/install-packages.sh run

.PHONY: test-packages
test-packages:
	@PYTHON="$(PYTHON)" scripts/install-packages.sh test

# Python's own venv module may be one of the packages.
$(INSTALLED): requirements-dev.txt pyproject.toml | packages
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "kakuri needs Python 3.11 or later; name one: make PYTHON=…")'
	[ -x $(BIN)/pip ] || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.txt
	@PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

.PHONY: demo
demo: setup ## kakuri with its examples, until Ctrl-C; with DEMO_EXIT=1 until all has converged
	@$(BIN)/python scripts/demo.py

.PHONY: test
test: setup test-packages ## lint, types, import contracts and all tests
	@$(MAKE) --no-print-directory lint
# By file, in order: those of a file share what it starts, and the slow ones come first.
# One worker more than there are cores, since much of a test is waiting.
	$(BIN)/pytest -n $$(( $$(nproc) + 1 )) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

.PHONY: lint
lint: $(INSTALLED) proto-check ## only lint, types, import contracts and generated code
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.PHONY: proto
proto: $(INSTALLED) ## make the gRPC stubs again from the protos
	$(PROTOC) --python_out=. --grpc_python_out=. --mypy_out=. --mypy_grpc_out=. $(PROTOS)

.PHONY: proto-check
proto-check: $(INSTALLED) ## the committed stubs are what the protos give
	@made=$$(mktemp -d) && trap 'rm -rf "$$made"' EXIT && \
	$(PROTOC) --python_out="$$made" --grpc_python_out="$$made" --mypy_out="$$made" --mypy_grpc_out="$$made" $(PROTOS) && \
	cd "$$made" && find . -type f | sort | while read -r stub; do \
		cmp "$$stub" "$(CURDIR)/$$stub" || { echo "$$stub is out of date: run make proto" >&2; exit 1; }; \
	done

.PHONY: requirements
requirements: $(INSTALLED) ## compile the requirements files again, with the newest versions that pyproject.toml allows
	@mkdir -p .cache
	$(BIN)/python scripts/dev_requirements.py > .cache/dev.in
	$(COMPILE) --upgrade --output-file requirements-dev.txt pyproject.toml .cache/dev.in
	$(COMPILE) --upgrade --output-file requirements.txt --constraint requirements-dev.txt pyproject.toml

.PHONY: soak
soak: $(INSTALLED) ## simulated worlds with random seeds for SOAK_MINUTES; a broken promise prints the script that shows it
	PYTHONHASHSEED=0 PYTHONPATH=.:tests $(BIN)/python -m sim.soak --minutes $(SOAK_MINUTES) $(SOAK_ARGS)

.PHONY: golden
golden: $(INSTALLED) ## tell the stories of tests/sim/stories anew; review the diff
	KAKURI_GOLDEN=1 $(BIN)/pytest -q tests/sim/test_stories.py

.PHONY: chaos
chaos: setup test-packages ## faults on a real cluster for CHAOS_MINUTES; with the fence off; kills after a 201
	PYTHONPATH=tests $(BIN)/python -m chaos --minutes $(CHAOS_MINUTES) $(CHAOS_ARGS)
	PYTHONPATH=tests $(BIN)/python -m chaos --mutate fence-off
	PYTHONPATH=tests $(BIN)/python -m chaos.accepted $(CHAOS_KILLS)

.PHONY: bench
bench: setup ## measurements on this machine
	@for bench in $$(grep -l __main__ bench/*.py); do $(BIN)/python "$$bench" || exit; done

.PHONY: clean
clean: ## remove what make made; .kakuri, where kakuri dev keeps what you applied, stays
	rm -rf $(VENV) .cache build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
