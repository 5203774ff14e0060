#!/usr/bin/env bash
# Installs the core and quantizes a super-resolution network on a handful of bundled photographs; arguments go to the verb `quickstart`.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
bash scripts/install.sh core
exec python -m basicsr_quant quickstart "$@"
