#!/usr/bin/env bash
# Table 1 of the BI-DiffSR paper, ours beside the published numbers, cell by cell; an interrupted run goes on where it was.
# Extra arguments go to the verb: --cells variant=Add --datasets Manga109
set -euo pipefail
. "$(dirname "$0")/environment.sh"
python -m basicsr_quant table run BI_DiffSR_table1 "$@"
