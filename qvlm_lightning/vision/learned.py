"""What visual-encoder optimisation learns."""

from typing import Literal

import torch
from torch import nn

from qvlm_lightning.errors import InputError
from qvlm_lightning.nn.adapters import add_lora, add_norm_shifts
from qvlm_lightning.nn.structure import Structure

Trainables = Literal["bounds", "norms", "lora"]


def make_learnable(
    structure: Structure, train: Trainables, lora_rank: int, seed: int, device: torch.device
) -> None:
    """Let the :func:`tower_parameters` take gradients; add norms or low-rank updates to them first.

    Args:
        structure: of the model.
        train: ``bounds``, or additionally ``norms`` or ``lora`` of the tower.
        lora_rank: rank of the low-rank updates.
        seed: of their first factors.
        device: where what is added lies.

    Raises:
        InputError: tower and projector have no quantizers.
    """
    if train == "norms":
        add_norm_shifts(structure, device)
    elif train == "lora":
        add_lora(structure, lora_rank, seed, device)
    for parameter in tower_parameters(structure):
        parameter.requires_grad_(True)
    if not tower_parameters(structure):
        raise InputError(
            "visual-encoder optimisation has nothing to learn: vision and projector are both "
            "at 16 bits"
        )


def tower_parameters(structure: Structure) -> list[nn.Parameter]:
    """Return bounds, weight clips and adapters of tower and projector."""
    parameters: list[nn.Parameter] = []
    for name in (n for n in structure.towers if n != "language"):
        for site in structure.towers[name].sites:
            if site.quantizer.num_bits < 16:
                high = [site.quantizer.high_ratio]
                dynamic = site.quantizer.mode == "dynamic_token"
                parameters += high if dynamic else [site.quantizer.low_ratio, *high]
            weights = [x.weight_quantizer for x in site.linears.values()]
            parameters += [w.clip_ratio for w in weights if w.active]
        for unit in structure.towers[name].units:
            parameters += [p for n, p in unit.module.named_parameters() if ".adapter." in n]
    return parameters
