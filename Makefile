# Needs only Python >= 3.11 and make. PYTHON=python3.12 picks another interpreter.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-all test-peers lint bench accelerator docs clean

demo: .venv/applications.stamp
	$(BIN)/python -m applications.forget_set --output results/demo --overwrite

test: .venv/test.stamp
	$(BIN)/python -m pytest -n 2 -m 'not slow'

test-all: .venv/test.stamp
	$(BIN)/python -m pytest -n 2

test-peers: .venv/peers.stamp
	$(BIN)/python -m pytest -n 2 tests/peers -rs

lint: .venv/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/test.stamp
	$(BIN)/python -m pytest benchmarks --benchmark-only -p no:xdist

# On the interpreter that has the device's JAX: PYTHON, not the environment that make builds.
DATA ?= data
BUDGET ?= 480
accelerator:
	$(PYTHON) -m benchmarks.accelerator --data-dir $(DATA) --budget $(BUDGET)

docs: .venv/docs.stamp
	$(BIN)/mkdocs build --strict

.venv/%.stamp: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	touch $@

clean:
	rm -rf .venv results
