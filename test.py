"""Test: ``python test.py -opt options/test/FILE.yml [--force_yml key=value ...]``."""

import sys

from basicsr_quant.cli.main import test_main

if __name__ == "__main__":
    sys.exit(test_main())
