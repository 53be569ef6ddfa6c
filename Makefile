# Development commands. Users start with scripts/run_quickstart.sh and need none of these.
PYTHON ?= .venv/bin/python

.PHONY: check lint types test slow golden bench

check: lint types test

lint:
	$(PYTHON) -m ruff check .

types:
	$(PYTHON) -m pyright

test:
	scripts/run_tests.sh

slow:
	scripts/run_tests.sh -m slow

# Rewrites tests/golden/; the commit message says why the numbers moved.
golden:
	PIPPIN_WRITE_GOLDEN=1 scripts/run_tests.sh -k golden

bench:
	$(PYTHON) tools/benchmark-blas.py
