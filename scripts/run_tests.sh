#!/usr/bin/env bash
# Installs the test extra and runs the fast test suite. Arguments go to pytest: `-m slow`, `-k packing`, a file.
source "$(dirname "${BASH_SOURCE[0]}")/bootstrap.sh"
install dev
exec $VENV_PYTHON -m pytest -n auto --maxprocesses 4 "$@"
