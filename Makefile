# Everything a developer types. `make` alone shows the targets.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
DOCS   := $(VENV)/.installed-docs
BENCH  := $(VENV)/.installed-bench

.DEFAULT_GOAL := help
.PHONY: help install train demo test test-slow test-faults check format wheel bench reproduce methods docs clean

help:  ## show the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

install: $(STAMP)  ## make .venv with apollo-train and the development tools

train: $(STAMP)  ## pretrain with the defaults: a small BERT, about two minutes; ARGS="model=gpt ..." adds overrides
	$(BIN)/apollo-train $(ARGS)

demo: $(STAMP)  ## Apollo beside scratch with equal FLOPs, BERT and GPT, and their comparison: about six minutes
	$(BIN)/apollo-train -m experiment=apollo_late,scratch model=bert,gpt budget.flops=5e12 hydra.sweep.dir=outputs/demo
	$(BIN)/apollo-compare outputs/demo

test: $(STAMP)  ## run the fast tests
	$(BIN)/python -m pytest -n auto --dist worksteal

test-slow: $(STAMP)  ## run the slow tests too
	$(BIN)/python -m pytest -m 'not gpu and not faults and not network'

test-faults: $(STAMP)  ## the long proof that no run is lost: kills, full disks, dead servers, bad input
	$(BIN)/python -m pytest tests/faults tests/sweeps/test_sweep.py -m 'faults or not faults'

check: $(STAMP)  ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)  ## mend lint and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel: $(STAMP)  ## build dist/*.whl
	$(BIN)/python -m build --wheel

reproduce: $(STAMP)  ## what each method saves, from nothing: hours; continues a stopped one; benchmarks/RESULTS.md
	$(BIN)/python -m benchmarks.run_reproduction

methods: $(STAMP)  ## every growth method on the same work: hours; continues a stopped one; benchmarks/RESULTS.md
	$(BIN)/python -m benchmarks.run_methods

bench: $(BENCH)  ## measure speed and memory against peers, half an hour on two quiet cores; benchmarks/RESULTS.md
	$(BIN)/python -m benchmarks.run_speed

$(BENCH): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,bench]'
	@touch $@

docs: $(DOCS)  ## build the site of docs/ into site/; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

$(DOCS): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,docs]'
	@touch $@

clean:  ## remove .venv and build output; outputs/ stays
	rm -rf $(VENV) build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache
