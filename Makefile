# The two commands of the README, and what continuous integration runs. Everything happens in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SHARE ?=
ONLY ?=
JOBS ?= logical
TESTS := -n $(JOBS) --maxprocesses 8 --dist loadfile --no-loadscope-reorder
REAL_DATA ?= $(wildcard ../shared/data)

.PHONY: demo test slow slurm lint type bench clean

demo: $(STAMP)
	$(BIN)/dgbench run --method dualtask --heldout RENJI

test: $(STAMP)
	$(BIN)/pytest $(TESTS) -m "not slow and not gpu" $(if $(REAL_DATA),--real-data=$(REAL_DATA))

slow: $(STAMP)
	$(BIN)/pytest $(TESTS) -m "slow and not gpu" $(if $(SHARE),--share=$(SHARE)) $(if $(REAL_DATA),--real-data=$(REAL_DATA))

slurm: $(STAMP)
	$(BIN)/pytest --slurm tests/slurm $(if $(SHARE),--share=$(SHARE)) $(ONLY)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

type: $(STAMP)
	$(BIN)/mypy

bench: $(STAMP)
	for script in benchmarks/*.py; do $(BIN)/python $$script || exit 1; done

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache
