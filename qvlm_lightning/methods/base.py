"""The interface of a method: it decides the tensors of one block."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import is_dataclass
from typing import Any, ClassVar, Literal

from qvlm_lightning.errors import InputError
from qvlm_lightning.methods.block import Block, Objective
from qvlm_lightning.methods.decision import Decision
from qvlm_lightning.methods.token_weights import TokenWeights, Uniform
from qvlm_lightning.models.family import VLMFamily
from qvlm_lightning.nn.parameters import Parameters
from qvlm_lightning.nn.structure import Structure
from qvlm_lightning.quant.scheme import Scheme


class Method(ABC):
    """Decides the tensors of one block.

    A method knows no family of models, draws nothing without a seed and keeps no state between
    blocks. It stores every argument of its constructor under the argument's name.

    Args:
        objective: how J compares outputs: ``normalized`` (tokens brought to a mean square of 1,
            as the norm that reads them sees them) or ``plain`` (eq. 3 as printed).
        token_weights: how much each token counts; default: all the same.

    Attributes:
        name: in tables and reports, unless a run has a name of its own.
        pairs: which calibration pairs a block is decided on: those of the ``search`` or ``all``.
        changes_weights: whether decisions name other tensors than those of quantizers.
        folds: whether activations are divided by a factor and weights multiplied.
        uses_tables: whether ranges come from ``block.tables``, which know nothing of folds.
        prepares: whether it changes the model before anything is measured (:meth:`prepare`).
        searches_activations: whether all it searches are ranges of activations, so that there is
            nothing to do where only weights are quantized.
    """

    name: ClassVar[str]
    pairs: Literal["search", "all"] = "search"
    changes_weights: bool = False
    folds: ClassVar[bool] = False
    prepares: bool = False
    uses_tables: bool = False
    searches_activations: ClassVar[bool] = False

    def __init__(
        self, objective: Objective = "normalized", token_weights: TokenWeights | None = None
    ) -> None:
        if objective not in ("normalized", "plain"):
            raise InputError(
                f"objective {objective!r} is not known; allowed: 'normalized', 'plain'"
            )
        self.objective: Objective = objective
        self.token_weights = token_weights or Uniform()

    @property
    def needs_kind(self) -> bool:
        """Whether token weights ask for the kinds of tokens."""
        return self.token_weights.needs_kind

    @property
    def needs_gradients(self) -> bool:
        """Whether token weights ask for gradients of the loss."""
        return self.token_weights.needs_gradients

    def candidates(self, activation_mode: str) -> list[float]:
        """Return the candidates of ranges, from the largest down.

        Args:
            activation_mode: ``static_tensor`` and ``static_channel``: percentiles of the
                activations; ``dynamic_token``: clip ratios on each token's largest magnitude.
        """
        return [1.0]

    def check(self, scheme: Scheme) -> None:
        """Refuse a scheme that the method cannot do anything for; called before a model is read.

        Raises:
            InputError: names the scheme, and what is allowed.
        """
        return

    def prepare(self, parameters: Parameters, family: VLMFamily, structure: Structure) -> None:  # noqa: B027
        """Change the full-precision model, before anything is measured.

        The model then computes the same as before, up to rounding. A run that is resumed prepares
        the model again, so the result depends on the model and the method's arguments only. A
        streamed model has no weights: parameters are read and replaced through ``parameters`` and
        in no other way.

        Args:
            parameters: of the model, which has quantized layers, quantizers off.
            family: of the model.
            structure: of the model; takes notes.

        Raises:
            InputError: the model cannot be prepared; it is left as it was.
        """

    @abstractmethod
    def solve(self, block: Block) -> Decision:
        """Return the decision for ``block``; the caller commits it and advances the chains."""

    def settings(self) -> dict[str, Any]:
        """Return class and constructor arguments as plain values, parts included.

        Raises:
            TypeError: an argument is neither plain nor a part with arguments of its own.
        """
        return settings_of(self)


def settings_of(part: Any) -> dict[str, Any]:
    """Return class and constructor arguments of a method or a part of one, as plain values.

    Raises:
        TypeError: see :meth:`Method.settings`.
    """
    own = type(part).__init__
    names = list(inspect.signature(own).parameters)[1:] if own is not object.__init__ else []
    return {"class": type(part).__name__, **{n: _plain(n, part) for n in names}}


def _plain(name: str, part: Any) -> Any:
    if not hasattr(part, name):
        raise TypeError(
            f"{type(part).__name__} does not keep its argument {name!r} as an attribute"
        )
    return _plain_value(getattr(part, name))


def _plain_value(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Sequence):
        return [_plain_value(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain_value(item) for key, item in value.items()}
    if isinstance(value, Method | TokenWeights) or is_dataclass(value):
        return settings_of(value)
    raise TypeError(f"a setting of type {type(value).__name__} has no plain form")
