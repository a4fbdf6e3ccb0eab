# Everything a person or CI runs. `make quickstart` and `make test` need nothing but Python 3.11 and make.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
export SECATEUR_STORE ?= store
S3_JOB := tests/s3/test_run.py::test_expired_credentials_end_it_and_an_outage_does_not

.PHONY: quickstart mnist sweep cells test test-faults chaos lint audit bench clean

quickstart: $(VENV)/.run
	$(BIN)/secateur run configs/quickstart.yaml

mnist: $(VENV)/.run
	$(BIN)/secateur run configs/mnist.yaml

# The collapse and its repair, as the figure in the README: MNIST=/path make sweep
sweep: $(VENV)/.run
	$(BIN)/secateur sweep configs/sweep.yaml

# Every sampler against random, cell by cell, into benchmarks/cells.md: MNIST=/path make cells (hours on two cores)
cells: $(VENV)/.dev
	$(BIN)/python -m benchmarks.cells

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --dist loadgroup --ignore=tests/faults --deselect $(S3_JOB)

# What dies, where, and what is left of it: kills, cancellations, crash points, a run on S3. They wait more than they
# compute, so three at once on two cores.
test-faults: $(VENV)/.dev
	$(BIN)/python -m pytest -n 3 --dist loadgroup --durations 12 $(S3_JOB) tests/faults

chaos: $(VENV)/.dev
	$(BIN)/python -m tests.faults.chaos --seed 1 --kills 30

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# A report, which never fails: what is known against the pinned packages.
audit: $(VENV)/.dev
	$(BIN)/python .ci/audit

bench: $(VENV)/.dev
	$(BIN)/pip install --quiet -c constraints.txt -e ".[bench]"
	$(BIN)/python -m benchmarks

$(VENV)/.run: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
# torch by its exact pin, first: a range fetches gigabytes of CUDA where a CPU build would do.
	$(BIN)/pip install --quiet "torch==$$(sed -n 's/^torch==//p' constraints.txt)" -c constraints.txt
	$(BIN)/pip install --quiet -c constraints.txt -e .
	touch $@

$(VENV)/.dev: $(VENV)/.run
	$(BIN)/pip install --quiet -c constraints.txt -e ".[test,lint]"
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
