"""Train one network: `python train.py --epochs 500 --batch_size 8 --learn_rate 1e-3 --log_path logs/`.

Phantoms are made on the first run; `python train.py --help` lists networks, losses and data. On several GPUs:
`torchrun --nproc_per_node 2 train.py ...`.
"""

import sys

from imaging.errors import EmbolensError
from training.arguments import main

if __name__ == "__main__":
    try:
        main()
    except EmbolensError as error:
        sys.exit(f"train.py: {error} [{error.code}]")
