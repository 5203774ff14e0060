"""Train: ``python train.py -opt options/train/FILE.yml [--force_yml key=value ...]``."""

import sys

from basicsr_quant.cli.main import train_main

if __name__ == "__main__":
    sys.exit(train_main())
