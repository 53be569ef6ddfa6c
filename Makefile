# Development commands. Users start with scripts/run_quickstart.sh and need none of these.
PYTHON ?= .venv/bin/python

.PHONY: check lint types test slow golden bench lock

check: lint types test

lint:
	$(PYTHON) -m ruff check .

types:
	$(PYTHON) -m pyright

test:
	scripts/run_tests.sh

# The long tests. PyTorch, as the peer of one of them, is no dependency: it is installed here and nowhere else.
slow:
	scripts/run_tests.sh --collect-only -q -m slow > /dev/null
	$(PYTHON) -c 'import torch' 2> /dev/null || $(PYTHON) -m pip install -q torch==2.13.0
	scripts/run_tests.sh -m slow

# Rewrites tests/golden/; the commit message says why the numbers moved.
golden:
	PIPPIN_WRITE_GOLDEN=1 scripts/run_tests.sh -k golden

bench:
	$(PYTHON) tools/benchmark-blas.py
	$(PYTHON) tools/benchmark.py all --bars

# Versions only: no hosts, no paths, and not the tools that install.
lock:
	{ echo "# Versions the suite passed with, for pip install -c. Written by make lock."; \
	  $(PYTHON) -m pip freeze --exclude-editable | grep -E '^[A-Za-z0-9_.-]+==' ; } > requirements-lock.new
	mv requirements-lock.new requirements-lock.txt
