# befit's two commands for a newcomer, and one for a contributor. `make` alone lists them.

PYTHON ?= python3
VENV   ?= .venv
BUDGET ?= latency=70%, memory=70%
RUN    ?= runs/demo

.DEFAULT_GOAL := help
.PHONY: help demo test check

help: ## list what can be made
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/installed ## fit the embedded parent to a budget: a table here, the report in runs/demo/report.html
	$(VENV)/bin/befit puzzle --budget "$(BUDGET)" --baselines --out $(RUN)

test: $(VENV)/installed ## run all tests (some need Chromium and PostgreSQL: apt-get install chromium postgresql)
	$(VENV)/bin/pytest --numprocesses auto --maxprocesses 4 --dist loadfile

check: $(VENV)/installed ## formatting, lint and types: what pre-commit runs
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/pyright --pythonpath $(VENV)/bin/python

# Made once; again when what to install changes.
$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "befit needs Python 3.11 or newer, this is " + sys.version.split()[0] + ": make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --constraint constraints.txt --editable '.[test]'
	@touch $@
