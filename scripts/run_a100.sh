#!/usr/bin/env bash
# A llama of 100M parameters on corpus/train.jsonl, on an A100 at Modal; further arguments go to modal_deploy.py.
source "$(dirname "${BASH_SOURCE[0]}")/bootstrap.sh"
run_on_modal --config configs/models/model-config-100m.yaml --gpu A100-80GB "$@"
