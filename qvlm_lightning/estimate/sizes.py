"""How many bytes the weights of a quantized model take, part by part; weights need not exist.

Packed as the field does: codes of ``b`` bits without gaps; per output channel or group of inputs a
scale in the model's type and, if codes are asymmetric, a zero point of ``b`` bits; per site whose
range is stored, its two bounds in float32. Everything else stays as it is.
"""

from dataclasses import dataclass, fields

from torch import nn

from qvlm_lightning.nn.linear import QuantLinear
from qvlm_lightning.nn.structure import Structure

OFF = 16
PARTS = ("vision", "projector", "language", "embeddings", "head", "other")


@dataclass
class PartSize:
    """Sizes of one part of a model, in bytes unless said.

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
    """Return the size of every part that has parameters.

    ``vision`` is the whole tower, layers that cannot reach the output included; ``embeddings`` and
    ``head`` are the language model's (tied ones are counted once, as embeddings).

    Args:
        model: with quantized layers, with or without weights.
        structure: of the model.
    """
    owner = _Owners(model, structure)
    sizes = {part: PartSize() for part in PARTS}
    modules = dict(model.named_modules())
    for name, parameter in model.named_parameters():
        path, _, own = name.rpartition(".")
        if own in ("clip_ratio", "low_ratio", "high_ratio"):
            continue  # what calibration learns is folded into scales and ranges
        size, linear = sizes[owner(name)], modules[path]
        size.parameters += parameter.numel()
        size.full += parameter.nbytes
        if own == "weight" and isinstance(linear, QuantLinear) and linear.weight_bits < OFF:
            size.quantized_parameters += parameter.numel()
            size.codes += _bytes(parameter.numel() * linear.weight_bits)
            size.scales += scale_bytes(linear)
        else:
            size.left += parameter.nbytes
    for tower, found in structure.towers.items():
        for site in found.sites:
            if site.quantizer.num_bits < OFF and site.quantizer.mode != "dynamic_token":
                sizes[tower.partition(".")[0]].ranges += 2 * site.quantizer.low.nbytes
    return {part: size for part, size in sizes.items() if size.parameters}


def scale_bytes(linear: QuantLinear) -> int:
    """Return the bytes of a layer's scales and zero points."""
    groups = linear.in_features // (linear.group_size or linear.in_features)
    count = linear.out_features * groups
    zero_points = 0 if linear.weight_symmetric else _bytes(count * linear.weight_bits)
    return count * linear.weight.itemsize + zero_points


def _bytes(bits: int) -> int:
    return -(-bits // 8)


class _Owners:
    """Tells the part of a parameter by its name."""

    def __init__(self, model: nn.Module, structure: Structure) -> None:
        towers = structure.towers
        self.units = {
            f"{unit.name}.": tower.partition(".")[0]
            for tower, found in towers.items()
            for unit in found.units
        }
        roots: dict[str, list[str]] = {
            part: towers[part].units[0].name.split(".") for part in ("vision", "language")
        }
        shared = 0
        while roots["vision"][shared] == roots["language"][shared]:
            shared += 1
        self.roots = {".".join(n[: shared + 1]) + ".": part for part, n in roots.items()}
        ends = {"embeddings": "get_input_embeddings", "head": "get_output_embeddings"}
        found = {part: getattr(model, method)() for part, method in ends.items()}
        self.ends = {
            f"{name}.": part
            for name, module in model.named_modules()
            for part, wanted in found.items()
            if module is wanted
        }

    def __call__(self, name: str) -> str:
        for places in (self.units, self.ends, self.roots):
            for prefix, part in places.items():
                if name.startswith(prefix):
                    return part
        return "other"
