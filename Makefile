# Targets document themselves: the text after ## is what `make help` prints.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow fault-injection fuzz study lint docs dist benchmark nullity notebook clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'

setup: $(READY)  ## create .venv with the exact versions of constraints.txt

$(READY): pyproject.toml setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $(PYTHON) is older than 3.11: type make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(READY)  ## pretrain on digits, finetune with and without nullspace noise, evaluate: outputs/demo
	PYTHON=$(BIN)/python sh scripts/demo.sh

test: $(READY)  ## the fast tests; no network, no GPU
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow"

test-slow: $(READY)  ## the tests that take minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m slow

fault-injection: $(READY)  ## every fault at fixed moments; then stop KILLS=20 runs at random ones; resume, compare
	$(BIN)/python scripts/fault_matrix.py
	$(BIN)/python scripts/fault_injection.py --kills $(or $(KILLS),20)

fuzz: $(READY)  ## run COUNT=1000 bad inputs, drawn with SEED=0: every error is one line
	$(BIN)/python scripts/fuzz_cli.py --count $(or $(COUNT),1000) --seed $(or $(SEED),0)

lint: $(READY)  ## style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python scripts/check_language.py

docs: $(READY)  ## build the documentation, without network; warnings are errors: site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

dist: $(READY)  ## build wheel and sdist, and check what a package index would: dist/
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/twine check --strict dist/*

study: $(READY)  ## finetune by every method on digits, seven seeds, and evaluate: outputs/study (20 minutes)
	$(BIN)/python studies/study.py test

benchmark: $(READY)  ## cost of training steps and of evaluation, as ratios
	$(BIN)/python benchmarks/step_cost.py
	$(BIN)/python benchmarks/evaluation.py --check

nullity: $(READY)  ## dimension of the exact nullspace for timm's ViT families
	$(BIN)/python -m nsaug.nullspace.nullity

notebook: $(READY)  ## run the notebook of docs/ and store its outputs in it
	$(BIN)/jupyter execute --inplace docs/nullspace_noise.ipynb

clean:  ## remove the environment and all outputs
	rm -rf .venv outputs build dist site
