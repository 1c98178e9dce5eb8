# make demo | test | check | slow | bench | docs | mutants. Each makes .venv first where it is missing or out of date.
# The interpreter is the first Python 3.11 or newer found; choose another with: make PYTHON=/path/to/python test

PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
BEGUN := $(VENV)/.begun
ARGS ?=

.PHONY: demo test slow check bench docs mutants clean

demo: $(READY)
	@$(BIN)/graphpress demo $(ARGS)

# Each process takes neighbouring files, so that what a file's tests share is made once, and then from the other's rest.
test: $(READY)
	@$(BIN)/pytest -n 2 --dist worksteal $(ARGS)

slow: $(READY)
	@$(BIN)/pytest -m slow $(ARGS)

check: $(READY)
	@$(BIN)/python -m graphpress.tools.check $(ARGS)

bench: $(READY)
	@$(BIN)/python -m graphpress.tools.bench $(ARGS)

docs: $(READY)
	@$(BIN)/python -m graphpress.tools.check.pages
	@$(BIN)/python -m graphpress.tools.check.manual

# The extra stands outside `dev`: nothing else needs it. FILES="passes/fold/fold_bias.py ..." takes some files only.
mutants: $(READY)
	@$(BIN)/python -c 'import cosmic_ray' 2>/dev/null || $(PIP) --constraint constraints.txt --editable '.[mutants]'
	@$(BIN)/python -m graphpress.tools.mutants $(FILES) $(ARGS)

clean:
	rm -rf $(VENV) .check build dist *.egg-info

# .begun is written first and .ready last. An environment that was begun and is not ready was interrupted, may be broken
# anywhere, and is made anew. Where pip gives up by itself it has changed nothing, and a ready one stays in use.
PIP := PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --disable-pip-version-check

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "graphpress needs Python 3.11 or newer: make PYTHON=/path/to/python $(MAKECMDGOALS)" >&2; exit 2; }
	@if [ -e $(BEGUN) ] || ! $(BIN)/python -m pip --version >/dev/null 2>&1; then $(PYTHON) -m venv --clear $(VENV); fi
	@echo "Installing into $(VENV); the first time takes a minute or two."
	@touch $(BEGUN)
	@$(PIP) --constraint constraints.txt --editable '.[dev]' || { test ! -e $@ || rm $(BEGUN); exit 1; }
	@rm $(BEGUN) && touch $@
