"""Sizes of models and of what runs through them, in bytes; weights need not exist.

This is where sizes are defined: plans, checks before a run and streaming read them here and print
them with :func:`format_bytes`.

Packed weights are counted as the field packs them: codes of ``b`` bits without gaps; per output
channel or group of inputs a scale in the model's type and, if codes are asymmetric, a zero point of
``b`` bits; per site whose range is stored, its two bounds in float32. Everything else stays as it
is.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any

from torch import nn

from qvlm_lightning.nn.calibrated import is_learned_beside, is_quantizer_tensor
from qvlm_lightning.nn.linear import QuantLinear
from qvlm_lightning.nn.structure import Structure, Tower, Unit
from qvlm_lightning.quant.observers import RangeObserver
from qvlm_lightning.quant.scheme import OFF

GIB, MIB = 1024**3, 1024**2
PARTS = ("vision", "projector", "language", "embeddings", "head", "other")
RESERVOIR = RangeObserver("tensor").max_tokens


def in_gib(nbytes: float, digits: int = 2) -> str:
    """Return a size in GiB as a number without its unit, for tables that name it.

    Example:
        >>> in_gib(3 * 2**29)
        '1.50'
    """
    return f"{nbytes / GIB:.{digits}f}"


def format_bytes(nbytes: float) -> str:
    """Return a size with its unit: GiB, or MiB below a tenth of one.

    Example:
        >>> format_bytes(3 * 2**29), format_bytes(3 * 2**19)
        ('1.50 GiB', '1.5 MiB')
    """
    return f"{in_gib(nbytes)} GiB" if nbytes >= 0.1 * GIB else f"{nbytes / MIB:.1f} MiB"


def own_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the parameters that a model had before calibration, tied ones once.

    What calibration learns is folded into scales and ranges and takes no memory to speak of.
    """
    for name, parameter in module.named_parameters():
        if not is_quantizer_tensor(name) and not is_learned_beside(name):
            yield name, parameter


class ModelSizes:
    """Bytes of a quantized model's weights, and of what its layers hold for a number of tokens.

    Args:
        model: with quantized layers, with or without weights.
        structure: of the model.

    Attributes:
        towers: those that have layers.
        language: the decoder.
        total: all weights, in their own type.
        head: the output head; 0 if it is tied to the embeddings.
        rest: what is neither in a layer nor head, such as embeddings.
        element: of one weight of the head, and of one number that is passed on.
        vocabulary: words, not bytes.
    """

    def __init__(self, model: Any, structure: Structure) -> None:
        self.towers = [tower for tower in structure.towers.values() if tower.units]
        self.language = structure.towers["language"]
        head = model.get_output_embeddings()
        everywhere = model.named_parameters(remove_duplicate=False)
        tied = sum(p is head.weight for _, p in everywhere) > 1
        self.total = _weights(model)
        self.head = 0 if tied else _weights(head)
        inside = sum(self.unit(unit) for tower in self.towers for unit in tower.units)
        self.rest = self.total - inside - self.head
        self.element = int(head.weight.itemsize)
        self.vocabulary = int(head.out_features)

    def unit(self, unit: Unit) -> int:
        """Return the weights of a layer."""
        return _weights(unit.module)

    def quantized(self, unit: Unit) -> int:
        """Return the fake-quantized copies of a layer's weights, kept while it is searched."""
        linears = [x for site in unit.sites for x in site.linears.values()]
        return sum(x.weight.nbytes for x in linears if x.weight_quantizer.active)

    def largest_block(self, layers: int, size: Callable[[Unit], int]) -> int:
        """Return the largest sum over ``layers`` neighbouring layers of one tower.

        Args:
            layers: of a block, or all of a tower that has fewer.
            size: of a layer, such as :meth:`unit` or :meth:`quantized`.
        """
        sizes = [[size(unit) for unit in tower.units] for tower in self.towers]
        return max(sum(of[i : i + layers]) for of in sizes for i in range(len(of)))

    def hidden(self, tower: Tower, tokens: int) -> int:
        """Return the hidden states of ``tokens`` tokens where a tower is widest."""
        return tokens * max((_width(unit) for unit in tower.units), default=0) * self.element

    def output(self, tower: Tower, tokens: int) -> int:
        """Return what a tower gives for ``tokens`` tokens; the tower has a site."""
        return tokens * tower.sites[-1].leader.out_features * self.element

    def site_inputs(self, unit: Unit, tokens: int) -> int:
        """Return the inputs of a layer's sites, and the widest of them once more."""
        widths = [site.leader.in_features for site in unit.sites]
        return tokens * (sum(widths) + max(widths, default=0)) * self.element

    def running(self, unit: Unit, tokens: int, quantized: bool) -> int:
        """Return what a layer holds while it runs without gradients.

        Args:
            unit: the layer.
            tokens: over all samples and candidates.
            quantized: whether its inputs are fake-quantized, in two float32 copies.
        """
        widest = max((site.leader.in_features for site in unit.sites), default=0)
        each = self.element + (8 if quantized else 0)
        return tokens * (4 * _width(unit) * self.element + widest * each)

    def saved_for_backward(self, unit: Unit, tokens: int, twice: bool) -> int:
        """Return what a layer keeps of its forward pass for a backward pass.

        Args:
            unit: the layer.
            tokens: over all samples.
            twice: whether the quantized inputs of its Linear layers are kept as well, because
                their weights' clipping is learned.
        """
        inputs = sum(site.leader.in_features for site in unit.sites)
        outputs = sum(x.out_features for site in unit.sites for x in site.linears.values())
        elements = inputs * (2 if twice else 1) + outputs
        return tokens * (elements * self.element + 8 * _width(unit))

    def reservoir(self, unit: Unit, tokens: int) -> int:
        """Return the sampled activations of a layer's sites, float32."""
        kept = min(RESERVOIR, tokens)
        return sum(4 * kept * site.leader.in_features for site in unit.sites)

    def quantiles(self, unit: Unit, tokens: int) -> int:
        """Return what the quantiles of a layer's widest site take: its reservoir in parts and
        whole, and float32 values and int64 places in order.
        """
        kept = min(RESERVOIR, tokens)
        return max((20 * kept * site.leader.in_features for site in unit.sites), default=0)


def _weights(module: nn.Module) -> int:
    return sum(parameter.nbytes for _, parameter in own_parameters(module))


def _width(unit: Unit) -> int:
    return unit.sites[0].leader.in_features if unit.sites else 0


@dataclass
class PartSize:
    """Sizes of one part of a model when its weights are packed, in bytes unless said.

    Attributes:
        parameters: number of parameters.
        quantized_parameters: those that become codes.
        full: all of them in the model's type.
        codes: of the quantized ones.
        scales: scales and zero points.
        ranges: stored ranges of activations.
        left: what stays in the model's type.
    """

    parameters: int = 0
    quantized_parameters: int = 0
    full: int = 0
    codes: int = 0
    scales: int = 0
    ranges: int = 0
    left: int = 0

    @property
    def quantized(self) -> int:
        """What the part takes afterwards."""
        return self.codes + self.scales + self.ranges + self.left

    def __add__(self, other: "PartSize") -> "PartSize":
        """Return the sum of two parts."""
        names = [field.name for field in fields(self)]
        return PartSize(*(getattr(self, n) + getattr(other, n) for n in names))


def part_sizes(model: nn.Module, structure: Structure) -> dict[str, PartSize]:
    """Return the packed size of every part that has parameters.

    ``vision`` is the whole tower, layers that cannot reach the output included; ``embeddings`` and
    ``head`` are the language model's (tied ones are counted once, as embeddings).

    Args:
        model: with quantized layers, with or without weights.
        structure: of the model.
    """
    owner = _Owners(model, structure)
    sizes = {part: PartSize() for part in PARTS}
    modules = dict(model.named_modules())
    for name, parameter in own_parameters(model):
        path, _, own = name.rpartition(".")
        size, linear = sizes[owner(name)], modules[path]
        size.parameters += parameter.numel()
        size.full += parameter.nbytes
        if own == "weight" and isinstance(linear, QuantLinear) and linear.weight_quantizer.active:
            size.quantized_parameters += parameter.numel()
            size.codes += _whole_bytes(parameter.numel() * linear.weight_quantizer.num_bits)
            size.scales += scale_bytes(linear)
        else:
            size.left += parameter.nbytes
    for name, tower in structure.towers.items():
        for site in tower.sites:
            if site.quantizer.num_bits < OFF and site.quantizer.mode != "dynamic_token":
                sizes[name.partition(".")[0]].ranges += 2 * site.quantizer.low.nbytes
    return {part: size for part, size in sizes.items() if size.parameters}


def scale_bytes(linear: QuantLinear) -> int:
    """Return the bytes of a layer's scales and zero points."""
    quantizer = linear.weight_quantizer
    groups = linear.in_features // (quantizer.group_size or linear.in_features)
    count = linear.out_features * groups
    zero_points = 0 if quantizer.symmetric else _whole_bytes(count * quantizer.num_bits)
    return count * linear.weight.itemsize + zero_points


def _whole_bytes(bits: int) -> int:
    return -(-bits // 8)


class _Owners:
    """Parts of a model by the names of their parameters."""

    def __init__(self, model: nn.Module, structure: Structure) -> None:
        towers = structure.towers
        self.units = {
            f"{unit.name}.": name.partition(".")[0]
            for name, tower in towers.items()
            for unit in tower.units
        }
        roots: dict[str, list[str]] = {
            part: towers[part].units[0].name.split(".") for part in ("vision", "language")
        }
        shared = 0
        while roots["vision"][shared] == roots["language"][shared]:
            shared += 1
        self.roots = {".".join(n[: shared + 1]) + ".": part for part, n in roots.items()}
        ends = {"embeddings": "get_input_embeddings", "head": "get_output_embeddings"}
        outer = {part: getattr(model, method)() for part, method in ends.items()}
        self.ends = {
            f"{name}.": part
            for name, module in model.named_modules()
            for part, end in outer.items()
            if module is end
        }

    def __call__(self, name: str) -> str:
        for prefixes in (self.units, self.ends, self.roots):
            for prefix, part in prefixes.items():
                if name.startswith(prefix):
                    return part
        return "other"
