# Every target sets up what it needs; `make demo` and `make test` are all that a fresh machine needs.

PYTHON ?= $(shell for p in python3.11 python3.12 python3; do \
  $$p -c 'import sys; sys.exit(not ((3, 11, 1) <= sys.version_info[:3] < (3, 13)))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
NEWEST := .venv-newest
READY := $(VENV)/.ready

.PHONY: setup demo test test-full test-newest lint bench clean

setup: $(READY)

$(READY): pyproject.toml
	@test -n "$(PYTHON)" || { echo "No Python 3.11 (from 3.11.1 on) or 3.12 was found; install one, or say make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || { echo "$(PYTHON) has no venv module; on Debian: apt-get install python3-venv"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

demo: $(READY)
	$(BIN)/secure-infer demo --json demo.json

test: $(READY)
	$(BIN)/python -m pytest -m "not full" --numprocesses auto --maxprocesses 4 --dist loadfile

test-full: $(READY)
	$(BIN)/python -m pytest

# Attacks and defenses need no cryptography, hence none of its old pins: the newest torch and numpy 2, for example
# `make test-newest PYTHON=python3.12`.
test-newest:
	test -x $(NEWEST)/bin/python || $(PYTHON) -m venv $(NEWEST)
	$(NEWEST)/bin/python -m pip install --quiet --upgrade --editable . torch 'numpy>=2' scikit-learn pillow tqdm foolbox \
	  hypothesis pytest pytest-timeout
	$(NEWEST)/bin/python -m pytest -m "not full" tests/attacks tests/defenses

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY)
	$(BIN)/secure-infer bench digits
	$(BIN)/secure-infer bench --report

clean:
	rm -rf $(VENV) $(NEWEST) .pytest_cache .mypy_cache .ruff_cache .hypothesis dist
