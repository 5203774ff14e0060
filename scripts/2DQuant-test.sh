#!/usr/bin/env bash
# Tests what 2DQuant-train.sh made: the best checkpoint of each run, or its latest where none was chosen by validation.
# SCALES="2 3 4" BITS="2 3 4" choose; arguments are appended: `num_gpu=0 path:pretrain_network_Q=FILE` are further --force_yml
# settings, then flags.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
for scale in ${SCALES:-2 3 4}; do
  for bit in ${BITS:-2 3 4}; do
    models="experiments/train_2DQuant_x${scale}_bit${bit}/models"
    weights="$models/net_Q_best.pth"
    [[ -f "$weights" ]] || weights="$models/net_Q_latest.pth"
    python test.py -opt "options/test/test_2DQuant_x${scale}.yml" \
      --force_yml "bit=${bit}" "name=test_2DQuant_x${scale}_bit${bit}" "path:pretrain_network_Q=${weights}" "$@"
  done
done
