# make demo    install, build the demo (10 % of the labels flipped on purpose), open the app
# make test    install, run every test
# make check   install, lint, formatting, types
# make reference   writes docs/reference.md from the docstrings and the commands' help
# make bench   lists the benchmarks, one line each; make bench NAME=demo runs one
#
# Options: PORT=8600 another port for the app, OPEN=0 no browser window, STUDY=0 no other strategies in
# the background, PYTHON=/path/to/python

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SUFFIXES:

VENV := .venv
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip --disable-pip-version-check install --quiet
PORT ?= 8501
OPEN ?= 1
STUDY ?= 1
PYTHON ?=
NAME ?=
CHECKED := attribution bench tests pages app.py docs/reference.py

.PHONY: help demo test check format reference bench app

help:
	@awk '!/^#/ { exit } { sub(/^# ?/, ""); print }' Makefile

# The first of these that is Python 3.11 or newer; 3.11 is what the pins were tested with.
$(RUN):
	@for python in $(PYTHON) python3.11 python3.12 python3.13 python3.14 python3; do \
	  if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    echo "Making the virtual environment $(VENV) with $$("$$python" -V)."; \
	    exec "$$python" -m venv $(VENV); \
	  fi; \
	done; \
	echo "Found no Python 3.11 or newer: install one, or name it with make PYTHON=/path/to/python." >&2; \
	exit 2

# A stamp is newer than what it was installed from, so an up-to-date environment is left alone.
$(VENV)/installed: requirements.txt pyproject.toml | $(RUN)
	@echo "Installing requirements.txt into $(VENV): some minutes the first time, PyTorch is large."
	@$(PIP) -r requirements.txt -e .
	@touch $@

$(VENV)/installed-dev: requirements-dev.txt requirements-quanda.txt $(VENV)/installed
	@echo "Installing requirements-dev.txt and requirements-quanda.txt into $(VENV)."
	@$(PIP) -r requirements-dev.txt
	@$(PIP) --no-deps -r requirements-quanda.txt
	@touch $@

demo: $(VENV)/installed
	@echo "Building the demo: 5,000 MNIST images, 10 % of the training labels flipped on purpose."
	@$(RUN) -m attribution build --noise 0.1
	@$(if $(filter 0 no false,$(STUDY)),,$(RUN) -m attribution study --background)
	@$(MAKE) --no-print-directory app

app: $(VENV)/installed
	@echo "Opening the app at http://localhost:$(PORT) (Ctrl-C ends it)."
	@$(RUN) -m attribution app --port $(PORT) $(if $(filter 0 no false,$(OPEN)),--no-browser)

test: $(VENV)/installed-dev
	@$(RUN) -m pytest --numprocesses 2 --dist loadfile

check: $(VENV)/installed-dev
	@echo "Lint (ruff check)"
	@$(RUN) -m ruff check $(CHECKED)
	@echo "Formatting (ruff format --check)"
	@$(RUN) -m ruff format --check $(CHECKED)
	@echo "Types (mypy)"
	@$(RUN) -m mypy

format: $(VENV)/installed-dev
	@$(RUN) -m ruff check --fix $(CHECKED)
	@$(RUN) -m ruff format $(CHECKED)

reference: $(VENV)/installed
	@$(RUN) docs/reference.py

bench: $(VENV)/installed-dev
	@$(RUN) -m bench $(NAME)
