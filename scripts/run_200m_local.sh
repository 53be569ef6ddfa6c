#!/usr/bin/env bash
# A llama of 200M parameters on corpus/train.jsonl (one {"text": ...} a line); arguments go to core.training.
source "$(dirname "${BASH_SOURCE[0]}")/bootstrap.sh"
run_config configs/models/model-config-200m.yaml "$@"
