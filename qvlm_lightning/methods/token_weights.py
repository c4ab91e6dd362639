"""How much each token of the calibration data counts in objectives and statistics."""

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from statistics import median
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from qvlm_lightning.errors import InputError
from qvlm_lightning.models.family import ANSWER, PROMPT, VISION

Gradients = Mapping[str, Mapping[str, float]]
"""Module -> kind of token (``vision``, ``prompt``, ``answer``, ``text``) -> mean magnitude of the
loss's gradient at the module's output."""

Text = Literal["all", "answer"]
Floor = Literal["none", "median"]


class TokenWeights(ABC):
    """Weights of the tokens of a batch.

    Attributes:
        needs_kind: whether it asks for the kinds of tokens.
        needs_gradients: whether it asks for the gradients of the loss, from one pass before the
            first block.
    """

    needs_kind: ClassVar[bool] = True
    needs_gradients: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, kind_BT: Tensor | None, mask_BT: Tensor | None) -> Tensor | None:
        """Return the weights.

        Args:
            kind_BT: int64, ``VISION``, ``PROMPT``, ``ANSWER`` or ``PAD`` (``models.family``);
                ``None`` in the tower, whose tokens are all of the image.
            mask_BT: bool, tokens that count at all; ``None`` for all.

        Returns:
            [B, T] bool or float32, at least 0 and 0 where the mask is; ``None`` for 1 everywhere.
        """

    def at(self, gradients: Gradients, place: str) -> "TokenWeights":
        """Return the weights at the output of a module; the same everywhere by default.

        Args:
            gradients: of the loss, where ``needs_gradients`` asks for them.
            place: full name of the module.
        """
        return self


class Uniform(TokenWeights):
    """Every token that is no padding counts the same."""

    needs_kind = False

    def __call__(self, kind_BT: Tensor | None, mask_BT: Tensor | None) -> Tensor | None:
        """Return the mask."""
        return mask_BT


class ByKind(TokenWeights):
    """A weight for each kind of token in the decoder; the tower's tokens all count the same.

    Args:
        vision: of the image's tokens.
        prompt: of the question's.
        answer: of the answer's.
    """

    def __init__(self, vision: float = 1.0, prompt: float = 1.0, answer: float = 1.0) -> None:
        self.vision, self.prompt, self.answer = vision, prompt, answer
        if min(vision, prompt, answer) < 0 or max(vision, prompt, answer) <= 0:
            raise InputError(
                f"token weights {vision}, {prompt}, {answer} are not allowed; none below 0, one "
                "above"
            )

    def __call__(self, kind_BT: Tensor | None, mask_BT: Tensor | None) -> Tensor | None:
        """Return the weight of each token's kind, where the mask is."""
        if kind_BT is None:
            return mask_BT
        by_kind = torch.zeros(4, device=kind_BT.device)
        by_kind[VISION], by_kind[PROMPT], by_kind[ANSWER] = self.vision, self.prompt, self.answer
        weight = by_kind[kind_BT]
        return weight if mask_BT is None else weight * mask_BT


class ModalityBalance(TokenWeights):
    """Text counts 1, vision the ratio of the loss's gradients (MBQ, arXiv:2412.19509, eq. 8).

    To first order the loss grows by gradient times error. At the output of a module the ratio is
    ``mean |g| of vision tokens / mean |g| of text tokens``; the tower's tokens are all of one kind
    and count the same.

    Args:
        text: which text tokens count: ``all``, or those of the ``answer`` (prompts then count 0).
        floor: ``median``: no ratio below the median of the same module of all layers; the paper
            has none.
    """

    needs_gradients = True

    def __init__(self, text: Text = "all", floor: Floor = "none") -> None:
        for name, value, allowed in (("text", text, Text), ("floor", floor, Floor)):
            if value not in get_args(allowed):
                raise InputError(
                    f"{name} {value!r} is not known; allowed: "
                    f"{', '.join(map(repr, get_args(allowed)))}"
                )
        self.text, self.floor = text, floor

    def __call__(self, kind_BT: Tensor | None, mask_BT: Tensor | None) -> Tensor | None:
        """Return the mask: where tokens are of one kind, there is nothing to balance.

        Raises:
            InputError: they are of several; weights are those at a module's output (:meth:`at`).
        """
        if kind_BT is not None:
            raise InputError("ModalityBalance has weights at the output of a module only")
        return mask_BT

    def at(self, gradients: Gradients, place: str) -> TokenWeights:
        """Return weights by kind, with the ratio at a module's output; where no gradient was
        measured, as in the tower, the mask alone.
        """
        if place not in gradients:
            return self
        ratio = self.ratio(gradients, place)
        return ByKind(vision=ratio, prompt=1.0 if self.text == "all" else 0.0)

    def ratio(self, gradients: Gradients, place: str) -> float:
        """Return how much a vision token counts at a module's output.

        Raises:
            InputError: the gradient of the text tokens is 0 there.
        """
        own = self._plain_ratio(gradients, place)
        if self.floor == "none":
            return own
        alike = [p for p in gradients if _numberless(p) == _numberless(place)]
        return max(own, median(self._plain_ratio(gradients, p) for p in alike))

    def _plain_ratio(self, gradients: Gradients, place: str) -> float:
        size = gradients[place]
        text = size["answer" if self.text == "answer" else "text"]
        ratio = size["vision"] / text if text else math.inf
        if not math.isfinite(ratio):
            raise InputError(
                f"the loss does not depend on text tokens at {place}: there is no modality ratio; "
                "choose token weights without gradients"
            )
        return ratio


def _numberless(name: str) -> str:
    """Return a module's name without the numbers of layers and experts."""
    return re.sub(r"\d+", "#", name)
