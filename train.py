"""Calibrate: ``python train.py fit --config configs/demo.yaml``."""

import sys

if __name__ == "__main__":
    if sys.stderr.isatty():  # several seconds in which nothing else can speak
        print("loading libraries ...", end="\r", file=sys.stderr)

    from qvlm_lightning.cli import train_main

    train_main()
