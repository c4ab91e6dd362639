"""Answers, stored as they come; comparisons, computed from what is stored."""

from qvlm_lightning.evaluation.module import VQAEvaluation
from qvlm_lightning.evaluation.predictions import Predictions, Variant
from qvlm_lightning.evaluation.report import load_answers, report_rows, write_results
from qvlm_lightning.evaluation.run import evaluate

__all__ = [
    "Predictions",
    "VQAEvaluation",
    "Variant",
    "evaluate",
    "load_answers",
    "report_rows",
    "write_results",
]
