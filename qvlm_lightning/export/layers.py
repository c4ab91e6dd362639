"""The quantized Linear layers of a loaded artifact, as an export sees them: codes and scales.

Shapes: O outputs, I inputs, G groups.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from qvlm_lightning.artifact import Artifact
from qvlm_lightning.errors import InputError
from qvlm_lightning.nn.linear import QuantLinear
from qvlm_lightning.quant.qparams import affine_qparams
from qvlm_lightning.quant.scheme import OFF, Scheme
from qvlm_lightning.quant.targets import Target, layer_refusal, sink_refusal

# what an adapter learned is in the weight
_OWN_CHILDREN = {"weight_quantizer", "input_quantizer", "adapter"}


@dataclass(frozen=True)
class LayerScheme:
    """How one layer is quantized; layers that share one are one group of a configuration.

    Attributes:
        weight_bits: 2 to 8.
        symmetric: whether weight codes are.
        group_size: inputs that share a scale; ``None`` for one scale per output channel.
        activation_bits: 2 to 8, or ``None`` where inputs are not quantized.
        dynamic: whether ranges of inputs are measured per token.
    """

    weight_bits: int
    symmetric: bool
    group_size: int | None
    activation_bits: int | None
    dynamic: bool

    @property
    def name(self) -> str:
        """Name for people, as in ``w4a16, groups of 32, symmetric``."""
        groups = "per channel" if self.group_size is None else f"groups of {self.group_size}"
        kind = "symmetric" if self.symmetric else "asymmetric"
        inputs = ", per token" if self.dynamic else ", static"
        if self.activation_bits is None:
            inputs = ""
        return f"w{self.weight_bits}a{self.activation_bits or OFF}, {groups}, {kind}{inputs}"


@dataclass(frozen=True)
class Layer:
    """One quantized Linear layer.

    Attributes:
        name: in the model.
        part: ``vision``, ``projector`` or ``language``.
        linear: the layer, with its quantizers.
        scheme: how it is quantized.
    """

    name: str
    part: str
    linear: QuantLinear
    scheme: LayerScheme

    @torch.no_grad()
    def codes(self) -> Tensor:
        """Return signed codes [O, I] int8, from -2^(b-1) to 2^(b-1) - 1; the weight is
        ``(code - zero point) * scale``.
        """
        codes = self.linear.weight_quantizer.codes(self.linear.weight)
        return (codes - self._shift).to(torch.int8)

    @torch.no_grad()
    def qparams(self) -> tuple[Tensor, Tensor]:
        """Return scale [O, G] float32 and zero point [O, G] int8 of the codes."""
        scale, zero_point = self.linear.weight_quantizer.qparams(self.linear.weight)
        return scale, (zero_point - self._shift).to(torch.int8)

    @property
    def _shift(self) -> int:
        """What turns codes from 0 on into signed ones."""
        return 0 if self.scheme.symmetric else 2 ** (self.scheme.weight_bits - 1)

    @torch.no_grad()
    def static_input(self) -> tuple[Tensor, Tensor]:
        """Return scale [1] and zero point [1] int8 of the input, for codes from -2^(b-1) on."""
        site = self.linear.site
        low, high = site.bounds()
        scale, zero_point = affine_qparams(low, high, site.num_bits, self.linear.weight.dtype)
        shifted = zero_point - 2 ** (site.num_bits - 1)
        return scale.reshape(1), shifted.reshape(1).to(torch.int8)


def layers_of(artifact: Artifact, target: Target) -> list[Layer]:
    """Return the quantized layers of an artifact, in the order of the model.

    Args:
        artifact: loaded, quantizers on.
        target: format of the export.

    Raises:
        InputError: the target cannot hold what is done to a layer, or to sink tokens.
    """
    scheme = Scheme.from_dict(artifact.manifest["scheme"])
    refusal = sink_refusal(target, scheme.sink)
    if refusal:
        raise InputError(refusal)
    return list(_layers(artifact, scheme, target))


def _layers(artifact: Artifact, scheme: Scheme, target: Target) -> Iterator[Layer]:
    for name, part in artifact.structure.quantized.items():
        linear = artifact.model.get_submodule(name)
        assert isinstance(linear, QuantLinear)
        quantizer, site = linear.weight_quantizer, linear.site
        if target == "gguf" and part != "language":
            continue
        refusal = layer_refusal(
            target,
            quantizer.num_bits,
            site.num_bits,
            scheme.activation_mode,
            quantizer.symmetric,
            quantizer.group_size,
            linear.in_features,
        )
        if refusal:
            raise InputError(f"{name}: {refusal}")
        _check_only_quantized(name, linear, target)
        active = site.num_bits < OFF
        dynamic = active and site.mode == "dynamic_token"
        _check_clip(name, linear, target)
        yield Layer(
            name,
            part,
            linear,
            LayerScheme(
                quantizer.num_bits,
                quantizer.symmetric,
                quantizer.group_size,
                site.num_bits if active else None,
                dynamic,
            ),
        )


def _check_only_quantized(name: str, linear: QuantLinear, target: Target) -> None:
    """Refuse whatever else a layer does when it runs, such as a transform of its input."""
    more = {child for child, module in linear.named_children() if module is not None}
    odd = sorted(more - _OWN_CHILDREN)
    if odd:
        raise InputError(
            f"{name}: {target} cannot hold its {odd[0]}, which runs beside the layer; the nearest "
            "that it holds is a scheme and a method without it"
        )


def _check_clip(name: str, linear: QuantLinear, target: Target) -> None:
    site = linear.site
    if site.num_bits == OFF or site.mode != "dynamic_token":
        return
    low, high = site.bounds()
    if not (bool((high == 1).all()) and bool((low == -1).all())):
        raise InputError(
            f"{name}: {target} cannot hold the clip ratio {float(high.flatten()[0]):.4g} on the "
            "range of each token; the nearest that it holds are whole ranges: method rtn, or "
            "clip_ratios [1.0]"
        )
