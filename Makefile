# Everything lives in .venv; PYTHON may name another interpreter (3.11 or 3.12): make PYTHON=python3.12 test
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-quick lint docs setup browser wheel clean

demo: setup
	$(BIN)/fl-sim run demo

test: setup browser
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m "slow or not slow"

# without what takes minutes: a deployment (needs openssl and ssh-keygen), a Ray cluster whose nodes die and join
test-quick: setup browser
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

# The tests open reports in Chromium. One on the path will do; a Debian without one gets it here.
browser:
	@if { command -v chromium || command -v chromium-browser || command -v google-chrome; } >/dev/null; then :; \
	elif command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
	  apt-get -qq update && apt-get -qq install --yes --no-install-recommends chromium; \
	else echo "make test opens reports in Chromium: install chromium or google-chrome, so that it is on the path" >&2; exit 1; fi

wheel: setup
	$(BIN)/python -m build --wheel

clean:
	rm -rf $(VENV) build dist *.egg-info
