# Needs only Python >= 3.11 and make. PYTHON=python3.12 picks another interpreter.
# QUIET= shows what pip does; the demo, which a newcomer waits for, shows it by itself.
PYTHON ?= python3
BIN := .venv/bin
QUIET ?= --quiet

.PHONY: demo test test-all test-peers lint bench accelerator docs examples clean

demo: QUIET :=
demo: .venv/applications.stamp
	@echo "Which digits are hardest to make a classifier forget? Three seeds, about a minute."
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
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

examples: .venv/test.stamp
	for script in docs/examples/*.py; do $(BIN)/python docs/gallery.py $$script || exit 1; done

.venv/%.stamp: pyproject.toml
	@echo "Installing bilevel[$*] into .venv: the first time some hundred megabytes, a few minutes."
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install $(QUIET) --disable-pip-version-check --editable '.[$*]'
	touch $@

clean:
	rm -rf .venv results
