#!/usr/bin/env bash
# The quickstart shared by two processes of this machine, which gives the losses of one.
source "$(dirname "${BASH_SOURCE[0]}")/bootstrap.sh"
install
exec .venv/bin/mlx.launch --backend ring -n 2 -- $VENV_PYTHON -m core.training \
  --config configs/training/quickstart.yaml name=quickstart-two-ranks distributed.type=data_parallel "$@"
