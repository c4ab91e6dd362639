"""Evaluate: ``python eval.py --config configs/eval/tiny.yaml --model.artifact runs/demo/artifact``.

Without an artifact the model answers in full precision. The same command resumes an interrupted
evaluation; ``--trainer.strategy ddp --trainer.devices 2`` shares it between processes.
"""

import sys

from qvlm_lightning.exits import user_faults

if __name__ == "__main__":
    if sys.stderr.isatty():  # several seconds in which nothing else can speak
        print("loading libraries ...", end="\r", file=sys.stderr)

    with user_faults():  # a signal may come during the seconds of imports
        from qvlm_lightning.evaluation.cli import eval_main

        eval_main()
