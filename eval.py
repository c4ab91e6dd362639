"""Evaluate: ``python eval.py --config configs/eval/tiny.yaml --model.artifact runs/demo/artifact``.

Without an artifact the model answers in full precision.
"""

from qvlm_lightning.evaluation.cli import eval_main

if __name__ == "__main__":
    eval_main()
