"""Put the stored tensors of an artifact into its model: all at once, or layer by layer in packed
form.
"""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from qvlm_lightning.artifact.codes import code_kinds, stored_weight
from qvlm_lightning.artifact.compressed import CompressedTensors
from qvlm_lightning.errors import InputError
from qvlm_lightning.finite import check_finite
from qvlm_lightning.kernels import PackedModel, pack_model
from qvlm_lightning.nn.finite import check_bounds
from qvlm_lightning.nn.linear import QuantLinear
from qvlm_lightning.nn.packing import PackedWeight, packed_weight
from qvlm_lightning.nn.sinks import SinkOutput
from qvlm_lightning.nn.structure import Structure
from qvlm_lightning.nn.weight_quantizer import WeightQuantizer
from qvlm_lightning.weights.shards import Shards


class StoredTensors(Mapping[str, Tensor]):
    """Tensors of safetensors files, each read when it is asked for.

    Args:
        paths: of the files.

    Raises:
        InputError: one is broken or cut short.
    """

    def __init__(self, *paths: Path) -> None:
        self.shards = Shards({})
        for path in paths:
            self.shards.entries |= Shards.of_file(path).entries

    def __getitem__(self, name: str) -> Tensor:
        return self.shards.read(name)

    def __contains__(self, name: object) -> bool:
        return name in self.shards.entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.shards.entries)

    def __len__(self) -> int:
        return len(self.shards.entries)

    def shapes(self) -> dict[str, Tensor]:
        """Return tensors of these types and shapes without values."""
        entries = self.shards.entries.items()
        return {n: torch.empty(e.shape, dtype=e.dtype, device="meta") for n, e in entries}


def put_transforms(structure: Structure, weights: Mapping[str, Tensor], folder: Path) -> None:
    """Make places for the online transforms of an artifact.

    Raises:
        InputError: one does not fit its site.
    """
    for site in structure.sites:
        name = f"{next(iter(site.linears))}.input_transform"
        pair = [weights[own] for own in (f"{name}.left", f"{name}.right") if own in weights]
        if any(x.dim() != 2 or x.shape[0] != x.shape[1] for x in pair):
            raise InputError(
                f"artifact {str(folder)!r} is broken: {name} is not of square matrices"
            )
        if len(pair) == 2:
            try:
                site.put_transform(*pair)
            except ValueError as error:
                raise InputError(f"artifact {str(folder)!r} is broken: {error}") from error


def fill(model: nn.Module, tensors: dict[str, Tensor], folder: Path) -> None:
    """Copy the stored tensors into the model; of codes the weights that they stand for.

    Raises:
        InputError: one is missing (under all its names, if it is tied), too many or of another
            shape.
    """
    for name, linear in _coded(model, tensors).items():
        packed = stored_weight(name, linear, tensors, f"artifact {str(folder)!r}")
        weight = packed.dequantized()
        linear.hold_only_quantized(weight, *_qparams(packed))
        tensors = {n: x for n, x in tensors.items() if n not in code_kinds(name, linear)}
        tensors |= _instead_of_codes(name, linear, weight)
    make_places(model, tensors)
    check_fit(model, tensors, folder)
    model.load_state_dict(tensors, strict=False)


def fill_packed(
    model: nn.Module,
    structure: Structure,
    weights: StoredTensors | CompressedTensors,
    quantizers: dict[str, Tensor],
    folder: Path,
    device: torch.device,
) -> PackedModel:
    """Fill a model on the meta device and pack its quantized layers; at no time is more than one
    layer there in full precision.

    Args:
        model: quantized, its parameters without values, its quantizers with.
        structure: of the model.
        weights: as they are stored.
        quantizers: by their names in the model.
        folder: of the artifact, for messages.
        device: where packed layers go; all else is on the CPU.

    Raises:
        InputError: a tensor is missing, too many, of another shape, or holds NaN; a bound means
            nothing.
    """
    where = f"artifact {str(folder)!r}"
    coded = _coded(model, weights)
    kinds = {own for name, linear in coded.items() for own in code_kinds(name, linear)}
    shapes = {n: x for n, x in weights.shapes().items() if n not in kinds} | quantizers
    for name, linear in coded.items():
        shapes |= _instead_of_codes(name, linear, linear.weight)
    make_places(model, quantizers)
    check_fit(model, shapes, folder)
    model.load_state_dict(quantizers, strict=False)
    check_bounds(model, where)
    quantized = {f"{n}.weight" for site in structure.sites for n in site.linears}
    state = model.state_dict(keep_vars=True)
    places: dict[int, list[str]] = {}
    for name, value in state.items():
        places.setdefault(id(value), []).append(name)

    def read(name: str) -> Tensor:
        value = weights[name].to(state[name].dtype)
        check_finite([(name, value)], where)
        return value

    for name in weights:
        if name not in quantized and name not in kinds:
            value = read(name)
            for own in places[id(state[name])]:
                _assign(model, own, value)

    def packed(name: str, linear: QuantLinear) -> PackedWeight:
        if name in coded:
            return stored_weight(name, linear, weights, where)
        return packed_weight(linear.weight_quantizer, read(f"{name}.weight"))

    done = pack_model(model, structure, packed, device)
    for site in structure.sites:  # what is left is simulated
        for name, linear in site.linears.items():
            if name in coded:
                held = stored_weight(name, linear, weights, where)
                _assign(model, f"{name}.weight", held.dequantized())
                linear.hold_only_quantized(linear.weight, *_qparams(held))
            else:
                _assign(model, f"{name}.weight", read(f"{name}.weight"))
                linear.keep_only_quantized()
    return done


def _coded(model: nn.Module, names: Collection[str]) -> dict[str, QuantLinear]:
    """Return the layers of which codes are stored."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, QuantLinear)
        and module.weight_quantizer.active
        and f"{name}.codes" in names
    }


def _instead_of_codes(name: str, linear: QuantLinear, weight: Tensor) -> dict[str, Tensor]:
    """Return what a model has where an artifact has codes."""
    ratio = linear.weight_quantizer.clip_ratio
    return {f"{name}.weight": weight, f"{name}.weight_quantizer.clip_ratio": ratio}


def _qparams(packed: PackedWeight) -> tuple[Tensor, Tensor]:
    """Return scale and zero point, 0 where codes are symmetric."""
    symmetric = packed.zero_point is None
    return packed.scale, torch.zeros_like(packed.scale) if symmetric else packed.zeros()


def make_places(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Make room for what only some artifacts have: decided ranges of weights, stored sinks."""
    for name, module in model.named_modules():
        if isinstance(module, WeightQuantizer) and f"{name}.low" in tensors:
            module.hold_range()
        if isinstance(module, SinkOutput):
            outputs = model.get_submodule(name.rpartition(".")[0]).get_parameter("weight")
            shape = len(module.sinks.prefix), outputs.shape[0]
            device = torch.device("cpu") if outputs.is_meta else outputs.device
            module.hold(shape, outputs.dtype, device)


def check_fit(model: nn.Module, tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Compare names and shapes with those of the model.

    Raises:
        InputError: a tensor is missing (under all its names, if it is tied), too many or of another
            shape.
    """
    state = model.state_dict(keep_vars=True)
    filled = {id(state[name]) for name in tensors if name in state}
    odd = [name for name in state if id(state[name]) not in filled]
    odd += [n for n, t in tensors.items() if n not in state or t.shape != state[n].shape]
    if odd:
        raise InputError(
            f"artifact {str(folder)!r} does not fit its own config, for example at {min(odd)}"
        )


def _assign(model: nn.Module, name: str, value: Tensor) -> None:
    """Put a tensor in the place of a parameter or buffer."""
    path, _, own = name.rpartition(".")
    owner = model.get_submodule(path)
    if own in owner._parameters:
        owner._parameters[own] = nn.Parameter(value, requires_grad=False)
    else:
        owner._buffers[own] = value
