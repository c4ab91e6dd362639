"""How much each token of the calibration data counts in objectives and statistics."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from qvlm_lightning.errors import InputError
from qvlm_lightning.models.family import ANSWER, PROMPT, VISION


class TokenWeights(ABC):
    """Weights of the tokens of a batch.

    Attributes:
        needs_kind: whether it asks for the kinds of tokens.
    """

    needs_kind: ClassVar[bool] = True

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
