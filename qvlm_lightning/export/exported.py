"""What an export wrote, for people and programs."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Export:
    """What an export wrote.

    Attributes:
        layers: how many layers are quantized.
        schemes: how, and in which format, for people.
        notes: what a user should know of the result.
        nbytes: size of the weights.
    """

    layers: int
    schemes: list[str]
    notes: list[str]
    nbytes: int
