#!/usr/bin/env bash
# Writes the calibration data of every scale. SCALES="2 3 4" chooses; arguments go to the verb `calibration-data`.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
for scale in ${SCALES:-2 3 4}; do
  python -m basicsr_quant calibration-data -opt "options/train/getcalidata_2DQuant_x${scale}.yml" "$@"
done
