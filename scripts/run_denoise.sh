#!/usr/bin/env bash
# The quickstart's text with the other objective: fill in masked tokens from both sides.
source "$(dirname "${BASH_SOURCE[0]}")/bootstrap.sh"
run_config configs/training/denoise.yaml "$@"
