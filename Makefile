# Two commands: `make train` and `make test`. Both make `.venv` first if it is missing or out of date.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: train test test-hosts check setup clean

train: setup
	$(BIN)/python -m orchestrator train configs/quickstart.yaml

test: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-hosts: setup
	$(BIN)/python -m pytest -m hosts

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "unlocked needs Python 3.11 or newer, got $$($(PYTHON) --version); run: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --progress-bar off torch torchvision
	$(BIN)/python -m pip install --quiet --progress-bar off --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .import_linter_cache
