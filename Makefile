# Everything happens in .venv of this checkout, which `make install` makes and every target needs.
#   make train ARGS="model=dlrm seed=2"      arguments for the command behind a target
#   make install PYTHON=python3.12           another Python than the first that fits
#   make install ACCELERATOR=cpu             as if the machine had no GPU

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

RUN := .venv/bin/python -m
ARGS ?=

.PHONY: help
help: ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: install
install: ## install recemb and the tested versions into .venv (at once if nothing changed)
	@for python in $(PYTHON) .venv/bin/python python3.11 python3.12 python3.13 python3 python; do \
	  if "$$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
	      2> /dev/null; then exec "$$python" .ci/install.py; fi; \
	  if test "$$python" = "$(PYTHON)"; then break; fi; \
	done; \
	echo "make: no Python 3.11, 3.12 or 3.13 $(if $(PYTHON),under the name $(PYTHON),on PATH);" \
	  "install one, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; \
	exit 1

.PHONY: train
train: install ## train the default experiment; ARGS are overrides
	$(RUN) recemb train $(ARGS)

.PHONY: test
test: install ## run the default tests, a few minutes on a CPU
	$(RUN) pytest $(ARGS)

.PHONY: test-all
test-all: install ## run every test, the slow, the distributed and (given a GPU) the GPU ones too
	$(RUN) pytest -m "" $(ARGS)

# Types are checked on the built tree: recemb.conf and recemb.kernels lie elsewhere in the checkout.
.PHONY: lint
lint: install ## check style, format and types
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	rm -rf build
	$(RUN) pip install --quiet --no-deps --no-build-isolation --target build/typed .
	MYPYPATH=build/typed $(RUN) mypy -p recemb
	$(RUN) mypy .ci/install.py

.PHONY: bench
bench: install ## run the benchmarks, an hour or more on two cores; ARGS="--quick" tries the steps out
	.venv/bin/python benchmarks/data/compare_preprocessing.py $(if $(findstring --quick,$(ARGS)),--rows 20000 --rounds 1)
	.venv/bin/python benchmarks/training/compare.py $(ARGS)

.PHONY: clean
clean: ## delete what was built, but no environment, data or run
	rm -rf build dist recemb.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
