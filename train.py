"""Calibrate: ``python train.py fit --config configs/demo.yaml``."""

from qvlm_lightning.cli import train_main

if __name__ == "__main__":
    train_main()
