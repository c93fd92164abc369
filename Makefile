# `make demo` shows the program at work, `make test` proves it. Both set themselves up; all that is needed is Python.
#
#   make PYTHON=python3.12 test    another interpreter          make test ARGS='-k escalation -x'    options for pytest
PYTHON ?= python3
VENV ?= .venv
GROUP ?= dev
ARGS ?=
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PYTEST := $(BIN)/python -m pytest

.PHONY: help demo test quick soak bench smoke-wandb lint format lab clean

help:
	@echo 'make demo    a real training, told by a real daemon that its (rehearsed) EC2 spot instance is going away'
	@echo 'make test    every test that this machine can run; the others say what they lack'
	@echo 'make lab     as root: install what they lack (tini, network tools, torch, several wandb versions)'
	@echo 'make quick   those that need nothing special and no time   make lint    format, lint, types, layers'
	@echo 'make soak    the matrices whole (hours)                   make bench   the figures of docs/benchmarks.md'
	@echo 'make smoke-wandb   two preempted runs against the real W&B service: needs your key, and your eyes'

# Runs again only when pyproject.toml changes: code is installed in editable mode, entry points are not live.
$(READY): pyproject.toml
	@.ci/venv $(PYTHON) $(VENV)
	@echo 'installing preemptd and its $(GROUP) tools into $(VENV)'
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --editable . --group $(GROUP)
	@touch $@

demo: $(READY)
	@rm -rf demo-out && mkdir demo-out
	WANDB_MODE=offline WANDB_DIR=demo-out $(BIN)/preemptd rehearse --provider ec2 --after 3 --grace 20 \
	  --checkpoint-dir demo-out/checkpoints -- $(BIN)/python docs/examples/train.py --checkpoints demo-out/checkpoints
	@echo
	@echo 'It goes on from there:  $(BIN)/python docs/examples/train.py --checkpoints demo-out/checkpoints'

test: $(READY)
	$(PYTEST) -n 8 $(ARGS)

quick: $(READY)
	$(PYTEST) -n 8 -m 'not lab and not slow' $(ARGS)

soak: $(READY)
	PREEMPTD_SOAK=1 $(PYTEST) -m soak --timeout 3600 $(ARGS)

bench: $(READY)
	$(BIN)/python -m tests.bench $(ARGS)

smoke-wandb: $(READY)
	@$(BIN)/python -m tests.smoke $(ARGS)

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lab:
	PYTHON=$(PYTHON) tests/lab/install.sh

clean:
	rm -rf .venv .venv-* dist demo-out .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
