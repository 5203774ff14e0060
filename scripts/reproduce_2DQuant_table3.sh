#!/usr/bin/env bash
# Table 3 of the 2DQuant paper, ours beside the published numbers, cell by cell; an interrupted run goes on where it was.
# Extra arguments go to the verb: --cells method=DOBI,bit=4 --datasets Set5
set -euo pipefail
. "$(dirname "$0")/environment.sh"
if [ ! -f keydata/cali_data_x4.pth ]; then
    bash scripts/2DQuant-getcalidata.sh
fi
python -m basicsr_quant table run 2DQuant_table3 "$@"
