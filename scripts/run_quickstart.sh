#!/usr/bin/env bash
# From nothing to a trained model in some minutes: installs into .venv, trains on Python's own standard library, prints
# a sample. Started again it trains anew; with `--resume` it continues. Other arguments go to core.training.
source "$(dirname "${BASH_SOURCE[0]}")/bootstrap.sh"
case " $* " in
  *" --resume "*) ;;
  *) set -- --overwrite "$@" ;;
esac
run_config configs/training/quickstart.yaml "$@"
