# `make check` is what CI runs; it needs the environment of the README's second command.
export OMP_NUM_THREADS ?= 1
BIN := .venv/bin

.PHONY: check lint types layers test docs

check: lint types layers test docs

lint:
	$(BIN)/ruff check src tests examples benchmarks docs/hooks
	$(BIN)/ruff format --check src tests examples benchmarks docs/hooks
	$(BIN)/codespell README.md CONTRIBUTING.md CHANGELOG.md docs src tests examples benchmarks

types:
	$(BIN)/basedpyright --pythonpath $(BIN)/python

layers:
	$(BIN)/lint-imports

test:
	$(BIN)/python -m pytest -n 2

docs:
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
