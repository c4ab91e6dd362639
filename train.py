"""Calibrate: ``python train.py fit --config configs/demo.yaml``."""

import sys

from qvlm_lightning.exits import user_faults

if __name__ == "__main__":
    if sys.stderr.isatty():  # several seconds in which nothing else can speak
        print("loading libraries ...", end="\r", file=sys.stderr)

    with user_faults():  # a signal may come during the seconds of imports
        from qvlm_lightning.cli import train_main

        train_main()
