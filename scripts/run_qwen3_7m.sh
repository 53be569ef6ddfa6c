#!/usr/bin/env bash
# A qwen3 of 7M parameters on Python's own standard library; arguments go to core.training.
source "$(dirname "${BASH_SOURCE[0]}")/bootstrap.sh"
run_config configs/models/model-config-qwen3-7m.yaml "$@"
