"""Several methods one behind the other, each on top of what the earlier ones decided."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from qvlm_lightning.errors import InputError
from qvlm_lightning.methods.base import Method
from qvlm_lightning.methods.block import Block, Objective
from qvlm_lightning.methods.decision import Decision
from qvlm_lightning.methods.token_weights import TokenWeights
from qvlm_lightning.models.family import VLMFamily
from qvlm_lightning.nn.parameters import Parameters
from qvlm_lightning.nn.structure import Structure
from qvlm_lightning.quant.scheme import Scheme


class Chain(Method):
    """Runs methods in order: rotation, folds or transforms, ranges of activations, rounding.

    Every step has its own token weights; J of the whole is judged with those of the chain.

    Args:
        steps: the methods, two or more.
        objective: see :class:`Method`; of all steps.
        token_weights: see there.

    Raises:
        InputError: the order does not work, or several steps have candidates of their own.

    Example:
        >>> from qvlm_lightning.methods import GPTQ, SmoothQuant
        >>> Chain([SmoothQuant(), GPTQ()]).pairs
        'all'
    """

    name = "chain"

    def __init__(
        self,
        steps: list[Method],
        objective: Objective = "normalized",
        token_weights: TokenWeights | None = None,
    ) -> None:
        super().__init__(objective, token_weights)
        self.steps = steps
        if len(steps) < 2:
            raise InputError(f"a chain of {len(steps)} methods is not allowed; two or more")
        for one, other in pairwise(steps):
            if _stage(one) > _stage(other) or _stage(one) == _stage(other) in (ROTATES, ROUNDS):
                raise InputError(
                    f"{other.name} cannot follow {one.name}; allowed: a rotation, then folds, then "
                    "ranges of activations, then one method that rounds"
                )
        self.changes_weights = any(step.changes_weights for step in steps)
        self.prepares = any(step.prepares for step in steps)
        self.pairs = "all" if any(step.pairs == "all" for step in steps) else "search"

    @property
    def needs_kind(self) -> bool:
        """Whether any step's token weights ask for the kinds of tokens."""
        return any(m.token_weights.needs_kind for m in (self, *self.steps))

    @property
    def needs_gradients(self) -> bool:
        """Whether any step's token weights ask for gradients of the loss."""
        return any(m.token_weights.needs_gradients for m in (self, *self.steps))

    def check(self, scheme: Scheme) -> None:
        """Refuse a scheme that a step refuses, or whose static ranges would be those from before a
        fold.
        """
        for step in self.steps:
            step.check(scheme)
        folding = [step for step in self.steps if step.folds]
        first = self.steps.index(folding[0]) if folding else len(self.steps)
        behind = [step for step in self.steps[first + 1 :] if step.uses_tables]
        if behind and scheme.activation_mode != "dynamic_token":
            raise InputError(
                f"{behind[0].name} chooses ranges that were tabulated before "
                f"{folding[0].name} scales the activations; allowed: activation_mode "
                "dynamic_token"
            )
        self._choosing(scheme.activation_mode)

    def candidates(self, activation_mode: str) -> list[float]:
        """Return those of the step that chooses among any."""
        return self._choosing(activation_mode)

    def prepare(self, parameters: Parameters, family: VLMFamily, structure: Structure) -> None:
        """Let every step prepare the model, in order."""
        for step in self.steps:
            step.prepare(parameters, family, structure)

    def solve(self, block: Block) -> Decision:
        """Return what all steps decide, and J behind each of them."""
        decision = Decision()
        for step in self.steps:
            given = block.given | Decision(decision.tensors)
            own = step.solve(replace(block, given=given, token_weights=step.token_weights))
            # what a later step calls the start is the end of an earlier one
            scores = decision.scores | {
                n: j for n, j in own.scores.items() if n not in decision.scores
            }
            decision = Decision(decision.tensors | own.tensors, scores)
        return decision | Decision(scores={self.name: block.error(decision)})

    def _choosing(self, mode: str) -> list[float]:
        lists: Sequence[list[float]] = [step.candidates(mode) for step in self.steps]
        several = [found for found in lists if len(found) > 1]
        if len(several) > 1:
            raise InputError("two steps of a chain choose among candidates; allowed: one")
        return several[0] if several else [1.0]


ROTATES, FOLDS, RANGES, ROUNDS = range(4)


def _stage(method: Method) -> int:
    """Return the place of a method in a chain."""
    if method.folds:
        return FOLDS
    if method.prepares:
        return ROTATES
    return ROUNDS if method.changes_weights else RANGES
