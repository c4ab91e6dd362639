"""Rotations that spread outliers over all channels (QuaRot, NeurIPS 2024, arXiv:2404.00456)."""

from copy import deepcopy
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor

from qvlm_lightning.errors import InputError
from qvlm_lightning.methods.base import Method
from qvlm_lightning.methods.block import Block, Objective
from qvlm_lightning.methods.decision import Decision
from qvlm_lightning.methods.requirements import holds_transforms, widths
from qvlm_lightning.methods.token_weights import TokenWeights
from qvlm_lightning.models.family import VLMFamily
from qvlm_lightning.nn.head_rotation import heads_rotated
from qvlm_lightning.nn.online_transform import OnlineTransform
from qvlm_lightning.nn.parameters import Parameters, TensorOf
from qvlm_lightning.nn.rotation import random_rotation, rotated
from qvlm_lightning.nn.structure import Site, Structure, Unit
from qvlm_lightning.quant.hadamard import spreading_factors, spreading_rotation
from qvlm_lightning.quant.scheme import OFF, Scheme

Online = Literal["none", "needed", "all"]


class Rotation(Method):
    """Rotates the model before anything is measured; it computes the same, without outliers.

    Three kinds: of the decoder's residual stream and of the values of every attention head, merged
    into the weights around them; and online ones, which run in front of a site's quantizer. What
    follows it in a :class:`Chain` finds a model without outliers; by itself ranges are minimum and
    maximum.

    Args:
        residual: rotate the residual stream. Embeddings and head are untied for it. A model whose
            stream cannot be rotated gets online rotations instead, and the run says so.
        heads: rotate the values of heads, where the attention is known.
        online: ``needed``, at sites with quantized activations that no merged rotation reaches;
            ``all``, at all quantized sites; ``none``.
        seed: of signs and random matrices.
        objective: see :class:`Method`.
        token_weights: see there.
    """

    name = "quarot"
    prepares = True

    def __init__(
        self,
        residual: bool = True,
        heads: bool = True,
        online: Online = "needed",
        seed: int = 0,
        objective: Objective = "normalized",
        token_weights: TokenWeights | None = None,
    ) -> None:
        super().__init__(objective, token_weights)
        if online not in get_args(Online):
            allowed = ", ".join(map(repr, get_args(Online)))
            raise InputError(f"online {online!r} is not known; allowed: {allowed}")
        if not (residual or heads or online != "none"):
            raise InputError(
                "a rotation of nothing is not allowed; give residual: true, heads: true, or "
                "online: needed or all"
            )
        self.residual, self.heads, self.online, self.seed = residual, heads, online, seed

    def check(self, scheme: Scheme) -> None:
        """Refuse online rotations for a target that has no place for them."""
        quantized = widths(scheme, "activation_bits") != {OFF}
        if self.online == "all" or (self.online == "needed" and quantized):
            holds_transforms(self.name, scheme, "online: none")

    @torch.no_grad()
    def prepare(self, parameters: Parameters, family: VLMFamily, structure: Structure) -> None:
        """Rotate the model (see :meth:`Method.prepare`)."""
        generator = torch.Generator().manual_seed(self.seed)
        reached: set[str] = set()
        if self.residual and structure.towers["language"].sites:
            reached |= self._rotate_residual(parameters, family, structure, generator)
        if self.heads:
            for unit in structure.units:
                reached |= self._rotate_heads(parameters, family, unit, generator)
        transforms = [
            _rotate_online(parameters, site, generator)
            for site in structure.sites
            if self._is_online(site, reached)
        ]
        if transforms:
            macs = sum(transform.macs for transform in transforms)
            linears = (x for site in structure.sites for x in site.linears.values())
            share = macs / sum(x.in_features * x.out_features for x in linears)
            structure.notes.append(
                f"{len(transforms)} online rotations: {macs:,} multiplications per token, "
                f"{share:.1%} of those of the quantized layers"
            )

    def _is_online(self, site: Site, reached: set[str]) -> bool:
        """Return whether a site gets a rotation of its own."""
        if self.online == "all":
            return True
        active = site.quantizer.num_bits < OFF
        return self.online == "needed" and active and site.name not in reached

    def _rotate_residual(
        self,
        parameters: Parameters,
        family: VLMFamily,
        structure: Structure,
        generator: torch.Generator,
    ) -> set[str]:
        """Rotate the decoder's stream, and return the sites whose input that rotates."""
        try:
            stream = family.residual(parameters.model)
        except InputError as error:
            structure.notes.append(f"{error}; online rotations instead")
            return set()
        parameters.untie(stream)
        if stream.centred:
            turn = random_rotation(stream.width, self.seed, keeps_mean=True)
        else:
            turn = spreading_rotation(stream.width, generator)
        parameters.replace(rotated(parameters.module, parameters.tensors(), stream, turn))
        readers = {name for norm in stream.norms for name in norm.readers}
        return {s.name for s in structure.sites if readers.issuperset(s.linears)}

    def _rotate_heads(
        self, parameters: Parameters, family: VLMFamily, unit: Unit, generator: torch.Generator
    ) -> set[str]:
        """Rotate the values of a layer's heads, and return the site whose input that rotates."""
        attention = family.attention(unit.module) if unit.sites else None
        if attention is None:
            return set()
        turn = spreading_rotation(attention.head_dim, generator)
        tensors = parameters.tensors()
        parameters.replace(heads_rotated(parameters.module, tensors, unit.name, attention, turn))
        output = f"{unit.name}.{attention.o}"
        return {site.name for site in unit.sites if output in site.linears}

    @torch.no_grad()
    def solve(self, block: Block) -> Decision:
        """Return nothing but J for minimum and maximum."""
        return Decision(scores={"minmax": block.error()})


def _rotate_online(
    parameters: Parameters, site: Site, generator: torch.Generator
) -> OnlineTransform:
    """Put a rotation in front of a site's quantizer and its inverse into the weights."""
    transform = site.put_transform(*spreading_factors(site.leader.in_features, generator))
    # what is learned from it later must not change what the weights were made with
    fixed = deepcopy(transform).cpu()
    tensors = parameters.tensors()
    names = [f"{linear}.weight" for linear in site.linears]
    parameters.replace({name: partial(_against, fixed, tensors, name) for name in names})
    return transform


def _against(transform: OnlineTransform, tensors: TensorOf, name: str) -> Tensor:
    """Return a weight that reads the transformed input; the transform is moved to it."""
    weight = tensors(name)
    return transform.to(weight.device).of_weight(weight)
