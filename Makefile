# make demo: the whole job on the embedded pocket suite. make test: every quick check.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.set-up
DEMO ?= demo

# A process of tests for each core, each with one OpenMP thread. A file stays in one process: its
# fixtures (a built dataset, a server) are made once.
WORKERS ?= 2
PARALLEL := -n $(WORKERS) --dist loadfile
# By their number of tests the longest files would come last, and one process work alone in the end.
IN_ORDER := --no-loadscope-reorder
export HF_HUB_OFFLINE := 1

.PHONY: help setup demo test test-slow lint types format docs bench chaos clean

help:  ## what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 14

setup: $(STAMP)  ## a virtual environment with everything; does nothing when it is there

$(STAMP): pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: make setup PYTHON=/path/to/python"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --editable '.[dev]'
	@touch $@

demo: $(STAMP)  ## subjects -> pairs -> adapter -> evaluation -> report, in ./demo
	$(BIN)/focusdpo demo --out $(DEMO)

test: $(STAMP) lint types  ## lint, types, and all quick tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" $(PARALLEL)

test-slow: $(STAMP)  ## tests of five seconds and more, or with the trained weights at length
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "slow and not alone" $(PARALLEL) $(IN_ORDER)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "slow and alone" $$(grep -rl 'mark\.alone' tests)

lint: $(STAMP)  ## ruff's rules and layout, and who may import whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PYTHONPATH=.typing $(BIN)/lint-imports --no-logo --no-cache

types: $(STAMP)  ## mypy
	MYPYPATH=.typing:. $(BIN)/mypy -p focusdpo -p benchmarks

format: $(STAMP)  ## put the layout right
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP)  ## the site, into build/site; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(STAMP)  ## the promised figures, measured here
	$(BIN)/python -m benchmarks --out runs/bench-$(shell date +%Y%m%d-%H%M%S)

chaos: $(STAMP)  ## faults by the hundred; again, it goes on behind the trials in build/chaos.json
	mkdir -p build
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.chaos --json build/chaos.json --hostile 36 --foreign 36 \
	  --not-finite 12 --wounds 80 --full 30 --read-only 10 --taken-away 18 --beside 12 --clocks 12 \
	  --signals 24 --databases 5 --kills 150 --train-kills 40 --evaluate-kills 10 --retrain-kills 16 \
	  --damages 48 --full-disks 12 --prefect 5 --bucket 30

clean:  ## what was built and cached, but neither .venv nor demo
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
