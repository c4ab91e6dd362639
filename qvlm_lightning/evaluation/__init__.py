"""Answers, stored as they come; comparisons, computed from what is stored."""

from qvlm_lightning.evaluation.module import VQAEvaluation
from qvlm_lightning.evaluation.run import evaluate
from qvlm_lightning.results.predictions import Predictions
from qvlm_lightning.results.report import load_answers, report_rows, write_results
from qvlm_lightning.results.variant import Variant

__all__ = [
    "Predictions",
    "VQAEvaluation",
    "Variant",
    "evaluate",
    "load_answers",
    "report_rows",
    "write_results",
]
