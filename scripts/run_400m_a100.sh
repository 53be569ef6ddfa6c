#!/usr/bin/env bash
# A llama of 400M parameters on corpus/train.jsonl, on an A100 at Modal; goes on there when this machine is switched off.
source "$(dirname "${BASH_SOURCE[0]}")/bootstrap.sh"
run_on_modal --detach --config configs/models/model-config-400m.yaml --gpu A100-80GB "$@"
