"""Agreement with several annotators: leave one out, in tenths.

An answer is worth min(1, matches / 3) against the annotators without the one that is left out, and
the mean over who is left out counts. With ten annotators that is a whole number of tenths: 0, 3, 6,
9, 10, 10 ... for 0, 1, 2, 3, 4, 5 ... matches among all ten, so sums stay exact.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from qvlm_lightning.metrics.grouped import GroupedScore
from qvlm_lightning.metrics.normalise import (
    Normaliser,
    evalai_answer,
    lmms_answer,
    official_answer,
    tidy,
    vizwiz_answer,
)
from qvlm_lightning.metrics.target import WHOLE, Judgement

ANNOTATORS = 10
"""Annotators per question in VQA v2, VizWiz and TextVQA; the rule is exact for them."""
ENOUGH = 3  # matches that make an answer right

AnnotatorRule = Callable[[str, Sequence[str]], Judgement]


class AnnotatorScore(GroupedScore):
    """Mean points whose first two decimals are those that the official scorers print.

    They add floats that lie a little below the tenths, so that an exact value halfway between two
    printed ones, such as 96.375, is printed as 96.37 (all six such values of the golden files are).
    The state is exact; a percentage that is halfway is returned one float lower.

    Args:
        groups: all groups that may occur.

    Example:
        >>> metric = AnnotatorScore()
        >>> metric.update([Judgement(10, "cat")] * 27 + [Judgement(0, "dog")] * 5, [()] * 32)
        >>> round(metric.compute()["overall"].item(), 2), 100 * 27 / 32
        (84.37, 84.375)
    """

    def compute(self) -> dict[str, Tensor]:
        """Return percentages; nan for a group without questions."""
        values = super().compute()
        for name, (points, questions) in self.counts().items():
            thousandths, rest = divmod(100_000 // WHOLE * points, questions or 1)
            if questions and not rest and thousandths % 10 == 5:
                below = math.nextafter(thousandths / 1000, 0)
                values[name] = torch.tensor(below, dtype=torch.float64)
        return values


def leave_one_out(matches: int, annotators: int = ANNOTATORS) -> int:
    """Return an answer's points.

    Who is left out is left out by place. VQA v2's scorer leaves out whoever gave an equal record,
    which is the same there because records are numbered; where they are not, as in VizWiz, it would
    leave out all who agree.

    Args:
        matches: how many of all annotators gave this answer.
        annotators: how many there are; without any, no answer is worth anything.

    Returns:
        Points in tenths, 0 to WHOLE; rounded down where ``annotators`` does not divide them.

    Example:
        >>> [leave_one_out(matches) for matches in range(6)]
        [0, 3, 6, 9, 10, 10]
    """
    if not annotators:
        return 0
    others, agreeing = annotators - matches, matches
    thirds = others * min(ENOUGH, matches) + agreeing * min(ENOUGH, matches - 1)
    return WHOLE * thirds // (ENOUGH * annotators)


def _agreement(answer: str, annotators: Sequence[str]) -> Judgement:
    points = leave_one_out(sum(answer == other for other in annotators), len(annotators))
    # an empty answer is only an answer where annotators gave it, such as a lone article
    return Judgement(points, answer if answer or points else None)


def official_vqa(text: str, annotators: Sequence[str]) -> Judgement:
    """Score by VQA v2's official rule: normalise only where the annotators disagree.

    Where they are unanimous the text is compared as it is, so that "Yes" does not match "yes".

    Args:
        text: what was generated.
        annotators: the answers of all annotators, as released.

    Example:
        >>> official_vqa("Two.", ["2"] * 9 + ["3"]).points, official_vqa("Two.", ["2"] * 10).points
        (10, 0)
    """
    answer, others = tidy(text), [tidy(other) for other in annotators]
    if len(set(others)) > 1:
        answer, others = official_answer(answer), [official_answer(other) for other in others]
    return _agreement(answer, others)


def evalai_vqa(text: str, annotators: Sequence[str]) -> Judgement:
    """Score by the official rule what EvalAI's processor makes of the text, as LLaVA submits it.

    Args:
        text: what was generated.
        annotators: the answers of all annotators, as released.

    Example:
        >>> evalai_vqa("Two.", ["2"] * 10).points
        10
    """
    return official_vqa(evalai_answer(text), annotators)


def lmms_vqa(text: str, annotators: Sequence[str]) -> Judgement:
    """Score VQA v2 as lmms-eval does: both sides are always normalised.

    Args:
        text: what was generated.
        annotators: the answers of all annotators, as released.

    Example:
        >>> lmms_vqa("Two.", ["2"] * 10).points
        10
    """
    return normalised_both(text, annotators, lmms_answer)


def official_vizwiz(text: str, annotators: Sequence[str]) -> Judgement:
    """Score by VizWiz's official rule: the text is normalised, the annotators' answers are not.

    Args:
        text: what was generated.
        annotators: the answers of all annotators, as released.

    Example:
        >>> official_vizwiz("The can", ["can"] * 2 + ["Can"] * 8).points
        6
    """
    return _agreement(vizwiz_answer(tidy(text)), annotators)


def m4c(text: str, annotators: Sequence[str]) -> Judgement:
    """Score as M4C's evaluator does TextVQA, and lmms-eval VizWiz: EvalAI's processor on both.

    Args:
        text: what was generated.
        annotators: the answers of all annotators, as released.

    Example:
        >>> m4c("The can", ["can"] * 2 + ["Can"] * 8).points
        10
    """
    return normalised_both(text, annotators, evalai_answer)


def normalised_both(text: str, annotators: Sequence[str], normalise: Normaliser) -> Judgement:
    """Score after the same normaliser on both sides.

    Args:
        text: what was generated.
        annotators: the answers of all annotators, as released.
        normalise: makes texts comparable.
    """
    return _agreement(normalise(text), [normalise(other) for other in annotators])
