"""``python -m basicsr_quant VERB ...``."""

import sys

from basicsr_quant.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
