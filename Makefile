# Two commands: `make demo` and `make test`. Each builds .venv by itself when needed.
SHELL := /bin/bash
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
OUT ?= demo

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow lint format constraints clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 22

demo: $(STAMP) ## the whole loop on a puppet world, offline, on a CPU: OUT=demo
	$(PY) cli.py demo --out $(OUT)

test: $(STAMP) ## the fast tier, what CI runs (under 12 minutes on 2 cores)
	$(PY) -m pytest -m "not slow"

test-slow: $(STAMP) ## kills, clusters, several ranks, big inputs
	$(PY) -m pytest -m slow

lint: $(STAMP) ## ruff and mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: $(STAMP) ## rewrite the code in the house style
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

constraints: $(STAMP) ## write constraints.txt from what is installed
	@{ head -1 constraints.txt; $(PY) -m pip freeze --exclude-editable \
	  | grep -viE '^(pip|setuptools|wheel|echoforge|syncnet-python|openvino)\b'; } > constraints.tmp
	@mv constraints.tmp constraints.txt

clean: ## remove the environment and the demo
	rm -rf $(VENV) $(OUT)

$(STAMP): pyproject.toml constraints.txt requirements-no-deps.txt
	@for p in $(PYTHON) python3.12 python3.11 python3; do \
	  if $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' >/dev/null 2>&1; then found=$$p; break; fi; \
	done; \
	if [ -z "$$found" ]; then echo "Python 3.11 or 3.12 is needed: install one, or name it with PYTHON=/path/to/python."; exit 1; fi; \
	if [ ! -x $(PY) ]; then echo "Making $(VENV) with $$($$found --version) (a few minutes: torch alone is about 1 GB) ..."; $$found -m venv $(VENV); fi
	$(PY) -m pip install --quiet --upgrade "pip>=24"
	$(PY) -m pip install --constraint constraints.txt --editable '.[dev]'
	$(PY) -m pip install --constraint constraints.txt --no-deps --requirement requirements-no-deps.txt
	@touch $(STAMP)
