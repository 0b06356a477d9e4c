# Everything runs in a virtual environment of its own (.venv), made here: Python 3.11 or newer and make are enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help test lint test-system demo bench clean
help:            ## Show the commands
	@grep -hE '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 16

$(READY): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable . --group dev
	touch $(READY)

lint: $(READY)   ## Style, types and the floors of the house
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint       ## The default suite: no root, nothing installed outside .venv
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-system: $(READY)  ## The rest: root, and programs installed from the operating system's packages
	tests/system/install
	$(BIN)/python -m pytest -m system

demo: $(READY)   ## The main job on this machine's real telemetry, hurt in every way that the field knows; then the books
	$(BIN)/python -m demo

bench: $(READY)  ## Push and drain beside the raw limit and the real 1.x
	$(BIN)/python -m benchmarks

clean:           ## Remove what the commands above made
	rm -rf $(VENV) dist build .mypy_cache .pytest_cache .ruff_cache .hypothesis benchmarks/.env-1x benchmarks/out
