"""Calibrate: ``python train.py fit --config configs/demo.yaml``."""

from qvlm_lightning.exits import user_faults

if __name__ == "__main__":
    with user_faults():  # a signal may come during the seconds of imports
        from qvlm_lightning.cli import train_main

        train_main()
