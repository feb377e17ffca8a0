# Everything a developer types. `make` alone shows the targets.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install train demo test test-slow test-faults check format bench reproduce methods docs dist release clean

help:  ## show the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

# --no-compile: Python compiles a module when it is first imported, and most never are
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt --editable '.[dev]'
	@touch $@

# What a target needs beside the development tools, by the name of the extra
$(STAMP)-%: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt --editable '.[dev,$*]'
	@touch $@

install: $(STAMP)  ## make .venv with apollo-train and the development tools
	@echo "installed in $(VENV); type make train, or . $(BIN)/activate for the commands"

train: $(STAMP)  ## pretrain with the defaults: a small BERT, about two minutes; ARGS="model=gpt ..." adds overrides
	$(BIN)/apollo-train $(ARGS)

demo: $(STAMP)  ## Apollo beside scratch with equal FLOPs, BERT and GPT, and their comparison: about six minutes
	$(BIN)/apollo-train -m experiment=apollo_late,scratch model=bert,gpt budget.flops=4e12 precision=fp32 hydra.sweep.dir=outputs/demo
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
	$(BIN)/mypy -n auto

format: $(STAMP)  ## mend lint and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

reproduce: $(STAMP)  ## what each method saves, from nothing: hours; continues a stopped one; benchmarks/PYDOCS.md
	$(BIN)/python -m benchmarks.run_reproduction

methods: $(STAMP)  ## every growth method on the same work: hours; continues a stopped one; benchmarks/METHODS.md
	$(BIN)/python -m benchmarks.run_methods

bench: $(STAMP)-bench  ## measure speed and memory against peers, half an hour on two quiet cores; benchmarks/SPEED.md
	$(BIN)/python -m benchmarks.run_speed

docs: $(STAMP)  ## build the site of docs/ into site/; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

dist: $(STAMP)-release  ## build the sdist and the wheel into dist/, and check them
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*

release: dist  ## upload dist/ to the Python Package Index; the token is TWINE_PASSWORD, or asked for
	$(BIN)/twine upload dist/*

clean:  ## remove .venv and build output; outputs/ stays
	rm -rf $(VENV) build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache
