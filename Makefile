# Everything a newcomer needs: `make demo` and `make test`. `make help` lists the rest.
.DEFAULT_GOAL := help
.PHONY: help setup demo test lint advisories image-test lock sbom openapi peers fuzz soak bench

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Options for `embolens demo`, e.g. make demo DEMO="--pacs ORTHANC@10.0.0.5:4242"
DEMO ?=
# Time and options for fuzzing, e.g. make fuzz FUZZ_SECONDS=3600 FUZZ="--seed 7 --kind seg"
FUZZ_SECONDS ?= 600
FUZZ ?=
SOAK_SECONDS ?= 3600
# Names of benchmarks and options, e.g. make bench BENCH="c_store_receive --rounds 7"
BENCH ?=
# Options for pytest, e.g. make test PYTEST="tests/end_to_end -s"
PYTEST ?=

help: ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

$(VENV)/.runtime: requirements.lock requirements-torch.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.12 ..."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing the Python packages of requirements.lock into $(VENV) (about 2 GB, a few minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements-torch.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime requirements-dev.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements-dev.lock
	@touch $@

setup: $(VENV)/.runtime ## Only install, into .venv

demo: setup ## Push a phantom CTPA through everything and get its DICOM SEG back
	@$(BIN)/embolens demo $(DEMO)

peers: ## Install what the tests talk to: Redis, Orthanc, dcmtk, dicom3tools, PostgreSQL, Chromium (Debian)
	@sh deploy/test-peers.sh

test: $(VENV)/.dev peers lint ## All tests, with real peers
	@sh deploy/run-tests.sh $(PYTEST)

fuzz: $(VENV)/.dev ## Damaged files against every reader for FUZZ_SECONDS; findings are kept in .fuzzing
	@$(BIN)/python -m tests.fuzzing.fuzzer --seconds $(FUZZ_SECONDS) $(FUZZ)

soak: $(VENV)/.dev peers ## Mixed load with random faults for SOAK_SECONDS (3600), the report goes to docs/soak.md
	@SOAK_SECONDS=$(SOAK_SECONDS) sh deploy/run-tests.sh -s tests/faults/soak.py

$(VENV)/.bench: $(VENV)/.dev requirements-bench.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements-bench.lock
	@touch $@

bench: $(VENV)/.bench peers ## Side by side with what others use: writes docs/performance.md (on an idle machine)
	@sh deploy/run-benchmarks.sh $(BENCH)

lint: $(VENV)/.dev advisories ## ruff, mypy, import-linter, bandit, known vulnerabilities of the locked packages
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/bandit --quiet --configfile pyproject.toml --recursive .

advisories: $(VENV)/.dev ## Known vulnerabilities of the locked packages, where PyPI can be asked
	@$(BIN)/python deploy/advisories.py requirements-dev.lock requirements-torch.lock

image-test: $(VENV)/.dev ## Build and run the container images with buildah (as root, Debian)
	@sh deploy/image-test.sh

openapi: $(VENV)/.runtime ## Regenerate openapi/openapi.json
	@$(BIN)/python -m api.openapi

lock: $(VENV)/.dev ## Resolve the lock files anew
	@sh deploy/lock.sh
	@$(BIN)/python deploy/sbom.py

sbom: $(VENV)/.dev ## Bills of materials (CycloneDX) of both images, from the lock files
	@$(BIN)/python deploy/sbom.py
