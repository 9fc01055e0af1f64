# Every target makes the virtual environment when it is missing or out of date.
#
#   make demo    the example app on real servers
#   make test    the test suite              (PYTEST_ARGS="-k name" narrows it)
#   make test-slow  what takes minutes: a cluster's leader lost in 30 rotations
#   make check   all that must hold besides: lint, format, types, security, docs, packages
#   make docs    the documentation, in docs/_build/html
#   make bench   the benchmarks, as a table

PYTHON ?= python3
PYTEST_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip -qq --disable-pip-version-check
STAMP := $(VENV)/.installed
DIST := build/dist
WHEEL := build/wheel

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-slow check lint types security docs dist bench clean

help:
	@sed -n 's/^#   //p' Makefile

venv: $(STAMP)

# pip is renewed first: --group needs 25.1. The package itself comes last, when the build
# backend is there, so that nothing has to be fetched to build it. -qq: errors only.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "Python 3.10 or newer is needed: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 \
		|| $(PYTHON) -m venv --clear $(VENV)
	@echo "Installing into $(VENV)"
	@$(PIP) install --upgrade --constraint constraints.txt pip
	@$(PIP) install --constraint constraints.txt --group dev
	@$(PIP) install --constraint constraints.txt --no-build-isolation --editable '.[testing]'
	@touch $@

demo: $(STAMP)
	@$(BIN)/python -m example_app.demo

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile $(PYTEST_ARGS)

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow $(PYTEST_ARGS)

check: lint types security docs dist

lint: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check

# bandit's lesser findings are rules of ruff's, too, where each exception has a reason.
security: $(STAMP)
	$(BIN)/bandit --quiet --severity-level medium --recursive flask_vault
	$(BIN)/python .ci/audit.py

types: $(STAMP)
	$(BIN)/mypy

docs: $(STAMP)
	$(BIN)/sphinx-build --quiet -n -W -E -b dirhtml docs docs/_build/html

# The wheel is made from the sdist, then installed where nothing else is. The import and
# the command run in a folder without the sources, or they would find those.
dist: $(STAMP)
	rm -rf $(DIST) $(WHEEL)
	$(BIN)/python -m build --no-isolation --outdir $(DIST) . >/dev/null
	$(PYTHON) -m venv $(WHEEL)/venv
	$(WHEEL)/venv/bin/python -m pip -qq --disable-pip-version-check install \
		--constraint constraints.txt $(DIST)/*.whl
	echo 'app = __import__("flask").Flask(__name__)' > $(WHEEL)/app.py
	cd $(WHEEL) && venv/bin/python -c 'import flask_vault'
	cd $(WHEEL) && venv/bin/flask --help | grep -E '^ +vault '

bench: $(STAMP)
	$(BIN)/python -m tests.benchmarks

clean:
	rm -rf $(VENV) build docs/_build .mypy_cache .pytest_cache .ruff_cache
