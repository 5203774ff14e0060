#!/usr/bin/env bash
# Regenerate the 2DQuant tables of docs/results.md, cell by cell; an interrupted run goes on where it was.
# Extra arguments go to the verb: --cells method=DOBI --set iterations=1000 craft=/path/to/CRAFT_x4.pth
set -euo pipefail
. "$(dirname "$0")/environment.sh"

calibration=keydata/table_2DQuant_x4_small.safetensors
if [ ! -f "$calibration" ]; then
    python -m basicsr_quant calibration-data -opt options/train/getcalidata_2DQuant_x4.yml --force_yml \
        cali_data_save_path="$calibration" quant:calibration:patches=8 quant:calibration:patch_size=64 \
        datasets:train:dataroot_gt=datasets/BSDS400/HR datasets:train:dataroot_lq=datasets/BSDS400/LR_bicubic/X4 \
        datasets:train:exclude_last=20 datasets:train:num_worker_per_gpu=0
fi
python -m basicsr_quant table run 2DQuant_x4_small "$@"
