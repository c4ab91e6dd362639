"""A Linear layer whose weight exists as packed codes only.

Shapes: N rows (tokens), I inputs, O outputs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qvlm_lightning.errors import InputError
from qvlm_lightning.nn.linear import QuantLinear
from qvlm_lightning.nn.online_transform import OnlineTransform
from qvlm_lightning.nn.packed_input import InputCodes, PackedInput
from qvlm_lightning.nn.packed_site import SharedProduct, Together
from qvlm_lightning.nn.packing import PackedWeight
from qvlm_lightning.nn.sinks import SinkOutput
from qvlm_lightning.nn.structure import Site

Given = Tensor | InputCodes
"""Input of a packed layer: [N, I] in the type of the model, or its codes."""


@dataclass(frozen=True)
class Kernel:
    """One way to multiply with a weight that is held in a certain layout."""

    name: str
    """As reports call it."""
    most_rows: int | None
    """Rows up to which it is used; ``None`` for any number."""
    run: Callable[["PackedLinear", Given], Tensor]
    """(layer, input) -> output [N, O] without bias, float32 or in the type of the model."""
    together: Together | None = None
    """The same for several weights in one call, equal to the bit; ``None`` where it cannot."""


@dataclass(frozen=True)
class Holding:
    """A layout in which a layer holds its weight, and the kernels that read it."""

    name: str
    """Of the layout."""
    tensors: Mapping[str, Tensor | None]
    """What the layer holds."""
    kernels: Sequence[Kernel]
    """Those of the fewest rows first; the last one takes any number."""


class PackedLinear(nn.Module):
    """``y = x W^T + b`` from codes, scales and zero points; it cannot be trained.

    Args:
        weight: packed.
        holding: its layout and kernels.
        bias: [O] or ``None``.
        site: makes the codes of the input; ``None`` for inputs in full precision.
        leader: whether this layer registers ``site``, which others may share.
        sink_output: stored outputs for sink tokens, if any.

    Attributes:
        used: names of the kernels that have run.
        shared: computes few rows for all layers of the site; ``None`` where each does so itself.
        place: of the layer in ``shared``.
    """

    site: PackedInput | None
    bias: Tensor | None
    codes: Tensor
    scale: Tensor
    zero_point: Tensor | None

    def __init__(
        self,
        weight: PackedWeight,
        holding: Holding,
        bias: Tensor | None = None,
        site: PackedInput | None = None,
        leader: bool = False,
        sink_output: SinkOutput | None = None,
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.features
        self.bits, self.dtype = weight.bits, weight.scale.dtype
        self.groups = weight.scale.shape[1]
        self.layout, self.kernels = holding.name, holding.kernels
        for name, tensor in holding.tensors.items():
            self.register_buffer(name, tensor)
        self.register_buffer("bias", None if bias is None else bias.detach())
        self.sink_output = sink_output
        self.used: dict[str, None] = {}
        self.shared: SharedProduct | None = None
        self.place = 0
        if leader and site is not None:
            self.input_codes = site
        object.__setattr__(self, "site", site)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output, [.., I] -> [.., O], in the type of ``x``.

        Raises:
            ValueError: ``x`` has another number of inputs.
        """
        if x.shape[-1] != self.in_features:
            raise ValueError(f"the layer has {self.in_features} inputs, given are {x.shape[-1]}")
        shape = (*x.shape[:-1], self.out_features)
        rows = x.numel() // self.in_features
        if rows == 0:
            return x.new_empty(shape)
        kernel = self.kernel(rows)
        self.used[kernel.name] = None
        shared = self._shared(kernel)
        y = None if shared is None else shared.take(self.place, x)
        if y is None:
            given = x.reshape(rows, -1) if self.site is None else self.site(x)
            y = kernel.run(self, given) if shared is None else shared.compute(self.place, x, given)
            if shared is not None and self.site is not None and shared.takes_all_of(self.site):
                self.site.forget()  # the other layers will not ask for codes
        if self.bias is not None:
            y = y + self.bias
        y = y.to(x.dtype).reshape(shape)
        return y if self.sink_output is None else self.sink_output(y)

    def _shared(self, kernel: Kernel) -> SharedProduct | None:
        """Return what computes the product for all layers of the site; ``None`` where the kernel
        does not, or tensors of this layer were replaced since.
        """
        if self.shared is None or kernel.together is None:
            return None
        weight, held = self.shared.weights[self.place], self._buffers
        same = held["codes"] is weight.codes and held["scale"] is weight.scale
        return self.shared if same and held["zero_point"] is weight.zero_point else None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "PackedLinear":
        """Refuse another device or type: layout and kernels are those of the present ones."""
        held = next(self.buffers(recurse=False))
        present = torch.empty(0, dtype=self.dtype, device=held.device)
        moved = fn(present)
        if moved.dtype != present.dtype or moved.device != present.device:
            raise InputError(
                f"packed layers were asked to become {moved.dtype} on {moved.device}; allowed: "
                f"{present.dtype} on {present.device}, as they were loaded, load(path, device=...) "
                "for another device, or load(path, simulate=True) for a model that can be moved"
            )
        return self

    def kernel(self, rows: int) -> Kernel:
        """Return the kernel that multiplies ``rows`` rows."""
        for kernel in self.kernels:
            if kernel.most_rows is None or rows <= kernel.most_rows:
                return kernel
        raise AssertionError("the last kernel takes any number of rows")

    @property
    def weight(self) -> Tensor:
        """A weight without values, for whoever asks for its type or shape."""
        shape = (self.out_features, self.in_features)
        return torch.empty(shape, dtype=self.dtype, device="meta")

    def nbytes(self) -> int:
        """Return the bytes of what the layer holds."""
        return sum(x.numel() * x.element_size() for x in self.buffers(recurse=False))

    def extra_repr(self) -> str:
        """Show sizes and layout in ``print(model)``."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bits={self.bits}, groups={self.groups}, layout={self.layout}"
        )


def why_simulated(site: Site) -> str | None:
    """Return why the layers of a site cannot be packed, or ``None`` if they can.

    Args:
        site: of a model with quantizers.
    """
    quantizer = site.quantizer
    if not all(x.weight_quantizer.active for x in site.linears.values()):
        return "a weight at 16 bits"
    if any(x.adapter is not None for x in site.linears.values()):
        return "an adapter that is not merged"
    if quantizer.num_bits > 8:
        return None
    if quantizer.low.shape != ():
        return f"{quantizer.mode}: one range per channel or position has no integer product"
    sinks = quantizer.sinks
    if sinks is not None and sinks.found and (sinks.tokens or not sinks.stored):
        return "sink tokens that pass unquantized"
    return None


def packed_linear(
    linear: QuantLinear,
    weight: PackedWeight,
    holding: Holding,
    site: PackedInput | None,
    leader: bool,
) -> PackedLinear:
    """Return the packed layer of a quantized one, with its bias and stored outputs, on the device
    of its weight.
    """
    device = weight.codes.device
    bias = None if linear.bias is None else linear.bias.to(device)
    sinks = None if linear.sink_output is None else linear.sink_output.to(device)
    return PackedLinear(weight, holding, bias, site, leader, sinks)


def transform_input(layers: Sequence[PackedLinear], transform: OnlineTransform) -> None:
    """Put an online transform in front of the packed layers of one site; the first registers it."""
    layers[0].input_transform = transform
    for layer in layers:
        layer.register_forward_pre_hook(transform.before)
