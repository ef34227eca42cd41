# Everything lives in .venv; PYTHON may name another interpreter (3.11 or 3.12): make PYTHON=python3.12 test
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test lint docs setup wheel clean

demo: setup
	$(BIN)/fl-sim run demo

test: setup
	$(BIN)/python -m pytest -n 2 --dist loadgroup

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# into build/site; $(BIN)/mkdocs serve shows it, with its search
docs: setup
	$(BIN)/mkdocs build --strict

setup: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $@

wheel: setup
	$(BIN)/python -m build --wheel

clean:
	rm -rf $(VENV) build dist *.egg-info
