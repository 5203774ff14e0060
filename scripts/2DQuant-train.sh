#!/usr/bin/env bash
# Quantizes SwinIR-light by 2DQuant for every scale and bit-width.
# SCALES="2 3 4" BITS="2 3 4" choose; arguments are appended: `num_gpu=0 manual_seed=1` are further --force_yml settings, then flags.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
for scale in ${SCALES:-2 3 4}; do
  for bit in ${BITS:-2 3 4}; do
    python train.py -opt "options/train/train_2DQuant_x${scale}.yml" \
      --force_yml "bit=${bit}" "name=train_2DQuant_x${scale}_bit${bit}" "$@"
  done
done
