#!/usr/bin/env bash
# Table 2 of the PassionSR paper, ours beside the published numbers, cell by cell; an interrupted run goes on where it was.
# Extra arguments go to the verb: --cells method=PassionSR,bits=W8A8 --datasets RealSR
set -euo pipefail
. "$(dirname "$0")/environment.sh"
python -m basicsr_quant table run PassionSR_table2 "$@"
