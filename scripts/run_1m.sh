#!/usr/bin/env bash
# A llama of 1M parameters on Python's own standard library; arguments go to core.training.
source "$(dirname "${BASH_SOURCE[0]}")/bootstrap.sh"
run_config configs/models/model-config-1m.yaml "$@"
