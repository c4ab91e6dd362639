"""A Linear layer with a quantized weight and a quantized input."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qvlm_lightning.nn.changes import Changes
from qvlm_lightning.nn.online_transform import OnlineTransform
from qvlm_lightning.nn.quantizer import ActivationQuantizer
from qvlm_lightning.nn.sinks import SinkOutput
from qvlm_lightning.nn.version_key import version_key
from qvlm_lightning.nn.weight_quantizer import WeightQuantizer


class QuantLinear(nn.Linear):
    """``nn.Linear`` that fake-quantizes its weight and the input of its site.

    It shares the Parameter objects of the layer it replaces, so ties and ``.weight.dtype`` look-ups
    survive.
    The first Linear of a site (the leader) registers the site's quantizer; the others only refer to
    it, so
    that a state dict holds every tensor once.
    """

    enabled: bool
    only_quantized: bool
    weight_quantizer: WeightQuantizer
    adapter: nn.Module | None
    input_transform: OnlineTransform | None
    sink_output: SinkOutput | None
    input_quantizer: ActivationQuantizer
    site: ActivationQuantizer
    _weight_cache: tuple[tuple[object, ...] | None, Tensor, list[Tensor]] | None

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        site: ActivationQuantizer,
        leader: bool,
        weight_bits: int,
        group_size: int | None,
        symmetric: bool,
        device: torch.device | None = None,
    ) -> "QuantLinear":
        """Wrap ``linear``.

        Args:
            linear: the layer to replace; its parameters are shared, not copied.
            site: quantizer of its input.
            leader: whether this layer registers ``site``.
            weight_bits: 2-8, or 16 for a weight left alone.
            group_size: inputs that share a weight scale; ``None`` for one scale per output channel.
            symmetric: symmetric weight codes.
            device: of what calibration learns; default that of the weight.
        """
        new = cls.__new__(cls)
        nn.Module.__init__(new)
        new.in_features, new.out_features = linear.in_features, linear.out_features
        new.weight, new.bias, new.training = linear.weight, linear.bias, linear.training
        new.enabled = new.only_quantized = False
        new.weight_quantizer = WeightQuantizer(
            (linear.out_features, linear.in_features),
            weight_bits,
            group_size,
            symmetric,
            device or linear.weight.device,
        )
        new.adapter = new.sink_output = new.input_transform = None
        new._weight_cache = None
        if leader:
            new.input_quantizer = site
        object.__setattr__(new, "site", site)
        return new

    def forward(self, x: Tensor) -> Tensor:
        """Return ``Q(x) Q(W)^T + b``; [B, T, I] -> [B, T, O]."""
        output = F.linear(self.site(x), self.quantized_weight(), self.bias)
        return output if self.sink_output is None or not self.enabled else self.sink_output(output)

    def quantized_weight(self) -> Tensor:
        """Return the weight as the forward pass uses it, [O, I]; kept until the weight or its clip
        changes.
        """
        if not self.enabled or not self.weight_quantizer.active or self.only_quantized:
            return self.weight
        decided = [self.weight, *self._decided()]
        if torch.is_grad_enabled() and any(x.requires_grad for x in decided):
            return self._fake_quantized_weight()
        key = version_key(*decided)
        kept = self._weight_cache
        if kept is None or key is None or kept[0] != key:
            # kept from inference mode, it could not be saved for a later backward pass
            with torch.inference_mode(False), torch.no_grad():
                # what it is made of is kept too: as long as it lives, nothing else has its identity
                kept = self._weight_cache = (key, self._fake_quantized_weight(), decided)
        return kept[1]

    @torch.no_grad()
    def keep_only_quantized(self) -> None:
        """Let the full-precision weight go: one copy instead of two, for a model that is only run.

        The codes stay what they are. Full precision is gone for good.
        """
        if not self.weight_quantizer.active or self.only_quantized:
            return
        weight = self.weight if self.adapter is None else self.adapter(self.weight)
        self.weight_quantizer.keep_range(weight)
        self.weight.data = self.weight_quantizer(weight)
        self.only_quantized, self.adapter = True, None
        self.forget()

    def hold_only_quantized(self, weight: Tensor, scale: Tensor, zero_point: Tensor) -> None:
        """Take a weight that was stored as codes; there is no full precision.

        Args:
            weight: dequantized, [O, I].
            scale: [O, G].
            zero_point: [O, G], 0 where codes are symmetric.
        """
        self.weight_quantizer.hold_qparams(scale, zero_point)
        self.weight.data = weight.to(self.weight.dtype)
        self.only_quantized = True

    def forget(self) -> None:
        """Let the kept quantized weight go; for whoever puts another weight in place."""
        self._weight_cache = None

    def adapter_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the adapter, if there is one."""
        return [] if self.adapter is None else list(self.adapter.parameters())

    def _decided(self) -> list[Tensor]:
        """Return what a quantized weight is made of, beside the weight."""
        own = self.weight_quantizer
        ranges = [x for x in (own.low, own.high) if x is not None]
        return [own.clip_ratio, *ranges, *self.adapter_parameters()]

    def _fake_quantized_weight(self) -> Tensor:
        weight = self.weight if self.adapter is None else self.adapter(self.weight)
        quantized: Tensor = self.weight_quantizer(weight)
        return quantized


@contextmanager
def output_sqnr(
    linears: Mapping[str, QuantLinear], changes: Changes | None = None
) -> Iterator[dict[str, float]]:
    """Within the block, measure how much noise quantization adds to the output of every Linear
    layer that runs.

    Args:
        linears: name -> layer.
        changes: knows the full-precision weights that methods have changed.

    Yields:
        Name -> 10 log10(sum y^2 / sum (y_q - y)^2) in dB, where y is what the full-precision weight
        makes of the input that reaches the layer; layers without noise, or that the batch never
        reaches, are left out.
    """
    ratios: dict[str, float] = {}

    def tap(name: str, linear: QuantLinear) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            weight: Tensor = linear.weight
            bias: Tensor | None = linear.bias
            if changes is not None:
                weight = changes.original(f"{name}.weight", weight)
                bias = None if bias is None else changes.original(f"{name}.bias", bias)
            exact = F.linear(args[0], weight, bias).double()
            output = output.double()
            if linear.sink_output is not None and linear.enabled:  # what is stored has no noise
                rows = linear.sink_output.sinks.rows(output.shape) < 0
                exact, output = exact[rows], output[rows]
            noise = (output - exact).square().sum()
            if noise > 0:
                ratios[name] = float(10 * torch.log10(exact.square().sum() / noise))
            linear.forget()  # of all layers at once, they are as large as the model

        return linear.register_forward_hook(hook)

    handles = [tap(name, linear) for name, linear in linears.items()]
    try:
        yield ratios
    finally:
        for handle in handles:
            handle.remove()
