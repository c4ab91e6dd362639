"""Parameters of a model as a method sees them that changes the model before it is measured."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from qvlm_lightning.models.family import Residual
from qvlm_lightning.nn.changes import as_stored
from qvlm_lightning.nn.rotation import untie

TensorOf = Callable[[str], Tensor]
Make = Callable[[], Tensor]


class Parameters:
    """Full-precision parameters of a model in memory, by their full names.

    New values are rounded to the types in which they will be stored, so that a half-precision
    folder gives a half-precision artifact that computes what was measured.

    Args:
        model: with quantized layers.
        stored: types by name, of those that the model's folder holds in a narrower type; an untied
            head gets that of the embeddings.
    """

    def __init__(self, model: nn.Module, stored: dict[str, Any]) -> None:
        self.model: Any = model
        self.stored = stored

    def module(self, name: str) -> nn.Module:
        """Return a module by its full name."""
        found: nn.Module = self.model.get_submodule(name)
        return found

    def tensors(self) -> TensorOf:
        """Return what gives a parameter by its name, as all parameters are now."""
        found: TensorOf = self.model.get_parameter
        return found

    def replace(self, makers: Mapping[str, Make]) -> None:
        """Put new values in the place of parameters.

        Args:
            makers: name -> what makes the new value, of the parameter's shape and type, from
                those of :meth:`tensors`.
        """
        for name, value in as_stored(made(makers), self.stored).items():
            self.tensors()(name).copy_(value)

    def untie(self, residual: Residual) -> None:
        """Give the output head a weight of its own, stored as the embeddings are."""
        embeddings, head = f"{residual.embeddings}.weight", f"{residual.head}.weight"
        if residual.tied and embeddings in self.stored:
            self.stored[head] = self.stored[embeddings]
        untie(self.model, residual)


def made(makers: Mapping[str, Make]) -> dict[str, Tensor]:
    """Return the tensors that are made, all of them before any is put in a model.

    Args:
        makers: name -> what makes a tensor.
    """
    return {name: make() for name, make in makers.items()}
