"""How good the answers are, how far from full precision, and how sure a difference is."""

from qvlm_lightning.metrics.annotators import AnnotatorScore
from qvlm_lightning.metrics.answerability import AnswerabilityScore
from qvlm_lightning.metrics.answers import is_correct, parse_answer
from qvlm_lightning.metrics.binary import BinaryCounts
from qvlm_lightning.metrics.circular import CircularScore
from qvlm_lightning.metrics.divergence import answer_kl
from qvlm_lightning.metrics.grouped import GroupedScore
from qvlm_lightning.metrics.intervals import (
    bootstrap_interval,
    mcnemar_p,
    wilson_interval,
)

__all__ = [
    "AnnotatorScore",
    "AnswerabilityScore",
    "BinaryCounts",
    "CircularScore",
    "GroupedScore",
    "answer_kl",
    "bootstrap_interval",
    "is_correct",
    "mcnemar_p",
    "parse_answer",
    "wilson_interval",
]
