# Everything happens in .venv, which is made on first use and renewed when the pins change.

SHELL := bash
.DEFAULT_GOAL := help
.PHONY: help setup run test lab notebooks manifest figures clean

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# The first Python on the path that is new enough; `make PYTHON=/path/to/python` chooses another.
NEW_ENOUGH := -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))'
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python $(NEW_ENOUGH) 2>/dev/null && echo $$python && break; done)

help:  ## show these verbs
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY)  ## make .venv and install the pinned versions

run: $(READY)  ## measure the shipped ladder, dense and pruned, and write runs/quick/report.html
	@$(BIN)/labkit run quick --out runs/quick

test: $(READY)  ## every test, and every notebook run and compared with its stored outputs
	@$(BIN)/python -m pytest tests notebooks --nbval-lax --nbval-current-env \
		--nbval-sanitize-with tests/notebooks/sanitize.cfg

lab: $(READY)  ## open JupyterLab on the notebooks
	@$(BIN)/jupyter lab --notebook-dir notebooks $(if $(filter 0,$(shell id -u)),--allow-root)  # root: in a container

notebooks: $(READY)  ## run every notebook in place and keep its outputs
	@$(BIN)/jupyter nbconvert --to notebook --execute --inplace --ExecutePreprocessor.kernel_name=python3 \
		--ExecutePreprocessor.record_timing=False --ExecutePreprocessor.store_widget_state=False notebooks/*.ipynb

manifest: $(READY)  ## list the shipped files with their checksums
	@$(BIN)/python -c "from labkit.schooling import write_manifest; write_manifest('src/labkit/artifacts')"

figures: $(READY)  ## draw the README's figure and write its table from the shipped rows
	@$(BIN)/python docs/figures.py

clean:  ## remove .venv and caches (runs/ holds measurements, and stays)
	@rm -rf $(VENV) build dist src/*.egg-info .pytest_cache .hypothesis
	@find src tests notebooks benchmarks -type d \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +

# The stamp is touched last, so an installation that was cut off is taken up again.
$(READY): pyproject.toml constraints.txt build_backend.py
	@if ! "$(PYTHON)" $(NEW_ENOUGH) 2>/dev/null; then \
		echo "labkit needs Python 3.11 or newer with the venv module; got '$(PYTHON)'." >&2; \
		echo "Install one, or name it: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; fi
	@test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	@echo "Installing the versions of constraints.txt into $(VENV). PyTorch is large: this takes some minutes, once."
	@set -o pipefail; $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[notebook,test]' \
		| awk '/^Collecting/ { printf "\r\033[K%4d  %s", ++n, $$2; fflush() } \
		       /^Installing/ { printf "\r\033[K%4d packages fetched; unpacking ...", n; fflush() } \
		       /^Successfully/ { print "\r\033[KInstalled." }'
	@touch $@
