"""Answers, stored as they come; comparisons, computed from what is stored."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qvlm_lightning.evaluation.module import VQAEvaluation
    from qvlm_lightning.evaluation.run import evaluate
    from qvlm_lightning.results.predictions import Predictions

__all__ = ["Predictions", "VQAEvaluation", "evaluate"]


def __getattr__(name: str) -> Any:
    """Import Lightning's memory only for who evaluates: generating needs none."""
    if name == "VQAEvaluation":
        from qvlm_lightning.evaluation.module import VQAEvaluation

        return VQAEvaluation
    if name == "evaluate":
        from qvlm_lightning.evaluation.run import evaluate

        return evaluate
    if name == "Predictions":
        from qvlm_lightning.results.predictions import Predictions

        return Predictions
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
